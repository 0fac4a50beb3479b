"""The command line of virtiofsd, for its two implementations, and what each of them can't do.

The Rust one (virtiofsd 1.x) has options of its own; the C one of QEMU up to 7.2 takes FUSE's
(tools/virtiofsd/helper.c, passthrough_ll.c and fuse_opt.c of 7.2).
"""

from collections.abc import Iterator

from microvm.errors import Problem
from microvm.model.declaration import MicroVM
from microvm.model.devices import Share
from microvm.model.facts import Program, dotted
from microvm.model.options import VirtiofsdOptions

PROGRAM = "virtiofsd"
PLACES = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib/virtiofsd")
"""Directories where distributions put it, which is on nobody's PATH."""
READ_ONLY_SINCE = (1, 13)

_NEWER = "install virtiofsd 1.x"


def virtiofsd(
    program: Program,
    share: Share,
    source: str,
    options: VirtiofsdOptions,
    *,
    mapped: bool,
) -> tuple[str, ...]:
    """Return the argv that serves `source`, less the listening socket that it inherits.

    `mapped`: it runs in a namespace made for it, where the directory is read-only already.
    """
    words = (
        _rust(program, share, source, options, mapped)
        if program.flavour == "rust"
        else _c(share, source, options, mapped)
    )
    return (program.path, *words, *options.extra_args, *share.extra_args)


def unmet(program: Program, microvm: MicroVM) -> Iterator[Problem]:
    """Yield what is declared and this virtiofsd can't do."""
    if microvm.virtiofsd.inode_file_handles == "mandatory":
        where = "virtiofsd.inode_file_handles"
        hint = "`prefer` uses them where it can"
        if program.flavour == "c":
            message = "file handles need virtiofsd 1.x; this is the one of QEMU 7.2"
            yield Problem(where=where, message=message, hint=f"{_NEWER}, or say less: {hint}")
        elif not microvm.store_on_disk and microvm.store_proto == "virtiofs":
            message = "the guest's layers are served from a user namespace, which has none"
            yield Problem(where=where, message=message, hint=f"set store_on_disk, or: {hint}")
    for index, share in enumerate(microvm.shares):
        if share.proto == "virtiofs":
            rows = _unmet_by_c(share) if program.flavour == "c" else _unmet_by_rust(program, share)
            for key, message, hint in rows:
                yield Problem(where=f"shares.{index}.{key}", message=message, hint=hint)


def _unmet_by_rust(program: Program, share: Share) -> Iterator[tuple[str, str, str]]:
    if share.read_only and not program.has(READ_ONLY_SINCE):
        need, have = dotted(READ_ONLY_SINCE), dotted(program.version)
        message = f"it needs virtiofsd {need}, this is {have}"
        yield "read_only", message, "install a later virtiofsd"


def _unmet_by_c(share: Share) -> Iterator[tuple[str, str, str]]:
    said = "needs virtiofsd 1.x; this is the one of QEMU 7.2"
    for key in ("uid_map", "gid_map"):
        if getattr(share, key):
            yield key, f"it {said}", f"{_NEWER}, or leave it out"
    if share.cache == "metadata":
        yield "cache", f"`metadata` {said}", f"{_NEWER}, or use auto or never"


def _rust(
    program: Program, share: Share, source: str, options: VirtiofsdOptions, mapped: bool
) -> list[str]:
    argv = [f"--shared-dir={source}", f"--cache={share.cache}"]
    argv.append(f"--sandbox={'none' if mapped else 'namespace'}")
    if share.read_only and program.has(READ_ONLY_SINCE):
        argv.append("--readonly")
    if options.inode_file_handles and not mapped:
        argv.append(f"--inode-file-handles={options.inode_file_handles}")
    if options.thread_pool_size is not None:
        argv.append(f"--thread-pool-size={options.thread_pool_size}")
    if share.posix_acl:
        argv += ["--posix-acl", "--xattr"]
    argv += [f"--translate-uid={entry}" for entry in share.uid_map]
    argv += [f"--translate-gid={entry}" for entry in share.gid_map]
    return argv


def _c(share: Share, source: str, options: VirtiofsdOptions, mapped: bool) -> list[str]:
    settings = [
        f"source={_escaped(source)}",
        f"cache={'none' if share.cache == 'never' else share.cache}",
        "sandbox=chroot" if mapped else "sandbox=namespace",
    ]
    if share.posix_acl:
        settings += ["xattr", "posix_acl"]
    argv = ["-f", "-o", ",".join(settings)]
    if options.thread_pool_size is not None:
        argv.append(f"--thread-pool-size={options.thread_pool_size}")
    return argv


def _escaped(value: str) -> str:
    """Return a value as FUSE's option parser wants it: a comma would start the next option."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
