"""The table of export formats: parameter names, file endings, writers and loading code."""

import json
import pathlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from maskco_fast.evaluation.weights import SAFETENSORS_KEY
from maskco_fast.export.key_maps import (
    KeyMap,
    detectron2_key,
    lightly_key,
    openmmlab_key,
    torchvision_key,
)
from maskco_fast.kernels.errors import MissingPackage

Tensors = Mapping[str, torch.Tensor]
Description = Mapping[str, Any]
Writer = Callable[[pathlib.Path, Tensors, Description], None]
"""Writes renamed tensors and the description of their origin to a path."""

AUTHOR = "maskco-fast"


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """One row of `FORMATS`."""

    endings: tuple[str, ...]
    """File endings that the library's own loader recognises."""
    key_map: KeyMap
    write: Writer
    code: str
    """Three lines that load the file; `{file}`, `{trunk}` and `{depth}` are filled in."""
    note: str
    """What a reader of the model card must know about this format."""


def _write_torch(path: pathlib.Path, tensors: Tensors, description: Description) -> None:
    """A plain state dict; it has no place for the description."""
    torch.save(dict(tensors), path)


def _write_openmmlab(path: pathlib.Path, tensors: Tensors, description: Description) -> None:
    """MMEngine's checkpoint: `meta` of plain values, and `state_dict`."""
    meta = {"author": AUTHOR, SAFETENSORS_KEY: json.dumps(description)}
    torch.save({"meta": meta, "state_dict": dict(tensors)}, path)


def _write_detectron2(path: pathlib.Path, tensors: Tensors, description: Description) -> None:
    """The pickle of Detectron2's model zoo, with NumPy arrays.

    `matching_heuristics` makes its checkpointer find `res5` in the RoI heads.
    """
    arrays = {name: value.numpy() for name, value in tensors.items()}
    model = {"model": arrays, "__author__": AUTHOR, "matching_heuristics": True}
    with path.open("wb") as file:
        pickle.dump(model, file)


def _write_safetensors(path: pathlib.Path, tensors: Tensors, description: Description) -> None:
    """Tensors and, under `SAFETENSORS_KEY`, the description as JSON."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingPackage(
            f"--to safetensors needs safetensors ({error}). "
            "Install it with: pip install 'maskco-fast[export]'"
        ) from error
    metadata = {"format": "pt", SAFETENSORS_KEY: json.dumps(description)}
    save_file(dict(tensors), path, metadata=metadata)


_TORCH_ENDINGS = (".pth", ".pt")
_PICKLED_STATE = (
    "The file is a state dict of tensors as `torch.save` writes it, which is a pickle: read files "
    "of others with `weights_only=True`, as above."
)

FORMATS: dict[str, ExportFormat] = {
    "torchvision": ExportFormat(
        endings=_TORCH_ENDINGS,
        key_map=torchvision_key,
        write=_write_torch,
        code=(
            "import torch, torchvision\n"
            "model = torchvision.models.{trunk}()\n"
            'model.load_state_dict(torch.load("{file}", weights_only=True), strict=False)\n'
        ),
        note=(
            "The classifier is not part of the trunk: `fc.weight` and `fc.bias` are the only "
            f"missing keys. {_PICKLED_STATE}"
        ),
    ),
    "timm": ExportFormat(
        endings=_TORCH_ENDINGS,
        key_map=torchvision_key,
        write=_write_torch,
        code=(
            "import timm, torch\n"
            'model = timm.create_model("{trunk}", num_classes=0)\n'
            'model.load_state_dict(torch.load("{file}", weights_only=True))\n'
        ),
        note=_PICKLED_STATE,
    ),
    "lightly": ExportFormat(
        endings=_TORCH_ENDINGS,
        key_map=lightly_key,
        write=_write_torch,
        code=(
            "import torch, torchvision\n"
            "backbone = torch.nn.Sequential("
            "*list(torchvision.models.{trunk}().children())[:-1])\n"
            'backbone.load_state_dict(torch.load("{file}", weights_only=True))\n'
        ),
        note=f"This is the backbone as lightly's examples build it. {_PICKLED_STATE}",
    ),
    "openmmlab": ExportFormat(
        endings=_TORCH_ENDINGS,
        key_map=openmmlab_key,
        write=_write_openmmlab,
        code=(
            "# in the configuration of MMPretrain, MMDetection or MMSegmentation\n"
            'init = dict(type="Pretrained", checkpoint="{file}", prefix="backbone.")\n'
            'model = dict(backbone=dict(type="ResNet", depth={depth}, style="pytorch", '
            "init_cfg=init))\n"
        ),
        note=(
            'The keys are those of a model whose `backbone` is `ResNet(style="pytorch")`. The file '
            "is written by `torch.save`, which is a pickle of plain values and tensors."
        ),
    ),
    "detectron2": ExportFormat(
        endings=(".pkl",),
        key_map=detectron2_key,
        write=_write_detectron2,
        code=(
            "from detectron2 import checkpoint, modeling\n"
            "model = modeling.build_model(cfg)  # your configuration, such as the files below\n"
            'checkpoint.DetectionCheckpointer(model).load("{file}")\n'
        ),
        note=(
            "The file is a pickle, since Detectron2's checkpointer reads no other format for "
            "converted weights. Unpickling runs code: load such a file only from a source that you "
            "trust."
        ),
    ),
    "safetensors": ExportFormat(
        endings=(".safetensors",),
        key_map=torchvision_key,
        write=_write_safetensors,
        code=(
            "import safetensors.torch, torchvision\n"
            "model = torchvision.models.{trunk}()\n"
            'model.load_state_dict(safetensors.torch.load_file("{file}"), strict=False)\n'
        ),
        note=(
            "The names are torchvision's; `fc.weight` and `fc.bias` are the only missing keys. "
            f"The metadata entry `{SAFETENSORS_KEY}` holds the description above as JSON."
        ),
    ),
}
"""By the name that `--to` takes."""
