"""Shares served by virtiofsd, planned alike for every back end that has virtio-fs."""

from dataclasses import dataclass

from microvm.hypervisors import resources
from microvm.hypervisors.virtiofsd import PROGRAM, virtiofsd
from microvm.model.devices import Share
from microvm.model.facts import Facts
from microvm.model.plan import Helper
from microvm.model.runner import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One share of a virtiofsd: what the guest calls it, and where the VMM meets it."""

    tag: str
    socket: str
    """Relative to the state directory."""
    helper: Helper


def socket_of(share: Share) -> str:
    """Return where the VMM meets a share's virtiofsd; relative to the state directory."""
    return share.socket or f"virtiofs-{share.tag}.sock"


def served(runner: Runner, facts: Facts) -> list[Served]:
    """Return what virtiofsd serves: the root's layers where no image was made, then the shares."""
    layers = [
        serve(runner, facts, share, share.source, mapped=True)
        for share in resources.layer_shares(runner, facts)
        if share.proto == "virtiofs"
    ]
    declared = [
        serve(runner, facts, share, resources.in_project(share.source, facts), mapped=False)
        for share in runner.microvm.shares
        if share.proto == "virtiofs"
    ]
    return layers + declared


def serve(runner: Runner, facts: Facts, share: Share, source: str, *, mapped: bool) -> Served:
    """Return the helper that serves one share; `mapped`: a tree of a guest, with its owners."""
    options = runner.microvm.virtiofsd
    program = facts.programs[PROGRAM]
    socket = socket_of(share)
    is_c = program.flavour == "c"
    frozen = mapped or (share.read_only and is_c)  # the C one has no option for that
    if mapped:
        ids = "store"
    elif is_c and not facts.root:
        ids = "own"  # it wants to be root of something
    else:
        ids = "host" if frozen else ""
    helper = Helper(
        name=f"virtiofsd-{share.tag}",
        argv=virtiofsd(program, share, source, options, mapped=mapped),
        socket=socket,
        ids=ids,
        socket_group=options.group,
        read_only=source if frozen else None,
    )
    return Served(tag=share.tag, socket=socket, helper=helper)
