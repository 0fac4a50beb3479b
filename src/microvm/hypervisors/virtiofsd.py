"""The command line of virtiofsd, for its two implementations.

The Rust one (virtiofsd 1.x) has options of its own; the C one of QEMU up to 7.2 takes FUSE's.
"""

from microvm.model.devices import Share
from microvm.model.facts import Program
from microvm.model.options import VirtiofsdOptions

PROGRAM = "virtiofsd"
PLACES = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib/virtiofsd")


def virtiofsd(
    program: Program,
    share: Share,
    source: str,
    options: VirtiofsdOptions,
    *,
    mapped: bool,
) -> tuple[str, ...]:
    """Return the argv that serves `source`, less the listening socket that it inherits.

    `mapped`: it runs in a namespace made for it.
    """
    words = (
        _rust(share, source, options, mapped)
        if program.flavour == "rust"
        else _c(share, source, options, mapped)
    )
    return (program.path, *words, *options.extra_args, *share.extra_args)


def _rust(share: Share, source: str, options: VirtiofsdOptions, mapped: bool) -> list[str]:
    argv = [f"--shared-dir={source}", f"--cache={share.cache}"]
    argv.append(f"--sandbox={'none' if mapped else 'namespace'}")
    if share.read_only:
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
    cache = {"never": "none", "metadata": "auto"}.get(share.cache, share.cache)
    settings = [
        f"source={source}",
        f"cache={cache}",
        "sandbox=chroot" if mapped else "sandbox=namespace",
    ]
    if share.posix_acl:
        settings += ["xattr", "posix_acl"]
    argv = ["-f", "-o", ",".join(settings)]
    if options.thread_pool_size is not None:
        argv.append(f"--thread-pool-size={options.thread_pool_size}")
    return argv
