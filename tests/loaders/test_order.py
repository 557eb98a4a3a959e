"""The order: a permutation, equal for any number of ranks, and well mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskco_fast.loaders.order import (
    ALL,
    EpochOrder,
    batch_count,
    batch_positions,
    mixing,
    order,
    rank_positions,
)

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=40)
seeds = st.integers(-(2**63), 2**64 - 1)


@given(
    sizes=sizes,
    seed=seeds,
    epoch=st.integers(0, 1000),
    block=st.integers(1, 50),
    shuffle=st.booleans(),
)
@settings(deadline=None)
def test_an_order_is_a_permutation_in_blocks_of_shards(sizes, seed, epoch, block, shuffle):
    positions = order(sizes, seed=seed, epoch=epoch, block=block, shuffle=shuffle)
    assert sorted(positions) == list(range(sum(sizes)))
    assert (positions == order(sizes, seed=seed, epoch=epoch, block=block, shuffle=shuffle)).all()
    # A reader that holds `block` shards never needs one again that it released.
    shards = np.repeat(np.arange(len(sizes)), sizes)[positions]
    spans: dict[int, tuple[int, int]] = {}
    for place, shard in enumerate(shards):
        first, _ = spans.get(shard, (place, place))
        spans[shard] = (first, place)
    at_once = [
        sum(first <= place <= last for first, last in spans.values())
        for place in range(len(shards))
    ]
    assert max(at_once, default=0) <= (block if shuffle else 1)


@given(
    samples=st.integers(0, 3000),
    batch_size=st.integers(1, 16),
    world_size=st.integers(1, 64),
    consumed=st.integers(0, 200),
)
@settings(deadline=None)
def test_ranks_are_disjoint_equal_and_complete(samples, batch_size, world_size, consumed):
    left = max(samples - consumed, 0)
    batches = batch_count(left, batch_size, world_size)
    positions = np.arange(samples)
    taken = [
        positions[batch_positions(batch, consumed, batch_size, rank, world_size)]
        for batch in range(batches)
        for rank in range(world_size)
    ]
    assert all(len(part) == batch_size for part in taken)
    joined = np.concatenate([*taken, []]).astype(int)
    # The ranks' slices of all global batches, joined, are the order: no world size changes it.
    assert joined.tolist() == list(range(consumed, consumed + batches * batch_size * world_size))
    assert left - len(joined) < batch_size * world_size


@given(
    samples=st.integers(1, 600),
    batch_size=st.integers(1, 16),
    worlds=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    stop=st.integers(0, 40),
)
@settings(deadline=None)
def test_without_dropping_each_sample_comes_once_over_any_ranks(samples, batch_size, worlds, stop):
    """`stop` global batches on one number of ranks, and the rest on another."""
    first, then = worlds
    stop = min(stop, samples // (batch_size * first))
    positions = np.arange(samples)
    taken = []
    for consumed, world_size, most in (
        (0, first, stop),
        (stop * batch_size * first, then, samples),
    ):
        counts = [
            batch_count(samples - consumed, batch_size, world_size, rank=rank, drop_last=False)
            for rank in range(world_size)
        ]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] - counts[-1] <= 1
        for batch in range(min(counts[0], most)):
            for rank, count in enumerate(counts):
                part = positions[batch_positions(batch, consumed, batch_size, rank, world_size)]
                assert (len(part) > 0) == (batch < count)
                taken += part.tolist()
    assert taken == list(range(samples))


def test_seed_and_epoch_change_the_order():
    base = order([1000] * 3, seed=0, epoch=0)
    for other in (order([1000] * 3, seed=1, epoch=0), order([1000] * 3, seed=0, epoch=1)):
        assert (base == other).mean() < 0.01


def test_the_order_is_the_same_on_every_machine():
    assert order([5, 3], seed=7, epoch=2).tolist() == [7, 1, 5, 4, 2, 6, 3, 0]
    assert order([5, 3], seed=7, epoch=2, block=ALL).tolist() == [3, 0, 5, 7, 2, 1, 4, 6]


def test_it_mixes_well_and_says_so():
    sizes = [1000] * 64

    def mixed(**options):
        return mixing(EpochOrder(sizes, seed=0, epoch=0, **options), 256)

    assert mixed(block=64) == pytest.approx(1, abs=0.03)
    assert mixed(block=ALL) == pytest.approx(1, abs=0.03)
    # 16 of 64 shards at a time.
    assert 0.2 < mixed(block=16) < 0.3
    assert mixed(shuffle=False) < 0.03


@pytest.mark.parametrize("block", [16, ALL])
def test_epochs_share_nothing_and_within_a_block_the_order_is_uniform(block):
    first, second = (order([1000] * 64, seed=0, epoch=epoch, block=block) for epoch in (0, 1))
    # Few pairs of neighbours are neighbours in both of two epochs.
    pairs = [set(zip(one[:-1].tolist(), one[1:].tolist(), strict=True)) for one in (first, second)]
    assert len(pairs[0] & pairs[1]) < 10
    # Position and sample number are uncorrelated, also of two samples in a row and of two epochs.
    place = np.argsort(first)
    assert abs(np.corrcoef(place[:1000], np.arange(1000))[0, 1]) < 0.15
    if block == ALL:
        for one, other in ((first[:-1], first[1:]), (first, second), (first, place)):
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(len(one))
        cells = np.histogram2d(first, np.arange(len(first)), 16)[0]
        chi_square = ((cells - cells.mean()) ** 2 / cells.mean()).sum()
        assert abs(chi_square - 225) < 5 * np.sqrt(2 * 225)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    block=st.integers(1, 9) | st.just(ALL),
    shuffle=st.booleans(),
    places=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
@settings(deadline=None)
def test_a_part_of_the_order_is_that_of_the_whole(sizes, block, shuffle, places):
    options = {"seed": 5, "epoch": 1, "block": block, "shuffle": shuffle}
    begin, end = sorted(places)
    epoch_order = EpochOrder(sizes, **options)
    whole = order(sizes, **options)
    assert epoch_order.take(begin, end).tolist() == whole[begin:end].tolist()
    assert sorted(whole) == list(range(sum(sizes)))
    # No shard has samples in two blocks.
    shards = np.repeat(np.arange(len(sizes)), sizes)[whole]
    blocks = np.searchsorted(epoch_order.block_ends, np.arange(len(whole)), side="right")
    for number in range(len(epoch_order.block_ends)):
        assert set(shards[blocks == number]) <= set(epoch_order.shards_of(number).tolist())


@given(
    batch_size=st.integers(1, 9),
    ranks=st.tuples(st.integers(1, 9), st.integers(0, 8)),
    places=st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(0, 90)),
)
def test_the_positions_of_a_rank_are_those_of_its_batches(batch_size, ranks, places):
    world_size, rank = ranks[0], ranks[1] % ranks[0]
    consumed, begin, end = sorted(places)
    batches = [
        np.arange(999)[batch_positions(n, consumed, batch_size, rank, world_size)]
        for n in range(90)
    ]
    positions = np.concatenate(batches)
    wanted = positions[(positions >= begin) & (positions < end)]
    found = rank_positions(begin, end, consumed, batch_size, rank, world_size)
    assert found.tolist() == wanted.tolist()


def test_a_billion_samples_are_ordered_a_part_at_a_time():
    sizes = np.full(100_000, 10_000)
    for block in (1, ALL):
        taken = EpochOrder(sizes, seed=0, epoch=0, block=block).take(700_000_123, 700_000_379)
        assert len(set(taken.tolist())) == 256
        assert 0 <= taken.min() <= taken.max() < 10**9
    assert len(np.unique(taken // 10_000)) > 250  # nearly each sample from a shard of its own


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`block` must be at least 1 shard, or 'all', got 0"):
        order([3], seed=0, epoch=0, block=0)
    with pytest.raises(ValueError, match="at least one batch of 4"):
        mixing(EpochOrder([3], seed=0, epoch=0), 4)


def test_shards_and_samples_are_shuffled_differently_in_each_epoch_and_seed():
    """With one shard a block, the order of the shards shows."""
    sizes = [10] * 12
    shard_orders, sample_orders = set(), set()
    for seed, epoch in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        positions = order(sizes, seed=seed, epoch=epoch, block=1)
        shards = positions.reshape(12, 10) // 10
        assert (shards == shards[:, :1]).all()  # a shard is finished before the next one
        shard_orders.add(tuple(shards[:, 0]))
        sample_orders.add(tuple(positions[shards.flatten() == 3] % 10))
    assert tuple(range(12)) not in shard_orders
    assert tuple(range(10)) not in sample_orders
    assert len(shard_orders) == len(sample_orders) == 5
