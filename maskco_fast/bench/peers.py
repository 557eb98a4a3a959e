"""Other libraries' MoCo v2 pipelines, each as its own users would write it, for the bench.

Each function takes the images and the bench's setting and returns `Epochs`. A library is imported
when its function is called.
"""

import functools
import io
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from maskco_fast.bench.setting import Setting
from maskco_fast.kernels.errors import MissingPackage
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD
from maskco_fast.loaders import Dataset

Epochs = Callable[[int], Iterable[Any]]
"""A pass over about as many images as its argument says: batches, each a list of views (N, …)."""


class _Images(torch.utils.data.Dataset):
    """A map-style dataset over the shards: `load` decodes the bytes, `views` makes the views."""

    def __init__(self, dataset: Dataset, load: Any, views: Any) -> None:
        self._dataset = dataset
        self._load = load
        self._views = views

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> Any:
        return self._views(self._load(self._dataset.read(position)))


class TwoCrops:
    """Two views by the same transform (moco/loader.py's TwoCropsTransform)."""

    def __init__(self, transform: Any) -> None:
        self._transform = transform

    def __call__(self, image: Any) -> list[torch.Tensor]:
        return [self._transform(image), self._transform(image)]


class _RandomImages(torch.utils.data.Sampler):
    """A random `count` of the dataset's positions; `count` may change from epoch to epoch."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.count = total

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self._total)[: self.count].tolist()


def _data_loader(images: _Images, setting: Setting) -> Epochs:
    """Passes of a torch DataLoader with worker processes that persist."""
    sampler = _RandomImages(len(images))
    loader = DataLoader(
        images,
        batch_size=setting.batch_size,
        sampler=sampler,
        num_workers=setting.workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",  # Linux's default; the bench's own use a fork server
        worker_init_fn=_one_thread,
    )

    def epoch(count: int) -> Iterable[Any]:
        sampler.count = count
        return loader

    return epoch


def _one_thread(_: int) -> None:
    """One intra-op thread a worker: DataLoader's default, set explicitly."""
    torch.set_num_threads(1)


def pil_image(data: bytes) -> Image.Image:
    """Decode by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def decode_tensor(data: bytes) -> torch.Tensor:
    """Decode by torchvision: (3, height, width) uint8."""
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


class _PilBlur:
    """MoCo's GaussianBlur: Pillow's, with sigma drawn from [0.1, 2] (moco/loader.py)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def torchvision_pil(dataset: Dataset, setting: Setting) -> Epochs:
    """MoCo v2's own augmentation (main_moco.py, --aug-plus)."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(setting.size, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([_PilBlur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return _data_loader(_Images(dataset, pil_image, TwoCrops(transform)), setting)


def v2_transform(size: int) -> v2.Compose:
    """MoCo v2's augmentation by the v2 transforms, of a uint8 tensor."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def torchvision_v2(dataset: Dataset, setting: Setting) -> Epochs:
    """The v2 transforms on uint8 tensors, as torchvision's documentation recommends."""
    return _data_loader(
        _Images(dataset, decode_tensor, TwoCrops(v2_transform(setting.size))), setting
    )


def torchcodec_v2(dataset: Dataset, setting: Setting) -> Epochs:
    """torchcodec's image decoder, to which torchvision's documentation refers, and the v2
    transforms."""
    try:
        from torchcodec.decoders import decode_image as decode
    except RuntimeError as error:  # its libraries do not load: FFmpeg or another torch
        raise MissingPackage(
            f"torchcodec cannot load its libraries ({str(error).splitlines()[0]}): install the "
            "version for this torch, and FFmpeg 4 to 8"
        ) from error
    images = _Images(dataset, decode, TwoCrops(v2_transform(setting.size)))
    return _data_loader(images, setting)


def kornia_rs_v2(dataset: Dataset, setting: Setting) -> Epochs:
    """kornia-rs's JPEG decoder, in Rust over libjpeg-turbo, and the v2 transforms."""
    import kornia_rs

    # Its module has moved in 0.2. The decoder is made in each worker.
    make = functools.cache(getattr(kornia_rs, "io", kornia_rs).ImageDecoder)

    def decode(data: bytes) -> torch.Tensor:
        return torch.from_numpy(make().decode(data)).permute(2, 0, 1)

    images = _Images(dataset, decode, TwoCrops(v2_transform(setting.size)))
    return _data_loader(images, setting)


def lightly_moco(dataset: Dataset, setting: Setting) -> Epochs:
    """lightly's MoCoV2Transform, which makes both views of a Pillow image."""
    from lightly.transforms import MoCoV2Transform

    return _data_loader(
        _Images(dataset, pil_image, MoCoV2Transform(input_size=setting.size)), setting
    )


def kornia_colours() -> torch.nn.Module:
    """MoCo v2's augmentation after the crop, by kornia, of float views (N, 3, size, size)."""
    import kornia.augmentation as K

    return K.AugmentationSequential(
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        data_keys=["input"],
    )


def kornia_batched(dataset: Dataset, setting: Setting) -> Epochs:
    """Crops in DataLoader workers, everything else by kornia on the whole batch."""
    augment = kornia_colours()
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(setting.size, scale=(0.2, 1.0), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    torch.set_num_threads(setting.workers)
    crops = _data_loader(_Images(dataset, decode_tensor, TwoCrops(crop)), setting)

    def epoch(count: int) -> Iterator[Any]:
        for views in crops(count):
            yield [augment(view) for view in views]

    return epoch


def spdl_threads(dataset: Dataset, setting: Setting) -> Epochs:
    """SPDL's thread pipeline: FFmpeg's decoder, then torchvision v2 on the tensors."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    # SPDL logs a traceback for each failing sample and drops it. Decoding one sample here turns a
    # missing FFmpeg into one error.
    try:
        spdl.io.demux_image(dataset.read(0))
    except RuntimeError as error:
        if "libspdl" not in str(error):
            raise
        raise MissingPackage(
            "SPDL cannot load FFmpeg's shared libraries, versions 4 to 8: apt-get install ffmpeg"
        ) from error
    transform = v2_transform(setting.size)

    def views(position: Any) -> Any:
        packets = spdl.io.demux_image(dataset.read(position))
        rgb = spdl.io.get_video_filter_desc(pix_fmt="rgb24")
        frames = spdl.io.decode_packets(packets, filter_desc=rgb)
        image = spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(2, 0, 1)
        return [transform(image), transform(image)]

    def collate(samples: Any) -> Any:
        return [torch.stack(view) for view in zip(*samples)]

    def epoch(count: int) -> Iterator[Any]:
        positions = torch.randperm(len(dataset))[:count].tolist()
        pipeline: Any = (
            PipelineBuilder()
            .add_source(positions)
            .pipe(views, concurrency=setting.workers)
            .aggregate(setting.batch_size, drop_last=True)
            .pipe(collate)
            .add_sink(3)
            .build(num_threads=setting.workers)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return epoch
