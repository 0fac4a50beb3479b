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
