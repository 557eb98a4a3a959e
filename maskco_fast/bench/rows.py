"""What `bench` times: our loaders, others' pipelines as their own users would write them, and the
bounds.

Every pipeline makes two views of every image by MoCo v2's recipe (SPEC 1) unless its row says
otherwise, from the same encoded bytes. Peers' packages are imported only by their own rows.
"""

import pathlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from maskco_fast.bench.peers import (
    dali_stock,
    kornia_batched,
    lightly_moco,
    spdl_threads,
    torchvision_pil,
    torchvision_v2,
)
from maskco_fast.bench.peers_ffcv import ffcv_ssl, ffcv_stock
from maskco_fast.kernels.views import IMAGENET_STD
from maskco_fast.loaders import LOADERS, Batch, Dataset, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.buffers import BufferPool
from maskco_fast.loaders.shards.decode import Decoder

MEAN_LEVELS, FAR_SHARE = 0.5, 1 / 200
"""The gate of our rows: mean difference from the reference in levels, and the share of values off
by more than 3."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every row is given; `BenchConfig` documents the fields."""

    shards: tuple[str, ...]
    batch_size: int
    size: int
    workers: int
    dtype: str
    decode: str
    images: int | None
    ffcv_ssl: pathlib.Path | None

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return getattr(torch, self.dtype)


class Running(ABC):
    """A row at work in its process."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.dataset = open_dataset(setting.shards)
        self.images = min(setting.images or len(self.dataset), len(self.dataset))

    @abstractmethod
    def epoch(self) -> Iterator[int]:
        """One pass over the images; yields the size of each batch as it is delivered."""

    def check_parity(self) -> str:
        """What stands in the row's parity column, where it is measured; RuntimeError closes the
        gate."""
        return ""

    def close(self) -> None:
        """Release what the row holds."""
        self.dataset.reader.close()


class Ours(Running):
    """A loader of ours, through the public interface with its whole contract on."""

    def __init__(self, setting: Setting, backend: str) -> None:
        super().__init__(setting)
        self.loader = self._make(backend, setting.batch_size, setting.torch_dtype)

    def _make(self, backend: str, batch_size: int, dtype: torch.dtype):
        return make_loader(
            self.dataset,
            batch_size,
            views=ViewConfig.maskco(self.setting.size),
            backend=backend,
            dtype=dtype,
            threads=self.setting.workers,
            decode=self.setting.decode if backend in ("native", "ffcv") else "exact",
            rank=0,
            world_size=1,
        )

    def epoch(self) -> Iterator[int]:
        seen = 0
        for batch in self.loader:
            seen += len(batch)
            yield len(batch)
            if seen >= self.images:
                break

    def check_parity(self) -> str:
        count = min(32, self.images)
        name = self.loader.__class__.__module__.rpartition(".")[2]
        with (
            self._make(name, count, torch.float32) as mine,
            self._make("reference", count, torch.float32) as truth,
        ):
            return _parity(next(iter(mine)), next(iter(truth)), gate=mine.config.decode == "exact")

    def close(self) -> None:
        """End the loader, which closes the reader too."""
        self.loader.close()


def _parity(mine: Batch, truth: Batch, *, gate: bool) -> str:
    for name in ("sample_id", "masked_box", "key_boxes"):
        if not torch.equal(getattr(mine, name), getattr(truth, name)):
            raise RuntimeError(
                f"parity is red: {name} differs from the reference loader's; its speed is not timed"
            )
    scale = 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1)
    apart = torch.cat(
        [((one - other).abs() * scale).flatten() for one, other in zip(mine.views, truth.views)]
    )
    mean, far, worst = apart.mean().item(), (apart > 3).float().mean().item(), apart.max().item()
    if not gate:
        return f"fast decoding: {mean:.2f} levels mean, {worst:.0f} worst, boxes equal"
    if mean > MEAN_LEVELS or far > FAR_SHARE:
        raise RuntimeError(
            f"parity is red: {mean:.2f} levels from the reference in the mean, {far:.2%} by more than 3"
        )
    return f"green: {mean:.2f} levels mean, {worst:.0f} worst, boxes equal"


class DecodeOnly(Running):
    """Every image decoded in full by libjpeg-turbo in threads, into a buffer each: the wall that
    all loaders face."""

    def epoch(self) -> Iterator[int]:
        positions = iter(range(self.images))
        lock = threading.Lock()

        def work() -> None:
            decoder = Decoder()
            while True:
                with lock:
                    position = next(positions, None)
                if position is None:
                    return
                decoder.decode(self.dataset.read(position), self.dataset.samples[position])

        threads = [threading.Thread(target=work) for _ in range(self.setting.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield self.images


class CachedBatch(Running):
    """One batch, copied into a fresh buffer each time: what a loader that cost nothing would hand
    over."""

    def epoch(self) -> Iterator[int]:
        setting = self.setting
        pool = BufferPool(
            (2, setting.batch_size, setting.size, setting.size, 3), setting.torch_dtype
        )
        cached = np.zeros_like(pool.take())
        for _ in range(max(self.images // setting.batch_size, 1)):
            array = pool.take()
            np.copyto(array, cached)
            yield len(pool.tensor(array)[0])


class Peer(Running):
    """Another library's pipeline, made by a function of (dataset, setting) that returns an iterable
    of batches."""

    def __init__(self, setting: Setting, make: Callable[[Dataset, Setting], Any]) -> None:
        super().__init__(setting)
        self._loader = make(self.dataset, setting)

    def epoch(self) -> Iterator[int]:
        seen = 0
        for batch in self._loader:
            views = batch[0] if isinstance(batch, list | tuple) else batch
            views = views[0] if isinstance(views, list | tuple) else views
            seen += len(views)
            yield len(views)
            if seen >= self.images and not isinstance(self._loader, DataLoader):
                break


@dataclass(frozen=True, kw_only=True)
class Row:
    """How to open a row, and what to say of it."""

    kind: str
    what: str
    open: Callable[[Setting], Running]
    parity: str = ""


def _ours(backend: str) -> Row:
    return Row(
        kind="ours",
        what=f"our {backend} loader, MaskCo's two views and 17 boxes",
        open=lambda setting: Ours(setting, backend),
    )


def _peer(what: str, parity: str, make: Callable[[Dataset, Setting], Any]) -> Row:
    return Row(kind="peer", what=what, parity=parity, open=lambda setting: Peer(setting, make))


FREE = "own random crops, no boxes"
ROWS: dict[str, Row] = {
    **{name: _ours(name) for name in LOADERS},
    "torchvision_pil": _peer("torchvision on Pillow, DataLoader workers", FREE, torchvision_pil),
    "torchvision_v2": _peer(
        "torchvision v2 on tensors, decode_jpeg, DataLoader workers",
        f"{FREE}; blur 23 taps",
        torchvision_v2,
    ),
    "lightly": _peer("lightly's MoCoV2Transform, DataLoader workers", FREE, lightly_moco),
    "kornia": _peer(
        "torchvision crops in DataLoader workers, kornia on the batch",
        f"{FREE}; colours in float",
        kornia_batched,
    ),
    "spdl": _peer("SPDL threads, torchvision v2 on tensors", f"{FREE}; blur 23 taps", spdl_threads),
    "dali_stock": _peer(
        "DALI on the CPU with its own operators",
        f"{FREE}; jitter in a fixed order, hue in YIQ",
        dali_stock,
    ),
    "ffcv_stock": _peer(
        "FFCV's own crop and flip", "one view, INTER_AREA, no colour, uint8 out", ffcv_stock
    ),
    "ffcv_ssl": _peer("FFCV-SSL's two views", f"{FREE}; INTER_AREA, no blur, uint8 out", ffcv_ssl),
    "decode_only": Row(
        kind="bound",
        what="full decode, libjpeg-turbo, threads",
        parity="decodes only",
        open=DecodeOnly,
    ),
    "cached_batch": Row(
        kind="bound", what="the same batch again", parity="no work", open=CachedBatch
    ),
}
"""By the name that `bench --rows` takes."""

__all__ = ["ROWS", "Row", "Running", "Setting"]
