"""The bound of the quarantine: which share of bad samples ends a run, and from which count on."""

import pytest

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Quarantine, TooManyBadSamples
from maskco_fast.loaders.quarantine import BadSample

MANY = 10**9
"""Samples of a dataset that never fails as a whole."""


def fail(quarantine, samples, usable=MANY):
    """Record that the samples numbered `samples` do not decode."""
    for index in samples:
        bad = BadSample(shard="s.tar", key=f"{index:06d}", reason="truncated", found="decode")
        quarantine.add(index, bad, usable)


@pytest.mark.parametrize(("share", "tolerated"), [(0.1, 450), (0.2, 200), (0.5, 50)])
def test_the_share_of_the_samples_tried_decides(share, tolerated):
    """50 failures beside `tolerated` decoded samples are exactly the share; beside one less, more.

    A bound of twice or half the share fails one of the two.
    """
    assert share * (50 + tolerated) == 50
    quarantine = Quarantine(max_share=share)
    quarantine.count_decoded(tolerated)
    fail(quarantine, range(50))
    assert quarantine.tried == 50 + tolerated
    quarantine = Quarantine(max_share=share)
    quarantine.count_decoded(tolerated - 1)
    fail(quarantine, range(49))
    with pytest.raises(TooManyBadSamples, match=rf"50 of {49 + tolerated} .*000049 in s\.tar"):
        fail(quarantine, [49])


def test_fewer_than_fifty_failures_end_no_run():
    quarantine = Quarantine()
    fail(quarantine, range(49))
    assert len(quarantine) == quarantine.tried == 49
    with pytest.raises(TooManyBadSamples, match="50 of 50 samples tried do not decode"):
        fail(quarantine, [49])


def test_a_healthy_run_tolerates_any_number_of_failures():
    """More than 50 failures are fine as long as their share is small."""
    quarantine = Quarantine()
    for index in range(500):
        quarantine.count_decoded(9)
        fail(quarantine, [index])
    assert quarantine.tried == 5000
    with pytest.raises(TooManyBadSamples, match="501 of 5001"):
        fail(quarantine, [500])


def test_a_dataset_without_a_good_sample_ends_the_run():
    quarantine = Quarantine(max_share=1.0)
    fail(quarantine, range(5), usable=6)
    with pytest.raises(TooManyBadSamples, match="6 of 6 samples tried"):
        fail(quarantine, [5], usable=6)


def test_a_sample_counts_once_and_the_index_not_at_all():
    quarantine = Quarantine([BadSample(shard="s.tar", key="x", reason="empty", found="index")])
    streamed = BadSample(shard="s.tar", key="y", reason="empty", found="index")
    quarantine.note(streamed)
    quarantine.note(streamed)
    fail(quarantine, [3, 3, 3])
    assert quarantine.tried == 1
    assert 3 in quarantine
    assert quarantine.by_reason() == {"empty": 2, "truncated": 1}


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(InvalidInput, match=r"`max_bad_share` must be in \(0, 1\], got"):
        Quarantine(max_share=share)
