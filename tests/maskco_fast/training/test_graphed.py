"""The order of warm-up, capture and replays, with a stand-in for CUDA's graphs.

That a graph computes what the step does is tested on a GPU, in `test_on_a_gpu.py`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from maskco_fast.loaders import Batch
from maskco_fast.training.graphed import WARM, GraphedStep


class Graphs:
    """Records a step, and repeats it by calling it again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recording = False
        self.replays: list[Any] = []
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", self.record)
        self.device = torch.device("cpu")

    def wait_stream(self, other: Any) -> None:
        """Streams of a CPU are one."""

    @contextlib.contextmanager
    def record(self, graph: Any, **options: Any) -> Iterator[None]:
        self.recording = True
        yield
        self.recording = False

    def replay(self) -> None:
        for one in self.replays:
            one()


def batch_of(value: int) -> Batch:
    number = torch.full((2,), value)
    view = torch.full((2, 3, 4, 4), float(value)).contiguous(memory_format=torch.channels_last)
    return Batch(views=(view,), sample_id=number, target=number, index=number)


def test_warms_up_then_replays_on_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    trained: list[int] = []
    loss = torch.zeros(())

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        def work() -> None:
            trained.append(int(batch.index[0]))
            loss.copy_(batch.views[0].mean())

        if graphs.recording:
            graphs.replays.append(work)
        else:
            work()
        return {"loss": loss}

    graphed = GraphedStep(step, torch.device("cpu"))
    found = [graphed(batch_of(value))["loss"] for value in range(WARM + 3)]
    # The captured batch is trained on once, by its first replay; no result is overwritten.
    assert trained == list(range(WARM + 3))
    assert [value.item() for value in found[WARM:]] == [WARM, WARM + 1, WARM + 2]
    assert len(graphs.replays) == 1


def test_refuses_batches_of_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    Graphs(monkeypatch)
    graphed = GraphedStep(lambda batch: {"loss": batch.views[0].mean()}, torch.device("cpu"))
    for value in range(WARM + 1):
        graphed(batch_of(value))
    with pytest.raises(ValueError, match="this batch's shapes"):
        graphed(batch_of(0).split(1)[0])
