"""The rows of the bench: our loaders, other libraries' pipelines as their users would write them,
and bounds.

A row makes two views of every image by MoCo v2's recipe (docs/method.md) unless it says otherwise,
from the same encoded bytes. A peer's package is imported in its own row's process only.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskco_fast.bench import parity, peers, peers_dali, peers_datasets, peers_ffcv, peers_gpu
from maskco_fast.bench.peers_gpu import finish, row_device
from maskco_fast.bench.setting import Running, Setting
from maskco_fast.kernels.errors import InvalidInput, MissingPackage
from maskco_fast.loaders import LOADERS, Dataset, Loader, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.buffers import BufferPool
from maskco_fast.loaders.config import SCAN_INDEX_GB
from maskco_fast.loaders.scans.scan_dataset import scan_dataset
from maskco_fast.loaders.shards.beton_encode import Form
from maskco_fast.loaders.shards.decode import Decoder

PARITY_IMAGES = 32
"""Images that the parity gate compares."""


class Ours(Running):
    """One of our loaders, through `make_loader`.

    `stage`: "finished" views; "seam", the uint8 crops before colours change; or "without_blur".
    `on_gpu`: the views are finished there, and a batch counts once they are. `scan_index`: the
    rounds count as later epochs, with a complete scan index.
    The ffcv loader reads the .beton that FFCV's own rows read, other loaders one with JPEGs as
    `form` says where that is not "jpeg".
    """

    def __init__(
        self,
        setting: Setting,
        backend: str,
        stage: str = "finished",
        *,
        on_gpu: bool = False,
        scan_index: bool = True,
        form: Form = "jpeg",
    ) -> None:
        self._scan_index = scan_index
        self._device = row_device("our views on a GPU", on_gpu)
        dataset = open_dataset(setting.shards)
        if backend == "ffcv" or form != "jpeg":
            beton = peers_ffcv.beton_of(dataset, form)
            dataset.reader.close()
            dataset = open_dataset([str(beton)])
        super().__init__(setting, dataset)
        if scan_index and backend in ("native", "ffcv"):
            scan_dataset(dataset, limit=SCAN_INDEX_GB * 1e9, threads=setting.workers)
        self._backend = backend
        self._seam = stage == "seam"
        self._views = _views(stage, setting.size)
        dtype = torch.uint8 if self._seam else setting.torch_dtype
        self.loader = self._make(backend, setting.batch_size, dtype)
        if len(self.loader) == 0:
            raise InvalidInput(
                f"{len(self.dataset)} usable samples make no batch of {setting.batch_size}; "
                "pass more shards or a smaller --batch-size"
            )

    def _make(self, backend: str, batch_size: int, dtype: torch.dtype) -> Loader:
        return make_loader(
            self.dataset,
            batch_size,
            views=self._views,
            backend=backend,
            device="cpu" if backend == "reference" else self._device,
            dtype=dtype,
            threads=self.setting.workers,
            decode=self.setting.decode if backend in ("native", "ffcv") else "exact",
            scan_index_gb=SCAN_INDEX_GB if self._scan_index else 0,
            rank=0,
            world_size=1,
        )

    def epoch(self, images: int) -> Iterator[int]:
        seen = 0
        for batch in self.loader:
            finish(self._device)
            seen += len(batch)
            yield len(batch)
            if seen >= images:
                break

    def check_parity(self) -> str:
        count = min(PARITY_IMAGES, self.images)
        dtype = torch.uint8 if self._seam else torch.float32
        with (
            self._make(self._backend, count, dtype) as mine,
            self._make("reference", count, dtype) as reference,
        ):
            batch, truth = next(iter(mine)).to("cpu"), next(iter(reference))
            fast = mine.config.decode == "fast"
        if fast:  # differs by design: the difference is reported, not limited
            apart = parity.compare([batch], [truth])
            return f"fast decoding: {apart.mean:.2f} levels mean, {apart.worst:.0f} worst"
        limit = parity.SEAM_LIMIT if self._seam else parity.FINISHED_LIMIT
        apart = parity.check(batch, truth, limit)
        return f"green: {apart.mean:.2f} levels mean, {apart.worst:.0f} worst, boxes equal"

    def close(self) -> None:
        self.loader.close()  # closes the reader too


def _views(stage: str, size: int) -> ViewConfig:
    """MaskCo's views, cut back to the stage that a row compares."""
    views = ViewConfig.maskco(size)
    if stage == "seam":
        return parity.seam_views(views)
    if stage == "without_blur":
        sharp = tuple(dataclasses.replace(view, blur_probability=0.0) for view in views.views)
        return dataclasses.replace(views, views=sharp)
    return views


class DecodeOnly(Running):
    """Full decoding by libjpeg-turbo in threads, each image into a new buffer: what any loader that
    decodes whole images must spend."""

    def epoch(self, images: int) -> Iterator[int]:
        positions = iter(range(images))
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
        yield images


class CachedBatch(Running):
    """One batch, copied into a fresh buffer each time: the speed of a loader that costs nothing."""

    def epoch(self, images: int) -> Iterator[int]:
        setting = self.setting
        shape = (2, setting.batch_size, setting.size, setting.size, 3)
        pool = BufferPool(shape, setting.torch_dtype)
        cached = np.zeros_like(pool.take())
        for _ in range(max(images // setting.batch_size, 1)):
            array = pool.take()
            np.copyto(array, cached)
            yield len(pool.tensor(array)[0])


class Peer(Running):
    """Another library's pipeline: `make(dataset, setting)` returns a function of the images wanted,
    which yields batches, a list of views each."""

    def __init__(
        self, setting: Setting, make: Callable[[Dataset, Setting], peers.Epochs], install: str
    ) -> None:
        super().__init__(setting)
        try:
            self._epochs = make(self.dataset, setting)
        except MissingPackage:  # names its remedy
            raise
        except ImportError as error:
            raise MissingPackage(f"{error}; {install}") from error

    def epoch(self, images: int) -> Iterator[int]:
        for views in self._epochs(images):
            yield len(views[0])


@dataclass(frozen=True, kw_only=True)
class Row:
    """How to open a row, and what the report says of it."""

    kind: str
    """ours, peer or bound."""
    what: str
    open: Callable[[Setting], Running]
    views: int = 2
    """Views made of each image."""
    parity: str = ""
    """How a peer's recipe differs from ours."""
    beside: str = ""
    """The row of ours that does the same work as this peer, for their ratio."""


def _ours(
    backend: str,
    what: str = "MaskCo's two views and 17 boxes",
    stage: str = "finished",
    *,
    on_gpu: bool = False,
    scan_index: bool = True,
    form: Form = "jpeg",
) -> Row:
    return Row(
        kind="ours",
        what=f"our {backend} loader, {what}",
        open=lambda setting: Ours(
            setting, backend, stage, on_gpu=on_gpu, scan_index=scan_index, form=form
        ),
    )


def _peer(
    what: str,
    parity: str,
    make: Callable[[Dataset, Setting], peers.Epochs],
    install: str = "pip install 'maskco-fast[bench]'",
    **fields: Any,
) -> Row:
    return Row(
        kind="peer",
        what=what,
        parity=parity,
        open=lambda setting: Peer(setting, make, install),
        **fields,
    )


def _peer_on_gpu(
    what: str,
    parity: str,
    make: Callable[[Dataset, Setting], peers.Epochs],
    install: str = "pip install 'maskco-fast[bench]'",
) -> Row:
    return _peer(f"{what}, on a GPU", parity, make, install, beside="native_gpu")


FREE = "own random crops, no boxes"
DALI = "pip install 'maskco-fast[dali]'"
FFCV = (
    "apt-get install g++ pkg-config python3-dev libopencv-dev libturbojpeg0-dev, "
    "then pip install 'maskco-fast[ffcv]'"
)
IN_DALI = f"{FREE}; jitter in a fixed order, hue in YIQ"
SEAM = "two uint8 crops, before colours change"

ROWS: dict[str, Row] = {
    **{name: _ours(name) for name in LOADERS},
    "native_first_epoch": _ours(
        "native", "as in a first epoch, without a scan index", scan_index=False
    ),
    "native_coefficients": _ours("native", "from a .beton of coefficients", form="coefficients"),
    "torchvision_pil": _peer(
        "torchvision on Pillow, DataLoader workers", FREE, peers.torchvision_pil
    ),
    "torchvision_v2": _peer(
        "torchvision v2 on tensors, decode_jpeg, DataLoader workers",
        f"{FREE}; blur 23 taps",
        peers.torchvision_v2,
    ),
    "torchcodec": _peer(
        "torchcodec's image decoder, torchvision v2, DataLoader workers",
        f"{FREE}; blur 23 taps",
        peers.torchcodec_v2,
    ),
    "kornia_rs": _peer(
        "kornia-rs's decoder, torchvision v2, DataLoader workers",
        f"{FREE}; blur 23 taps",
        peers.kornia_rs_v2,
    ),
    "litdata": _peer(
        "LitData's StreamingDataset of the JPEGs, torchvision v2",
        f"{FREE}; blur 23 taps; own chunks",
        peers_datasets.litdata,
    ),
    "grain": _peer(
        "Grain's MapDataset in worker processes, torchvision v2",
        f"{FREE}; blur 23 taps",
        peers_datasets.grain,
    ),
    "lightly": _peer("lightly's MoCoV2Transform, DataLoader workers", FREE, peers.lightly_moco),
    "kornia": _peer(
        "torchvision crops in DataLoader workers, kornia on the batch",
        f"{FREE}; colours in float",
        peers.kornia_batched,
    ),
    "spdl": _peer(
        "SPDL threads, torchvision v2 on tensors", f"{FREE}; blur 23 taps", peers.spdl_threads
    ),
    "dali_stock": _peer(
        "DALI on the CPU with its own operators",
        IN_DALI,
        peers_dali.dali_stock,
        DALI,
        beside="dali",
    ),
    "dali_dynamic": _peer(
        "DALI's dynamic mode on the CPU, its own operators",
        IN_DALI,
        peers_dali.dali_dynamic,
        DALI,
        beside="dali",
    ),
    "dali_seam": _ours("dali", SEAM, "seam"),
    "dali_roi_resize": _peer(
        "DALI decoding once, its own ROI resize and flip",
        "our crops; uint8 out, edges differ",
        peers_dali.dali_roi_resize,
        DALI,
        beside="dali_seam",
    ),
    "ffcv_without_blur": _ours("ffcv", "two views without blur", "without_blur"),
    "ffcv_ssl": _peer(
        "FFCV-SSL's two views, from a .beton",
        f"{FREE}; INTER_AREA, no blur, uint8 out",
        peers_ffcv.ffcv_ssl,
        FFCV,
        beside="ffcv_without_blur",
    ),
    "ffcv_seam": _ours("ffcv", SEAM, "seam"),
    "ffcv_stock": _peer(
        "FFCV's own crop and flip, from a .beton",
        "one view, INTER_AREA, no colour, uint8 out",
        peers_ffcv.ffcv_stock,
        FFCV,
        views=1,
        beside="ffcv_seam",
    ),
    "native_gpu": _ours("native", "the same views, finished on a GPU", on_gpu=True),
    "dali_gpu": _peer_on_gpu(
        "DALI decoding by nvJPEG, its own operators",
        IN_DALI,
        functools.partial(peers_dali.dali_stock, on_gpu=True),
        DALI,
    ),
    "dali_dynamic_gpu": _peer_on_gpu(
        "DALI's dynamic mode",
        IN_DALI,
        functools.partial(peers_dali.dali_dynamic, on_gpu=True),
        DALI,
    ),
    "dali_torchvision": _peer_on_gpu(
        "Pillow, DALI's torchvision-like transforms",
        IN_DALI,
        peers_gpu.dali_torchvision,
        DALI,
    ),
    "nvjpeg": _peer_on_gpu(
        "nvJPEG by torchvision, its crops, kornia",
        f"{FREE}; colours in float",
        peers_gpu.nvjpeg,
    ),
    "nvimgcodec": _peer_on_gpu(
        "nvImageCodec, torchvision's crops, kornia",
        f"{FREE}; colours in float",
        peers_gpu.nvimgcodec,
        DALI,  # brings nvImageCodec
    ),
    "decode_only": Row(
        kind="bound",
        what="full decode, libjpeg-turbo, threads",
        parity="decodes only",
        open=DecodeOnly,
        views=0,
    ),
    "cached_batch": Row(
        kind="bound", what="the same batch again", parity="no work", open=CachedBatch
    ),
}
"""By the name that `bench --rows` takes."""
