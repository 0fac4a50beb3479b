"""Programs that we start."""

import resource

import pytest

from microvm.host import process


@pytest.fixture
def few_files():
    """A limit as most shells have it, and a higher one that we could have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_program_beside_us_may_open_all_the_files_that_we_could(tmp_path, few_files):
    log = tmp_path / "log"
    with process.spawn(["sh", "-c", "ulimit -n"], log=log) as child:
        assert child.wait(10) == 0
    assert log.read_text().split() == [str(few_files)]
