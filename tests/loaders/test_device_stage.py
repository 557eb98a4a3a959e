"""The device stage: the order of its work, recorded by fake streams, and its batches on the CPU."""

import gc
import itertools
import weakref
from collections import Counter

import pytest
import torch

from maskco_fast.kernels.formats import FORMAT_NAMES
from maskco_fast.kernels.views import IMAGENET_STD
from maskco_fast.loaders import View, ViewConfig, make_loader
from maskco_fast.loaders.device_stage import SLOTS, CudaStreams, DeviceStage, InOrderStreams
from tests.support.batches import key_boxes

LEVEL = 1 / (255 * min(IMAGENET_STD))
VIEWS = ViewConfig.maskco(64)


class Log(InOrderStreams):
    """Streams that record copies by their target, and the events of the current stream."""

    def __init__(self):
        self.lines = []

    def copy(self, source, target):
        super().copy(source, target)
        self.lines.append(("copy", target.data_ptr()))

    def done(self):
        self.lines.append(("done", None))


class RaceDetector(InOrderStreams):
    """Streams with vector clocks, which detect accesses that no event orders.

    `seen[x][y]` counts the operations of y that x is known to come after. Copies are made at once
    but checked as if the device ran them at any time between the events that bound them. `races`
    lists each pair of unordered accesses.
    """

    def __init__(self):
        self.seen: dict[str, Counter] = {name: Counter() for name in ("host", "side", "current")}
        self.races = []
        self.reads = 0
        self._touched = {}  # address: [(who, when by its own clock)]
        self._targets, self._reading = [], []
        # Earlier work may still read memory that the allocator returns.
        self._work("current")

    def _work(self, stream):
        self.seen[stream] |= self.seen["host"]  # nothing runs before it is queued
        self.seen[stream][stream] += 1

    def _touch(self, stream, address):
        earlier = self._touched.setdefault(address, [("current", self.seen["current"]["current"])])
        self.races += [
            f"{stream} touches what {who} may be using"
            for who, at in earlier
            if self.seen[stream][who] < at
        ]
        earlier.append((stream, self.seen[stream][stream]))

    def copy(self, source, target):
        super().copy(source, target)
        self._work("side")
        self._touch("side", target.data_ptr())
        self._targets.append(target.data_ptr())
        weakref.finalize(source, self._freed, self.seen["side"]["side"])

    def _freed(self, copy):
        if self.seen["host"]["side"] < copy:
            self.races.append("the host frees what is being copied")

    def copied(self):
        targets, self._targets = self._targets, []
        return Counter(self.seen["side"]), targets

    def done(self):
        self._work("current")
        for address in self._reading:
            self._touch("current", address)
        self.reads += len(self._reading)
        self._reading = []
        return Counter(self.seen["current"]), []

    def side_waits(self, event):
        self.seen["side"] |= event[0]

    def current_waits(self, event):
        self.seen["current"] |= event[0]
        self._reading += event[1]

    def host_waits(self, event):
        self.seen["host"] |= event[0]


def staged(shards, batch_size, streams, backend="native", views=VIEWS, **options):
    """Batches of a loader that stops at the seam, finished by the stage on the CPU."""
    loader = make_loader(shards, batch_size, views=views, device="meta", backend=backend, **options)
    stage = DeviceStage(loader.dataset, loader.config, streams, torch.device("cpu"))
    return stage.batches(loader._run(loader._requests(0, 1, len(loader))))


def test_the_stage_finishes_what_the_host_would(backend, make_shards):
    shards = make_shards(1, 16)
    with make_loader(shards, 4, views=VIEWS, backend=backend) as loader:
        for one, other in zip(loader, staged(shards, 4, InOrderStreams(), backend), strict=True):
            for name in ("sample_id", "target", "index", "masked_box", "key_boxes"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            for view, truth in zip(other.views, one.views, strict=True):
                assert view.is_contiguous(memory_format=torch.channels_last)
                difference = (view - truth).abs() / LEVEL
                assert difference.mean() <= 0.1
                assert difference.max() <= 2


@pytest.mark.parametrize("form", FORMAT_NAMES.values(), ids=lambda form: form.name)
def test_views_of_every_kind_without_boxes(make_shards, form):
    """Lit, square, bicubic and patched views, finished by the stage as by the host."""
    presets = (ViewConfig.supervised, ViewConfig.relative_loc, ViewConfig.byol)
    views = tuple(preset(64).views[0] for preset in presets)
    config = ViewConfig(views=views, size=64, patch_grid=3, patch_size=16)
    options = {"views": config, "dtype": getattr(torch, form.name)}
    shards = make_shards(1, 8, side=90)
    with make_loader(shards, 8, **options) as loader:
        (truth,) = loader
    (batch,) = staged(shards, 8, InOrderStreams(), **options)
    assert batch.masked_box is None
    assert batch.patch_corners is not None
    assert truth.patch_corners is not None
    assert torch.equal(batch.patch_corners, truth.patch_corners)
    level = LEVEL if form.normalised else 1
    for view, true in zip(batch.views, truth.views, strict=True):
        assert view.dtype == getattr(torch, form.name)
        difference = (view.float() - true.float()).abs() - 4 * form.half_unit
        assert difference.max() <= 2 * level


@pytest.mark.parametrize("form", FORMAT_NAMES.values(), ids=lambda form: form.name)
def test_views_of_unequal_sizes(make_shards, form):
    """Two groups of squares and a rectangle, one with its own statistics; a short last batch."""
    wide = View(size=(40, 56), mean=(0.5, 0.4, 0.3), std=(0.3, 0.3, 0.5))
    config = ViewConfig(views=(*ViewConfig.dino(64, 32, 2).views, wide), size=64)
    options = {"views": config, "dtype": getattr(torch, form.name), "drop_last": False}
    shards = make_shards(1, 11, side=90)
    with make_loader(shards, 8, **options) as loader:
        truth = list(loader)
    batches = list(staged(shards, 8, InOrderStreams(), **options))
    level = LEVEL if form.normalised else 1
    for batch, expected, count in zip(batches, truth, (8, 3), strict=True):
        shapes = [(64, 64), (64, 64), (32, 32), (32, 32), (40, 56)]
        assert [view.shape for view in batch.views] == [(count, 3, *shape) for shape in shapes]
        for view, true in zip(batch.views, expected.views, strict=True):
            assert view.is_contiguous(memory_format=torch.channels_last)
            difference = (view.float() - true.float()).abs() - 4 * form.half_unit
            # A level beside solarisation's threshold may become another by more.
            assert (difference > 2 * level).float().mean() < 1e-3


def test_the_next_batch_is_copied_beside_the_augmentation_of_this_one(make_shards):
    log = Log()
    batches = staged(make_shards(1, 24), 4, log)
    first = next(batches)
    allocated_and_copied = ["done", "copy", "copy", "copy"]
    assert [name for name, _ in log.lines] == [*allocated_and_copied, *allocated_and_copied, "done"]
    kept = [tensor.clone() for tensor in first]
    assert len(list(batches)) == 5
    # The first batch lies in the caller's own memory.
    assert all(torch.equal(one, copy) for one, copy in zip(first, kept, strict=True))
    targets = {target for name, target in log.lines if name == "copy"}
    assert len(targets) == 3 * SLOTS, "no further memory than the slots'"


@pytest.mark.parametrize("taken", [1, 2, 6, 7])
def test_no_memory_is_written_while_it_is_in_use(make_shards, taken):
    """Neither a copy into a slot nor the next owner of freed memory writes too early.

    Holds for a whole epoch and for a part of one.
    """
    streams = RaceDetector()
    # The seventh batch is short: its slot is made anew.
    batches = staged(make_shards(1, 26), 4, streams, drop_last=False)
    assert len(list(itertools.islice(batches, taken))) == taken
    batches.close()
    assert streams.reads == 3 * taken, "a batch is augmented before its copies have been waited for"
    assert streams.seen["host"]["side"] == streams.seen["side"]["side"], (
        "memory is freed while copies are pending"
    )
    del batches
    gc.collect()
    assert not streams.races


def test_leaving_early_closes_the_host_side(make_shards):
    closed = []
    loader = make_loader(make_shards(1, 16), 4, views=VIEWS, device="meta")

    def rendered():
        try:
            yield from loader._run(loader._requests(0, 1, 4))
        finally:
            closed.append(True)

    stage = DeviceStage(loader.dataset, loader.config, InOrderStreams(), torch.device("cpu"))
    batches = stage.batches(rendered())
    next(batches)
    batches.close()
    assert closed


@pytest.mark.gpu
def test_on_cuda_the_batches_are_the_hosts(make_shards):
    """Three epochs on a device that lags behind the host by more batches than it buffers."""
    shards = make_shards(1, 24)
    device = torch.device("cuda")
    assert CudaStreams(device)
    with (
        make_loader(shards, 4, views=VIEWS) as host,
        make_loader(shards, 4, views=VIEWS, device=device) as loader,
    ):
        made = []
        for _ in range(3):
            for batch in loader:
                made.append(batch)
                torch.cuda._sleep(50_000_000)  # cycles: about 30 ms
        truth = [batch for _ in range(3) for batch in host]
        for one, other in zip(truth, made, strict=True):
            assert other.query.device.type == "cuda"
            assert torch.equal(key_boxes(one), key_boxes(other).cpu())
            for view, expected in zip(other.views, one.views, strict=True):
                difference = (view.cpu() - expected).abs() / LEVEL
                assert difference.mean() <= 0.1
                assert difference.max() <= 2
