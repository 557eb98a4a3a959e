"""The device stage: order of its work by a fake stream that keeps a log, and its batches on the CPU."""

import itertools

import pytest
import torch

from maskco_fast.kernels.augment_reference import IMAGENET_STD
from maskco_fast.loaders import ViewConfig, make_loader
from maskco_fast.loaders.device import SLOTS, CudaStreams, DeviceStage, InOrder

LEVEL = 1 / (255 * min(IMAGENET_STD))
VIEWS = ViewConfig.maskco(64)


class Log(InOrder):
    """Streams that note what they are told, and hand out numbered events."""

    def __init__(self):
        self.lines = []
        self._events = itertools.count()

    def copy(self, source, target):
        super().copy(source, target)
        self.lines.append(("copy", target.data_ptr()))

    def copied(self):
        self.lines.append(("copied", number := next(self._events)))
        return number

    def done(self):
        self.lines.append(("done", number := next(self._events)))
        return number

    def side_waits(self, event):
        self.lines.append(("side waits", event))

    def current_waits(self, event):
        self.lines.append(("current waits", event))

    def host_waits(self, event):
        self.lines.append(("host waits", event))


def staged(shards, batch_size, streams, **options):
    """Batches of a loader whose host stops at the seam, finished on the CPU by the stage."""
    loader = make_loader(shards, batch_size, views=VIEWS, device="meta", backend="native", **options)
    stage = DeviceStage(loader.dataset, loader.config, streams, torch.device("cpu"))
    return stage.batches(loader._run(loader._requests(0, 1, len(loader))))


def test_the_stage_finishes_what_the_host_would(make_shards):
    shards = make_shards(1, 16)
    with make_loader(shards, 4, views=VIEWS) as loader:
        for one, other in zip(loader, staged(shards, 4, InOrder()), strict=True):
            for name in ("sample_id", "target", "index", "masked_box", "key_boxes"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            for view, truth in zip(other.views, one.views, strict=True):
                assert view.is_contiguous(memory_format=torch.channels_last)
                difference = (view - truth).abs() / LEVEL
                assert difference.mean() <= 0.1
                assert difference.max() <= 2


def test_views_without_boxes(make_shards):
    shards = make_shards(1, 8)
    views = ViewConfig.moco_v2(64, views=3)
    loader = make_loader(shards, 4, views=views, device="meta", dtype=torch.bfloat16)
    stage = DeviceStage(loader.dataset, loader.config, InOrder(), torch.device("cpu"))
    batches = list(stage.batches(loader._run(loader._requests(0, 1, 2))))
    assert [len(batch.views) for batch in batches] == [3, 3]
    assert batches[0].masked_box is None
    assert batches[0].query.dtype == torch.bfloat16


def test_copy_and_augmentation_overlap_and_no_slot_is_written_while_it_is_read(make_shards):
    log = Log()
    batches = staged(make_shards(1, 24), 4, log)
    first = next(batches)
    # Before the first batch is finished, the second one's copies are queued.
    names = [name for name, _ in log.lines]
    assert names == ["copy"] * 3 + ["copied"] + ["copy"] * 3 + ["copied", "current waits", "done"]
    kept = [tensor.clone() for tensor in first]
    assert len(list(batches)) == 5
    assert all(torch.equal(one, copy) for one, copy in zip(first, kept, strict=True))  # the caller's own memory

    lines = log.lines
    slots = sorted({number for name, number in lines if name == "copy"})
    assert len(slots) == 3 * SLOTS  # no further memory than the slots'
    copied, done = ([number for name, number in lines if name == wanted] for wanted in ("copied", "done"))
    assert [number for name, number in lines if name == "current waits"] == copied
    # Batch n + 2 takes the slot of batch n: behind its augmentation, and once its page-locked source was copied.
    assert [number for name, number in lines if name == "side waits"] == done[: len(copied) - SLOTS]
    assert [number for name, number in lines if name == "host waits"] == copied[: len(copied) - SLOTS]
    for n, event in enumerate(done[: len(copied) - SLOTS]):
        waits = lines.index(("side waits", event))
        assert lines.index(("done", event)) < waits < lines.index(("copied", copied[n + SLOTS]))
        assert lines[waits + 1][0] == "copy"


def test_leaving_early_closes_the_host_side(make_shards):
    closed = []
    loader = make_loader(make_shards(1, 16), 4, views=VIEWS, device="meta")

    def rendered():
        try:
            yield from loader._run(loader._requests(0, 1, 4))
        finally:
            closed.append(True)

    stage = DeviceStage(loader.dataset, loader.config, InOrder(), torch.device("cpu"))
    batches = stage.batches(rendered())
    next(batches)
    batches.close()
    assert closed


@pytest.mark.gpu
def test_on_cuda_the_batches_are_the_hosts(make_shards):
    shards = make_shards(1, 24)
    device = torch.device("cuda")
    assert CudaStreams(device)
    with make_loader(shards, 4, views=VIEWS) as host, make_loader(shards, 4, views=VIEWS, device=device) as loader:
        for one, other in zip(host, loader, strict=True):
            assert other.query.device.type == "cuda"
            assert torch.equal(one.key_boxes, other.key_boxes.cpu())
            for view, truth in zip(other.views, one.views, strict=True):
                assert ((view.cpu() - truth).abs() / LEVEL).max() <= 2
