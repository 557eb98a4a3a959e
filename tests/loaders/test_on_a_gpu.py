"""Loaders on a CUDA device that lags behind the host, by bodies that also run on the CPU."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.gpu import dali
from maskco_fast.loaders import Batch, ViewConfig, make_loader
from maskco_fast.loaders.buffers import BufferPool
from maskco_fast.loaders.process import ProcessLoader
from tests.support.devices import DEVICES, another_stream, lag

MakeShards = Callable[..., list[str]]
VIEWS = ViewConfig.maskco(32)
LEVEL = 1 / 255 / 0.225


def assert_close(batch: Batch, truth: Batch) -> None:
    """Numbers are equal; views of the device's kernels differ from the host's by two levels."""
    assert torch.equal(batch.sample_id.cpu(), truth.sample_id)
    assert batch.key_boxes is not None
    assert truth.key_boxes is not None
    assert torch.equal(batch.key_boxes.cpu(), truth.key_boxes)
    for view, expected in zip(batch.views, truth.views, strict=True):
        difference = (view.cpu() - expected).abs() / LEVEL
        assert difference.mean() <= 0.1
        assert difference.max() <= 2


@pytest.mark.parametrize("device", DEVICES)
def test_two_loaders_on_two_streams(make_shards: MakeShards, device: str) -> None:
    """Batches of both are held while both streams lag."""
    shards = make_shards(1, 20)
    with make_loader(shards, 4, views=VIEWS, threads=1) as host:
        truth = list(host)
    with (
        make_loader(shards, 4, views=VIEWS, threads=1, device=device) as one,
        make_loader(shards, 4, views=VIEWS, threads=1, device=device) as other,
    ):
        first, second = iter(one), iter(other)
        pairs = []
        for _ in range(len(one)):
            lag(device)
            mine = next(first)
            with another_stream(device):
                lag(device)
                pairs.append((mine, next(second)))
    if device == "cuda":
        torch.cuda.synchronize()
    for pair, expected in zip(pairs, truth, strict=True):
        for batch in pair:
            assert batch.views[0].device.type == device
            assert_close(batch, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", [ViewConfig.dino, ViewConfig.swav])
def test_views_of_two_sizes(
    make_shards: MakeShards, device: str, preset: Callable[..., ViewConfig]
) -> None:
    """Groups of equal size; SwAV's statistics are its own. A level beside solarisation's threshold
    may become another by two."""
    options: dict[str, Any] = {"views": preset(64, 32, 3), "threads": 1, "drop_last": False}
    shards = make_shards(1, 11)
    with make_loader(shards, 8, **options) as host:
        truth = list(host)
    with make_loader(shards, 8, device=device, **options) as loader:
        for batch, expected in zip(loader, truth, strict=True):
            for view, true in zip(batch.views, expected.views, strict=True):
                difference = (view.cpu() - true).abs() / LEVEL
                assert difference.mean() <= 0.1
                assert (difference > 2).float().mean() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_buffers_are_page_locked_for_cuda(device: str) -> None:
    """A copy from them does not block, and they are kept while the copy is under way."""
    pool = BufferPool((2, 3, 4, 4, 3), torch.uint8, page_locked=device == "cuda")
    array = pool.take()
    array[:] = 7
    tensor = pool.tensor(array)
    assert tensor.is_pinned() is (device == "cuda")
    assert tensor.data_ptr() % 64 == 0
    lag(device)
    copy = tensor.to(device, non_blocking=True)
    del array
    assert pool.take().ctypes.data != tensor.data_ptr()
    assert (copy.cpu() == 7).all()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_loaders_process_feeds_a_device(make_shards: MakeShards, device: str) -> None:
    """Its pages are locked, and no slot is rewritten while the device has yet to copy it."""
    shards = make_shards(1, 40)
    with (
        make_loader(shards, 4, views=VIEWS) as host,
        make_loader(shards, 4, views=VIEWS, device=device, loader_process=True) as loader,
    ):
        assert isinstance(loader, ProcessLoader)
        made = []
        for batch in itertools.chain(loader, loader):
            lag(device)
            made.append(batch)
        assert loader._child is not None
        assert torch.from_numpy(loader._child.slots.arrays[0]).is_pinned()
        for batch, expected in zip(made, [*host, *host], strict=True):
            assert_close(batch, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("on_device", [False, True], ids=["regions", "whole images"])
def test_dalis_device_graph_with_a_lagging_device(make_shards: MakeShards, on_device: bool) -> None:
    """`benchmarks.gpu.dali` runs the same comparison on the CPU, in its own test."""
    pytest.importorskip("nvidia.dali")
    shards = make_shards(1, 40)
    options: Any = dali.Options(shards=shards[0], size=64, batch=4, batches=8)
    found = dali.values(options, dali.open_dataset(shards), on_device)
    assert found["numbers_equal"]
    assert found["mean_levels"] < 4
