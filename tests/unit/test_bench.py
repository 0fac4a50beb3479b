"""The benchmarks: contenders take turns, and the page says what was reached, missed or not measured."""

import pytest
from bench import report
from bench.measure import Bound, Contender, PeerError, Row, Series, absent, interleaved

TWICE = Bound(at_most=0.8, stretch=0.5, relative=True)


def row(ours=(1.0,), peer=(2.0,), bound=TWICE, **fields):
    return Row(
        what="a thing",
        ours=Series("ours", ours),
        peers=(Series("peer", peer),),
        bound=bound,
        how="by hand",
        why="it is slow",
        **fields,
    )


def test_contenders_take_turns_and_each_goes_first():
    seen = []
    contenders = [Contender(name=name, run=lambda name=name: seen.append(name)) for name in "ab"]
    found = interleaved(3, contenders)
    assert "".join(seen) == "abbaab"
    assert [len(series.numbers) for series in found] == [3, 3]


def test_what_has_to_be_undone_is_undone_each_time_before():
    seen = []
    contender = Contender(name="a", run=lambda: seen.append("run"), before=lambda: seen.append("-"))
    interleaved(2, [contender])
    assert seen == ["-", "run", "-", "run"]


def test_a_peer_that_fails_is_out_with_its_reason_and_the_others_go_on():
    def fail():
        raise PeerError("it has no mirror")

    ours, peer = interleaved(
        3, [Contender(name="ours", run=lambda: None), Contender(name="peer", run=fail)]
    )
    assert len(ours.numbers) == 3
    assert (peer.numbers, peer.missing) == ((), "it has no mirror")


@pytest.mark.parametrize(
    ("ours", "said"),
    [(2.0, "**missed**"), (1.6, "reached"), (1.0, "stretch reached"), (0.1, "stretch reached")],
)
def test_a_ratio_is_judged_by_its_bound(ours, said):
    assert report.verdict(row(ours=(ours,))) == said


def test_the_median_counts():
    assert report.verdict(row(ours=(0.9, 9.0, 1.0))) == "stretch reached"


def test_a_bound_in_units_needs_no_peer():
    bound = Bound(at_most=3, stretch=1)
    assert report.verdict(row(ours=(2.0,), peer=(), bound=bound)) == "reached"


def test_no_number_is_shown_for_what_was_not_measured():
    lost = Row(
        what="a thing",
        ours=Series("ours", (1.0,)),
        peers=(absent("peer", "not here"),),
        bound=TWICE,
    )
    assert report.verdict(lost) == "not measured: not here"
    assert "peer: not measured: not here" in report.line(lost)
    assert "**" not in report.line(lost)


def test_the_page_lists_what_was_missed_with_the_reason():
    page = report.page([row(), row(ours=(9.0,))], "make bench", (0.1, 0.2))
    assert page.count("| a thing |") == 2
    missed = page.partition("## What was not reached")[2].partition("## How")[0]
    assert missed.count("a thing") == 1
    assert "It is slow." in missed


@pytest.mark.parametrize(("load", "said"), [((0.1, 0.2), False), ((0.1, 999.0), True)])
def test_a_busy_machine_is_told_at_the_top(load, said):
    top = report.page([row()], "make bench", load).partition("| what |")[0]
    assert ("The machine was busy" in top) == said
