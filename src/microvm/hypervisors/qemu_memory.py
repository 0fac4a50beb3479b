"""A guest's memory as qemu is told of it: at boot, what can be plugged in, and the balloon."""

from microvm.model.declaration import MicroVM

START = ".start"
"""Name of the files with what QEMU is asked at its start, and its answers."""


def memory_size(vm: MicroVM) -> str:
    """Return the value of -m."""
    most = f",maxmem={vm.mem + vm.hotplug_mem}M" if vm.hotplug_mem else ""
    return f"{vm.mem}M{most}"


def memory_backend(vm: MicroVM, name: str, size_mib: int) -> str:
    """Return a piece of memory of the kind that the guest gets."""
    shared = vm.hugepage_mem or vm.uses("virtiofs")  # vhost-user: another process has to see it
    kind, more = ("memfd", ",share=on") if shared else ("ram", "")
    huge = ",hugetlb=on" if vm.hugepage_mem else ""
    return f"memory-backend-{kind},id={name},size={size_mib}M{more}{huge}"


def hotplug_memory(vm: MicroVM) -> list[str]:
    """Return the memory that can be plugged in and its device (PCI only)."""
    # Of huge pages it makes sure of those that it plugs in: a guest that touches one which the host
    # hasn't got would be killed.
    sure = ",prealloc=on" if vm.hugepage_mem else ""
    return [
        "-object", f"{memory_backend(vm, 'hotplug-mem', vm.hotplug_mem)},reserve=off",
        "-device",
        f"virtio-mem-pci,id=hotplug,memdev=hotplug-mem,requested-size={vm.hotplugged_mem}M{sure}",
    ]  # fmt: skip


def initial_balloon(vm: MicroVM) -> dict[str, str]:
    """Return the files with which QEMU inflates the balloon by itself.

    No option does, and after exec there is nobody of ours to ask for it. The chardev `pipe` reads
    NAME.in and writes NAME.out, which need not be pipes.
    """
    return {f"{START}.in": f"balloon {vm.mem - vm.initial_balloon_mem}\n", f"{START}.out": ""}


def first_commands() -> list[str]:
    """Return the monitor that reads the files of `initial_balloon`."""
    # Not by QMP: that would go on writing down every event.
    return ["-chardev", f"pipe,id=start,path={START}", "-mon", "chardev=start,mode=readline"]
