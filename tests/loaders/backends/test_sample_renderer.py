"""How the samples of a batch are spread over threads and reads."""

import dataclasses
import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import make_loader
from maskco_fast.loaders.backends import sample_renderer
from maskco_fast.loaders.backends.sample_renderer import parts_of, samples_per_call
from maskco_fast.loaders.config import LoaderConfig


def test_reads_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_renderer, "BYTES_PER_READ", 100)
    sizes = np.array([40, 7, 60, 300, 1, 99, 1, 100, 0])
    parts = [part.tolist() for part in parts_of(np.array([0, 2, 3, 4, 5, 6, 7, 8]), sizes)]
    assert parts == [[0, 2], [3], [4, 5], [6], [7, 8]]
    assert not list(parts_of(np.array([], np.int64), sizes))


@pytest.mark.parametrize(
    ("batch", "threads", "files", "count"),
    [(256, 2, 1000, 32), (256, 14, 1000, 27), (256, 14, 256, 9), (4, 16, 1000, 1), (64, 8, 4, 1)],
)
def test_calls_leave_work_for_every_thread(
    monkeypatch: pytest.MonkeyPatch, batch: int, threads: int, files: int, count: int
) -> None:
    """Each sample of a call may be in a file of its own, all of which are open at once."""
    monkeypatch.setattr(sample_renderer, "files_allowed", lambda: files)
    config = LoaderConfig(batch_size=batch, views=ViewConfig.maskco(), threads=threads, prefetch=3)
    assert samples_per_call(config) == count
    assert samples_per_call(dataclasses.replace(config, prefetch=1)) <= count


@pytest.mark.parametrize("backend", ["native", "ffcv"])
def test_tools_serve_the_next_epoch_and_keep_no_loader(
    make_shards: Callable[..., list[str]], backend: str
) -> None:
    if backend == "ffcv":
        pytest.importorskip("ffcv")
    shards = make_shards(1, 24)
    loader = make_loader(shards, 8, views=ViewConfig.maskco(32), backend=backend, threads=2)
    gc.disable()  # so that only a cycle keeps it
    try:
        list(loader)
        unused = loader._tools._unused  # type: ignore[attr-defined]
        first = {id(tools) for tools in unused}
        assert 1 <= len(first) <= 2
        list(loader)
        assert first <= {id(tools) for tools in unused}
        assert len(unused) <= 2
        gone = weakref.ref(loader)
        del loader
        assert backend == "ffcv" or gone() is None  # FFCV's graph is a cycle of its own
    finally:
        gc.enable()
