"""Other libraries' MoCo v2 pipelines, each as its own users would write it; `bench` times them.

Each function takes the images and the bench's setting and returns an iterable of batches. What it
needs is imported when it is called.
"""

import io
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD
from maskco_fast.loaders import Dataset

if TYPE_CHECKING:
    from maskco_fast.bench.rows import Setting


class _Images(torch.utils.data.Dataset):
    """A map-style dataset over the shards' bytes: `load` decodes them, `views` makes a list of
    views of the image."""

    def __init__(self, dataset: Dataset, load: Any, views: Any) -> None:
        self._dataset, self._load, self._views = dataset, load, views

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> Any:
        return self._views(self._load(self._dataset.read(position))), 0


class _Twice:
    """Two views by the same transform (moco/loader.py's TwoCropsTransform)."""

    def __init__(self, transform: Any) -> None:
        self._transform = transform

    def __call__(self, image: Any) -> list[torch.Tensor]:
        return [self._transform(image), self._transform(image)]


def _data_loader(images: _Images, setting: "Setting") -> DataLoader:
    return DataLoader(
        images,
        batch_size=setting.batch_size,
        shuffle=True,
        num_workers=setting.workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",  # Linux's default, which the bench's own processes do not inherit
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    """What DataLoader's workers do by themselves, made certain: one intra-op thread each."""
    torch.set_num_threads(1)


def _pil(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _tensor(data: bytes) -> torch.Tensor:
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


class _PilBlur:
    """MoCo's GaussianBlur: Pillow's, with a sigma drawn from .1 to 2 (moco/loader.py)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def torchvision_pil(dataset: Dataset, setting: "Setting") -> DataLoader:
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
    return _data_loader(_Images(dataset, _pil, _Twice(transform)), setting)


def _v2_transform(size: int) -> v2.Compose:
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


def torchvision_v2(dataset: Dataset, setting: "Setting") -> DataLoader:
    """The v2 transforms on uint8 tensors, as torchvision's documentation recommends."""
    return _data_loader(_Images(dataset, _tensor, _Twice(_v2_transform(setting.size))), setting)


def lightly_moco(dataset: Dataset, setting: "Setting") -> DataLoader:
    """lightly's MoCoV2Transform, which makes both views of a Pillow image."""
    from lightly.transforms import MoCoV2Transform

    return _data_loader(_Images(dataset, _pil, MoCoV2Transform(input_size=setting.size)), setting)


def kornia_batched(dataset: Dataset, setting: "Setting") -> "_Mapped":
    """Crops in DataLoader workers, everything else by kornia on the whole batch."""
    import kornia.augmentation as K

    crop = v2.Compose(
        [
            v2.RandomResizedCrop(setting.size, scale=(0.2, 1.0), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    augment = K.AugmentationSequential(
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        data_keys=["input"],
    )
    torch.set_num_threads(setting.workers)
    return _Mapped(
        _data_loader(_Images(dataset, _tensor, _Twice(crop)), setting),
        lambda views: [augment(v) for v in views],
    )


class _Mapped:
    """An iterable that can be iterated again: a loader's batches through a function of the views."""

    def __init__(self, loader: Any, function: Any) -> None:
        self._loader, self._function = loader, function

    def __iter__(self) -> Iterator[Any]:
        for views, _ in self._loader:
            yield self._function(views)


def spdl_threads(dataset: Dataset, setting: "Setting") -> Any:
    """SPDL's thread pipeline: its decoder (FFmpeg's libraries, from the system), torchvision v2 on
    the tensors."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    transform = _v2_transform(setting.size)

    def views(position: Any) -> Any:
        packets = spdl.io.demux_image(dataset.read(position))
        frames = spdl.io.decode_packets(
            packets, filter_desc=spdl.io.get_video_filter_desc(pix_fmt="rgb24")
        )
        image = spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(2, 0, 1)
        return [transform(image), transform(image)]

    def collate(samples: Any) -> Any:
        return [torch.stack(view) for view in zip(*samples)]

    class Epochs:
        def __iter__(self) -> Iterator[Any]:
            positions = torch.randperm(len(dataset)).tolist()
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

    return Epochs()


def dali_stock(dataset: Dataset, setting: "Setting") -> Any:
    """DALI's CPU pipeline with its own operators, reading the tar shards by its webdataset reader."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    def view(images: Any) -> Any:
        out = fn.random_resized_crop(
            images, size=setting.size, random_area=(0.2, 1.0), device="cpu"
        )
        if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
            out = fn.color_twist(
                out,
                brightness=fn.random.uniform(range=(0.6, 1.4)),
                contrast=fn.random.uniform(range=(0.6, 1.4)),
                saturation=fn.random.uniform(range=(0.6, 1.4)),
                hue=fn.random.uniform(range=(-36.0, 36.0)),
            )
        if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
            out = fn.saturation(out, saturation=0.0)
        if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
            out = fn.gaussian_blur(out, sigma=fn.random.uniform(range=(0.1, 2.0)), window_size=23)
        return fn.crop_mirror_normalize(
            out,
            mirror=fn.random.coin_flip(),
            mean=[255 * mean for mean in IMAGENET_MEAN],
            std=[255 * std for std in IMAGENET_STD],
            dtype=types.FLOAT,
        )

    @pipeline_def(
        batch_size=setting.batch_size,
        num_threads=setting.workers,
        device_id=None,
        enable_conditionals=True,
    )
    def moco_v2() -> Any:
        paths = [shard.path for shard in dataset.shards]
        jpegs = fn.readers.webdataset(paths=paths, ext=["jpg"], random_shuffle=True, name="reader")
        images = fn.decoders.image(jpegs, device="cpu", output_type=types.RGB)
        return view(images), view(images)

    pipeline = moco_v2()
    iterator = DALIGenericIterator(
        pipeline,
        ["query", "key"],
        reader_name="reader",
        last_batch_policy=LastBatchPolicy.DROP,
        auto_reset=True,
    )
    return _DaliEpochs(iterator)


class _DaliEpochs:
    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        for outputs in self._iterator:  # a list with one dictionary a pipeline
            yield [outputs[0]["query"], outputs[0]["key"]]
