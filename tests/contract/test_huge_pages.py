"""Huge pages that a host does not give are refused: no hypervisor goes on with small ones."""

import pytest

from microvm.host import facts as host_facts
from microvm.hypervisors import hypervisor
from microvm.model.declaration import MicroVM
from planned import facts


def problems(shmem_thp):
    found = hypervisor("crosvm").check(
        MicroVM(hypervisor="crosvm", hugepage_mem=True), facts("crosvm", shmem_thp=shmem_thp)
    )
    return [problem.where for problem in found]


@pytest.mark.parametrize(
    ("said", "where"),
    [("never", ["hugepage_mem"]), ("deny", ["hugepage_mem"]), ("advise", []), ("always", [])],
)
def test_crosvm_has_transparent_ones_where_the_host_gives_them(said, where):
    assert problems(said) == where


@pytest.mark.parametrize(("place", "where"), [(None, ["hugepage_mem"]), ("/dev/hugepages", [])])
def test_kvmtool_has_those_of_a_file_system(place, where):
    known = facts("kvmtool", hugetlbfs=place)
    found = hypervisor("kvmtool").check(MicroVM(hypervisor="kvmtool", hugepage_mem=True), known)
    assert [problem.where for problem in found] == where
    assert all("mount -t hugetlbfs" in problem.hint for problem in found)


@pytest.mark.parametrize("kind", ["qemu", "cloud-hypervisor", "firecracker", "kvmtool"])
@pytest.mark.parametrize(("free", "where"), [(255, ["hugepage_mem"]), (256, []), (None, [])])
def test_huge_pages_that_the_host_has_not_set_aside_are_refused(kind, free, where):
    known = facts(kind, hugepage_kib=2048, hugepages_free=free)
    found = hypervisor(kind).check(MicroVM(hypervisor=kind, mem=512, hugepage_mem=True), known)
    assert [problem.where for problem in found] == where
    assert all("vm.nr_hugepages=256" in problem.hint for problem in found)


@pytest.mark.parametrize("kind", ["qemu", "cloud-hypervisor"])
def test_memory_that_is_plugged_in_at_start_is_counted_too(kind):
    declared = MicroVM(
        hypervisor=kind, mem=512, hotplug_mem=256, hotplugged_mem=256, hugepage_mem=True
    )
    known = facts(kind, hugepage_kib=2048, hugepages_free=383)
    [problem] = hypervisor(kind).check(declared, known)
    assert problem.message == "384 huge pages are needed, the host has 383 left"


def test_memory_of_half_a_giant_page_is_refused_but_where_2_mib_are_asked_for():
    known = {"hugepage_kib": 1 << 20, "hugepages_free": 4}
    for kind, where in (("qemu", ["mem"]), ("cloud-hypervisor", ["mem"]), ("firecracker", [])):
        declared = MicroVM(hypervisor=kind, mem=1536, hugepage_mem=True)
        found = hypervisor(kind).check(declared, facts(kind, **known))
        assert [problem.where for problem in found] == where


@pytest.mark.parametrize(("overcommit", "free"), [("0", 40), ("5", 42)])
def test_the_free_huge_pages_are_counted(tmp_path, overcommit, free):
    text = "HugePages_Total: 90\nHugePages_Free: 50\nHugePages_Rsvd: 10\nHugePages_Surp: 3\n"
    (tmp_path / "meminfo").write_text(text)
    (tmp_path / "more").write_text(f"{overcommit}\n")
    assert host_facts.hugepages_free(tmp_path / "meminfo", tmp_path / "more") == free


def test_the_file_system_of_huge_pages_is_found_among_the_mounts(tmp_path):
    (tmp_path / "two words").mkdir()
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "tmpfs /run tmpfs rw 0 0\n"
        f"none {tmp_path}/nosuch hugetlbfs rw,pagesize=2M 0 0\n"
        f"none {tmp_path} hugetlbfs rw,pagesize=1024M 0 0\n"
        f"none {tmp_path}/two\\040words hugetlbfs rw,pagesize=2M 0 0\n"
    )
    assert host_facts.hugetlbfs(mounts) == f"{tmp_path}/two words"
    mounts.write_text("tmpfs /run tmpfs rw 0 0\n")
    assert host_facts.hugetlbfs(mounts) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("always within_size advise [never] deny force\n", "never"), ("[advise] never", "advise")],
)
def test_what_the_host_gives_is_the_chosen_word(tmp_path, text, said):
    (tmp_path / "shmem_enabled").write_text(text)
    assert host_facts.shmem_thp(tmp_path) == said


def test_a_kernel_without_transparent_ones_gives_none(tmp_path):
    assert host_facts.shmem_thp(tmp_path) == "never"


@pytest.mark.parametrize(
    ("text", "size"),
    [("HugePages_Free:     0\nHugepagesize:    2048 kB\nHugetlb: 0 kB\n", 2048), ("Hash: 1\n", 0)],
)
def test_the_size_of_a_huge_page_is_read(tmp_path, text, size):
    (tmp_path / "meminfo").write_text(text)
    assert host_facts.hugepage_kib(tmp_path / "meminfo") == size
