"""Parameter names of a ResNet trunk: torchvision's to those of other libraries.

Each function maps one name of torchvision's ResNet without `fc`, such as
`layer1.0.downsample.1.running_mean`. All libraries here share torchvision's arithmetic (stride on
the 3×3 convolution, ImageNet's mean and standard deviation), so only the names change.
"""

import re
from collections.abc import Callable, Mapping

import torch

from maskco_fast.kernels.errors import InvalidInput

KeyMap = Callable[[str], str]

LIGHTLY_CHILDREN = {
    "conv1": "0",
    "bn1": "1",
    "layer1": "4",
    "layer2": "5",
    "layer3": "6",
    "layer4": "7",
}
"""Positions in `nn.Sequential(*list(resnet.children())[:-1])`; 2, 3 and 8 (ReLU, pooling) have no
parameters."""


def torchvision_key(name: str) -> str:
    """The name itself; timm's ResNet has the same ones."""
    return name


def lightly_key(name: str) -> str:
    """`conv1.weight` → `0.weight`, `layer1.0.bn1.bias` → `4.0.bn1.bias`."""
    child, _, rest = name.partition(".")
    return f"{LIGHTLY_CHILDREN[child]}.{rest}"


def openmmlab_key(name: str) -> str:
    """`backbone.` and the name: the ResNet of MMPretrain, MMDetection and MMSegmentation."""
    return f"backbone.{name}"


def detectron2_key(name: str) -> str:
    """The rule of MoCo's `convert-pretrain-to-detectron2.py` (docs/method.md).

    `conv1.weight` → `stem.conv1.weight`, `layer1.0.bn1.bias` → `res2.0.conv1.norm.bias`,
    `layer1.0.downsample.1.bias` → `res2.0.shortcut.norm.bias`.
    """
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def rename(trunk_state: Mapping[str, torch.Tensor], key_map: KeyMap) -> dict[str, torch.Tensor]:
    """Copies of the trunk's tensors under new names, contiguous and on the CPU, in their order.

    Raises InvalidInput for a name that is not one of torchvision's ResNet trunk.
    """
    renamed = {}
    for name, value in trunk_state.items():
        if name.partition(".")[0] not in LIGHTLY_CHILDREN:
            raise InvalidInput(
                f"the trunk's state must have the names of torchvision's ResNet without fc, "
                f"got {name!r}. Read the weights with maskco_fast.evaluation.weights.read_weights."
            )
        renamed[key_map(name)] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return renamed
