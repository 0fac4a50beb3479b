"""Three MicroVMs from a loop, each with its own greeting: microvm run examples#python-2."""

from microvm import DebianSystem, File, MicroVM

microvms = {
    f"python-{number}": MicroVM(
        mem=384,
        system=DebianSystem(
            release="trixie",
            files={"/etc/motd": File(text=f"This is number {number} of three.\n")},
        ),
    )
    for number in (1, 2, 3)
}
