"""The page says what was seen and no more: what a test no longer finds is gone from it."""

from report import BOOTS, Seen

from microvm.hypervisors.features import Feature


def a_run(earlier, *found, version="53.0", test="one"):
    seen = Seen(earlier)
    seen.begin("cloud-hypervisor", version, test)
    for what in found:
        seen.add("cloud-hypervisor", what)
    return seen


def row(seen, what):
    return next(line for line in seen.page().splitlines() if line.startswith(f"| {what} |"))


def test_a_feature_is_seen_refused_or_empty():
    seen = a_run({}, Feature.VSOCK)
    assert row(seen, "vsock") == "| vsock | seen |"
    assert row(seen, "9p shares") == "| 9p shares | refused |"
    assert row(seen, "a memory balloon") == "| a memory balloon |  |"


def test_a_feature_that_no_test_looks_at_yet_has_a_row():
    page = a_run({}).page()
    assert all(f"\n| {feature.value} |" in page for feature in Feature)


def test_a_test_that_begins_again_forgets_what_it_found_and_no_other_does():
    first = a_run({}, Feature.VSOCK)
    other = a_run(first.kinds, Feature.BALLOON, test="two")
    assert row(other, "vsock") == "| vsock | seen |"
    assert row(a_run(other.kinds), "vsock") == "| vsock |  |"


def test_another_version_starts_with_nothing():
    later = a_run(a_run({}, Feature.VSOCK).kinds, version="54.0")
    assert row(later, "vsock") == "| vsock |  |"


def test_what_another_run_found_meanwhile_stays():
    ours, theirs = a_run({}, Feature.VSOCK), a_run({}, Feature.BALLOON, test="two")
    ours.merge(theirs.kinds)
    assert row(ours, "vsock") == "| vsock | seen |"
    assert row(ours, "a memory balloon") == "| a memory balloon | seen |"
    again = a_run({}, test="two")
    again.merge(theirs.kinds)
    assert row(again, "a memory balloon") == "| a memory balloon |  |"


def test_boots_are_counted_and_compared_with_qemu():
    seen = a_run({})
    seen.add("cloud-hypervisor", BOOTS, "2 of 2")
    seen.begin("qemu", "10.0", "one")
    seen.timed("qemu", "6.12", [4.0, 6.0])
    seen.timed("cloud-hypervisor", "6.12", [5.5, 5.5, 9.0])
    assert row(seen, BOOTS) == f"| {BOOTS} |  | 2 of 2 |"
    assert "| cloud-hypervisor | 5.5 s | 5.5 s | 9.0 s | 3 | 1.10 |" in seen.page()
    assert "The bed itself ended" not in seen.page()


def test_boots_that_were_tried_again_are_told():
    seen = a_run({})
    seen.timed("cloud-hypervisor", "6.12", [5.5], ended=1)
    assert "The bed itself ended in 1 of these boots" in seen.page()
    later = a_run({}, test="two")
    later.merge(seen.kinds)
    assert "The bed itself ended in 1 of these boots" in later.page()


def test_a_run_of_some_hypervisors_is_no_page():
    seen = a_run({})
    seen.timed("cloud-hypervisor", "6.12", [4.0])
    assert not seen.whole
    for kind in ("qemu", "firecracker", "crosvm", "kvmtool"):
        seen.begin(kind, "1.0", "one")
        seen.timed(kind, "6.12", [4.0])
    assert seen.whole
