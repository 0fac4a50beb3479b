"""The record of the interfaces that were made for a machine."""

from functools import partial

import pytest

from microvm.errors import StateError
from microvm.launch import taps
from microvm.model.plan import LaunchPlan


@pytest.mark.parametrize("record", ['{"tap7": 5}', "[]", "{", '{"tap7": {}}'])
def test_a_record_that_can_not_be_read_is_told_and_kept(record, tmp_path):
    (tmp_path / taps.RECORD).write_text(record)
    plan = LaunchPlan(name="vm", hypervisor="h", process_name=None, argv=())
    for function in (partial(taps.up, plan), taps.down):
        with pytest.raises(StateError, match=r"taps\.json, which tells .* is damaged"):
            function(tmp_path)
    assert (tmp_path / taps.RECORD).read_text() == record
