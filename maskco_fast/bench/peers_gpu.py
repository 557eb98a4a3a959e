"""Other libraries' pipelines on a CUDA device, as their users would write them, for the bench.

They decode and augment on the device, and a batch is yielded once the device has finished it. Not
yet run on a GPU; the tests run them on the CPU, except for what only a GPU has.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from maskco_fast.bench.peers import Epochs, kornia_colours, pil_image
from maskco_fast.bench.setting import Setting
from maskco_fast.kernels.errors import MissingPackage
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD
from maskco_fast.loaders import Dataset


def cuda_device(what: str) -> torch.device:
    """The current CUDA device. MissingPackage, a line of the bench's table, where there is none."""
    if not torch.cuda.is_available():
        raise MissingPackage(f"{what}: requires a CUDA device, and torch finds none here")
    return torch.device("cuda", torch.cuda.current_device())


def row_device(what: str, on_gpu: bool) -> torch.device:
    """The device of a row that has a twin on the CPU: `cuda_device(what)`, or the CPU."""
    return cuda_device(what) if on_gpu else torch.device("cpu")


def finish(device: torch.device) -> None:
    """Wait until the device has done what is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Decode = Callable[[Sequence[bytes]], Sequence[torch.Tensor]]
"""Encoded images to uint8 tensors (3, height, width) on the device."""


def _torchvision_decoder(device: torch.device) -> Decode:
    """torchvision's decode_jpeg, which takes nvJPEG on a CUDA device."""

    def decode(encoded: Sequence[bytes]) -> Sequence[torch.Tensor]:
        data = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in encoded]
        images = decode_jpeg(data, ImageReadMode.RGB, device=device)
        finish(device)  # nvJPEG's hardware decoder was seen to write after the call's stream
        return images

    return decode


def _nvimgcodec_decoder(device: torch.device) -> Decode:
    """nvImageCodec with its default choice of decoders: hardware, GPU, CPU."""
    from nvidia import nvimgcodec

    decoder = nvimgcodec.Decoder(device_id=device.index)

    def decode(encoded: Sequence[bytes]) -> Sequence[torch.Tensor]:
        images = decoder.decode(list(encoded))
        finish(device)
        return [torch.as_tensor(image, device=device).permute(2, 0, 1) for image in images]

    return decode


def nvjpeg(dataset: Dataset, setting: Setting) -> Epochs:
    """torchvision's nvJPEG, its crops on the device, kornia's colours on the batch."""
    device = cuda_device("nvJPEG")
    return _crops_and_kornia(dataset, setting, _torchvision_decoder(device), device)


def nvimgcodec(dataset: Dataset, setting: Setting) -> Epochs:
    """The same from nvImageCodec."""
    device = cuda_device("nvImageCodec, even for its CPU decoders")
    return _crops_and_kornia(dataset, setting, _nvimgcodec_decoder(device), device)


def _crops_and_kornia(
    dataset: Dataset, setting: Setting, decode: Decode, device: torch.device
) -> Epochs:
    crop = v2.RandomResizedCrop(setting.size, scale=(0.2, 1.0), antialias=True)
    augment = kornia_colours().to(device)

    def epoch(count: int) -> Iterator[Any]:
        for images in _decoded(dataset, setting, decode, count):
            crops = [torch.stack([crop(image) for image in images]) for _ in range(2)]
            views = [augment(crop.float() / 255) for crop in crops]
            finish(device)
            yield views

    return epoch


def _decoded(
    dataset: Dataset, setting: Setting, decode: Decode, count: int
) -> Iterator[Sequence[torch.Tensor]]:
    """Batches of a random `count` images."""
    positions = torch.randperm(len(dataset))[:count].split(setting.batch_size)
    for batch in positions:
        if len(batch) == setting.batch_size:
            yield decode([dataset.read(int(position)) for position in batch])


def dali_torchvision(dataset: Dataset, setting: Setting) -> Epochs:
    """DALI's torchvision-like transforms of Pillow images, in threads with a pipeline each.

    They take the images one by one: their ColorJitter refuses batches, which are tensors (2.4).
    """
    device = cuda_device("DALI's torchvision-like transforms, even on the CPU")
    from nvidia.dali.experimental import torchvision as dali

    on = "gpu" if device.type == "cuda" else "cpu"
    own = threading.local()

    def make() -> Any:
        return dali.Compose(
            [
                dali.RandomResizedCrop(setting.size, scale=(0.2, 1.0), device=on),
                dali.RandomApply([dali.ColorJitter(0.4, 0.4, 0.4, 0.1, device=on)], 0.8, on),
                dali.RandomGrayscale(p=0.2, device=on),
                dali.RandomApply([dali.GaussianBlur(23, (0.1, 2.0), device=on)], 0.5, on),
                dali.RandomHorizontalFlip(device=on),
                dali.ToPureTensor(device=on),
                dali.Normalize(
                    [255 * mean for mean in IMAGENET_MEAN],
                    [255 * std for std in IMAGENET_STD],
                    device=on,
                ),
            ],
            batch_size=1,
            num_threads=1,
        )

    def views(position: int) -> list[torch.Tensor]:
        if not hasattr(own, "transform"):
            own.transform = make()
        image = pil_image(dataset.read(position))
        return [own.transform(image).clone() for _ in range(2)]  # DALI reuses an output's memory

    def epoch(count: int) -> Iterator[Any]:
        positions = torch.randperm(len(dataset))[:count].tolist()
        made = threads.map(views, positions)
        for _ in range(count // setting.batch_size):
            samples = itertools.islice(made, setting.batch_size)
            batch = [torch.stack(view) for view in zip(*samples)]
            finish(device)
            yield batch

    threads = ThreadPoolExecutor(setting.workers, thread_name_prefix="dali")
    return epoch
