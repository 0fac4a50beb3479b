"""`microvm hypervisors`."""

import json
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import microvm
from microvm.cli import progress, project_options

if TYPE_CHECKING:
    from microvm.hypervisors.base import Hypervisor
    from microvm.hypervisors.features import Feature
    from microvm.hypervisors.room import Room

_EPILOG = """\
examples:
  microvm hypervisors                          # who can do what, and where each program is
  microvm hypervisors install firecracker
  microvm hypervisors install cloud-hypervisor --mirror https://mirror.example/github
  microvm hypervisors remove firecracker && microvm store gc
"""
_INSTALL = """\
Download the official static release of a hypervisor, check its SHA-256, which this version of
microvm knows, and put it into the store, where programs are looked for after PATH. For
hypervisors that publish no release, tell what to do instead.

Proxies are taken from http_proxy and https_proxy.
"""
_REMOVE = """\
Forget an installed hypervisor: `microvm store gc` then deletes it. What runs goes on.
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare what the command accepts."""
    parser.epilog = _EPILOG
    project_options.add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    verbs = parser.add_subparsers(dest="action", metavar="ACTION")
    for verb, text, more in (
        ("install", "fetch a hypervisor's official release into the store", _INSTALL),
        ("remove", "take an installed hypervisor away again", _REMOVE),
    ):
        sub = verbs.add_parser(
            verb, help=text, description=more, formatter_class=RawDescriptionHelpFormatter
        )
        name: Any = sub.add_argument("name", metavar="NAME", help="name of the hypervisor")
        name.words = project_options.hypervisors
        project_options.add_store(sub)
        sub.add_argument("--json", action="store_true", default=SUPPRESS, help="print JSON")
        if verb == "install":
            sub.add_argument(
                "--mirror",
                metavar="URL",
                default="https://github.com",
                help="server with the same paths as %(default)s, which is the default",
            )


def main(args: Namespace) -> int:
    """Carry out one action, or print who can do what."""
    if args.action is None:
        return _show(args)  # that makes no store
    action = {"install": _install, "remove": _remove}[args.action]
    return action(project_options.store_of(args), args)


def _install(store: "microvm.Store", args: Namespace) -> int:
    with progress.shown(progress.Steps()) as report:
        done = microvm.install_hypervisor(args.name, store, mirror=args.mirror, progress=report)
        found = microvm.find_hypervisor(args.name, store.path)
        if found.place == "PATH":
            text = f"{found.path} is on PATH and comes first"
            report(microvm.Event(step=args.name, detail=text, note=True))
    if args.json:
        print(json.dumps(asdict(done), indent=1))
    else:
        verb = "installed" if done.fetched else "already there:"
        print(f"{verb} {done.hypervisor} {done.version}: {done.program}")
    return 0


def _remove(store: "microvm.Store", args: Namespace) -> int:
    microvm.remove_hypervisor(args.name, store)
    if args.json:
        print(json.dumps({"hypervisor": args.name}))
    else:
        print(f"removed {args.name}; microvm store gc frees its space")
    return 0


def _show(args: Namespace) -> int:
    from microvm.hypervisors import hypervisor
    from microvm.hypervisors.features import Feature
    from microvm.hypervisors.room import Room
    from microvm.model.declaration import HypervisorKind

    backends = {kind.value: hypervisor(kind) for kind in HypervisorKind}
    programs = microvm.find_hypervisors(args.store)
    if args.json:
        plain = {"programs": [asdict(found) for found in programs], **_capabilities(backends)}
        print(json.dumps(plain, indent=1))
        return 0
    for found in programs:
        print(_place(found))
    width = max(len(feature.value) for feature in Feature)
    print(f"\n{'':{width}}  " + "  ".join(backends))
    for feature in Feature:
        cells = (_cell(each, feature).ljust(len(name)) for name, each in backends.items())
        print(f"{feature.value:{width}}  " + "  ".join(cells).rstrip())
    for room in Room:
        cells = (_most(each, room).ljust(len(name)) for name, each in backends.items())
        print(f"{f'most {room.value}':{width}}  " + "  ".join(cells).rstrip())
    return 0


def _cell(backend: "Hypervisor", feature: "Feature") -> str:
    from microvm.model.facts import dotted

    row = backend.support(feature)
    if row.available:
        return f"from {dotted(row.since)}" if row.since else "yes"
    return "-"


def _most(backend: "Hypervisor", room: "Room") -> str:
    """Return how many the last version takes; empty: no limit of its own."""
    return next(
        (str(each.most) for each in backend.takes if (each.room, each.until) == (room, None)), ""
    )


def _capabilities(backends: Mapping[str, "Hypervisor"]) -> dict[str, Any]:
    """Return who can do what, since which version, and what to do instead."""
    from microvm.hypervisors.features import Feature
    from microvm.model.facts import dotted

    plain: dict[str, Any] = {"features": {}, "since": {}, "instead": {}}
    for feature in Feature:
        rows = {name: each.support(feature) for name, each in backends.items()}
        plain["features"][feature.value] = {name: row.available for name, row in rows.items()}
        since = {name: dotted(row.since) for name, row in rows.items() if row.since}
        lacking = [name for name, row in rows.items() if not row.available]
        instead = {name: backends[name].instead(feature) for name in lacking}
        plain["since"] |= {feature.value: since} if since else {}
        plain["instead"] |= {feature.value: instead} if instead else {}
    plain["most"] = {
        name: [
            {"of": each.room.value, "most": each.most, "before": dotted(each.until or ()) or None}
            for each in backend.takes
        ]
        for name, backend in backends.items()
    }
    plain["oldest"] = {name: dotted(each.oldest) for name, each in backends.items() if each.oldest}
    return plain


def _place(found: "microvm.ProgramPlace") -> str:
    head = f"{found.hypervisor:16}  "
    if found.path is None:
        return f"{head}{found.program} is missing: microvm hypervisors install {found.hypervisor}"
    said = found.problem or found.version or "tells no version"
    return f"{head}{said}, {found.path} ({found.place})"
