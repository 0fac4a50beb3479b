"""What the tests of options share: a project with the files that their samples name."""

import pytest

from varying import FILES


@pytest.fixture
def project(tmp_path):
    """Return a project's directory with the files that samples name."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "linux/lib/modules").mkdir(parents=True)
    return tmp_path
