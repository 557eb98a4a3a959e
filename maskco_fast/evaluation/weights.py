"""Weights to evaluate or export: read from runs, checkpoints, exported and torchvision's files.

`read_weights` is the one reader of all commands with `--weights`. Files are read with torch's
`weights_only` or by safetensors, so that a foreign file cannot run code.
"""

import hashlib
import json
import os
import pathlib
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from maskco_fast.kernels.errors import InvalidInput, MissingPackage
from maskco_fast.networks.batch_norm import GroupBatchNorm2d
from maskco_fast.networks.encoders import initialise
from maskco_fast.networks.resnet import TRUNKS, FusedBottleneck, Trunk
from maskco_fast.training import checkpoint

RANDOM = "random"
"""The source of untrained weights, the floor that every evaluation is compared with."""

SAFETENSORS_KEY = "maskco_fast"
"""Metadata key under which a safetensors file holds its description, as JSON."""

KEY_NETWORKS = ("key", "target")
"""A method's attributes that may hold its moving-average network."""

SHOWN = 4
"""Names that an error lists of each kind."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A pre-trained trunk and what is known of its origin."""

    trunk: str
    """Architecture: a name in `TRUNKS`, such as "resnet50"."""
    trunk_state: dict[str, torch.Tensor]
    """The trunk's state dict on the CPU, float32, with torchvision's names and without `fc`."""
    mph_state: dict[str, torch.Tensor] = field(default_factory=dict)
    """State dict of the mask prediction head, `0.conv1.weight` and so on; empty without one."""
    description: dict[str, Any] = field(default_factory=dict)
    """JSON-ready facts: `source` (run, checkpoint, export, random or torchvision), `trunk`,
    `network`, and where known `method`, `recipe`, `step`, `view_size`, `group_size`, `seed` and
    `data`, the fingerprint of the shards. Contains no path."""

    def title(self) -> str:
        """The weights in a few words: "maskco at step 400 (resnet18)"."""
        facts = self.description
        if "method" in facts:
            step = f" at step {facts['step']}" if facts.get("step") is not None else ""
            key = ", key network" if facts.get("network") == "key" else ""
            return f"{facts['method']}{step} ({self.trunk}{key})"
        return f"{facts['source']} ({self.trunk})"

    def digest(self) -> str:
        """SHA-256 of the trunk's tensors in the order of their names, as hexadecimal."""
        found = hashlib.sha256()
        for name, value in sorted(self.trunk_state.items()):
            found.update(name.encode())
            found.update(value.numpy().tobytes())
        return found.hexdigest()


def read_weights(
    source: str | os.PathLike[str],
    *,
    network: str = "query",
    trunk: str = "resnet50",
    seed: int = 0,
) -> Weights:
    """Read the weights that `--weights` names.

    `source`: a run folder (its newest intact checkpoint), a checkpoint, a file of `export`
    (.safetensors or .pth), a torchvision state dict (ResNet-18 or 50, recognised by its keys), or
    "random". `network`: "query", or "key" for the moving average of a run that has one. `trunk` and
    `seed` apply to "random" alone, which draws what a run with that seed starts from.

    Raises FileNotFoundError, InvalidInput for a file of another kind, with the keys that do not
    fit, CheckpointError for a damaged checkpoint, and MissingPackage without safetensors.
    """
    if network not in ("query", "key"):
        raise InvalidInput(f"`network` must be query or key, got {network!r}.")
    if str(source) == RANDOM:
        return _random_weights(trunk, seed)
    path = pathlib.Path(source)
    if path.is_dir():
        return _from_run(path, network)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. `weights` must be a run folder, a checkpoint, an exported "
            f"file, a torchvision state dict or {RANDOM!r}."
        )
    if path.suffix == ".safetensors":
        state, description = _read_safetensors(path)
        return _from_export(path, state, description, network)
    if checkpoint.has_checksum(path):
        return _from_checkpoint(path, checkpoint.load(path), network, "checkpoint")
    contents = _read_pickle(path)
    if "method" in contents and "config" in contents:  # a checkpoint copied without its checksum
        return _from_checkpoint(path, contents, network, "checkpoint")
    if "state_dict" in contents and "description" in contents:
        return _from_export(path, contents["state_dict"], contents["description"], network)
    return _from_torchvision(path, contents, network)


def frozen_trunk(weights: Weights) -> Trunk:
    """The trunk with these weights, channels-last, in eval mode and without gradients.

    BatchNorm uses its running statistics.
    """
    trunk = _empty_trunk(weights.trunk).to_empty(device="cpu")
    trunk.load_state_dict(weights.trunk_state)
    return _freeze(trunk)


def frozen_mph(weights: Weights) -> nn.Sequential:
    """The mask prediction head, frozen as `frozen_trunk`; no blocks where there are no weights.

    Maps conv5 maps (N, C, H, W) to maps of the same shape.
    """
    mph = _empty_mph(weights.trunk, weights.mph_state).to_empty(device="cpu")
    mph.load_state_dict(weights.mph_state)
    return _freeze(mph)


_frozen_norm = partial(GroupBatchNorm2d, group_size=sys.maxsize)
"""BatchNorm of a frozen network: one group of any size, where statistics are recomputed."""


def _empty_trunk(name: str) -> Trunk:
    """A trunk without memory for its weights."""
    with torch.device("meta"):
        return Trunk(name, _frozen_norm)


def _empty_mph(trunk: str, state: Mapping[str, Any]) -> nn.Sequential:
    """A mask prediction head with the number of blocks that `state` names, without memory."""
    blocks = {name.split(".")[0] for name in state}
    with torch.device("meta"):
        channels = Trunk(trunk, nn.BatchNorm2d).channels
        return nn.Sequential(
            *[
                FusedBottleneck(channels, channels // 4, norm_layer=_frozen_norm)
                for _ in range(len(blocks))
            ]
        )


def _freeze(network: Any) -> Any:
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _random_weights(trunk: str, seed: int) -> Weights:
    """Untrained weights: those that a run with `seed` starts from."""
    if trunk not in TRUNKS:
        raise InvalidInput(f"`trunk` must be one of {', '.join(TRUNKS)}, got {trunk!r}.")
    network = _empty_trunk(trunk).to_empty(device="cpu")
    initialise(network, torch.Generator().manual_seed(seed))
    return Weights(
        trunk=trunk,
        trunk_state=network.state_dict(),
        description={"source": RANDOM, "trunk": trunk, "network": "query", "seed": seed},
    )


def _from_run(folder: pathlib.Path, network: str) -> Weights:
    """The newest intact checkpoint of a run folder, or of its `checkpoints` folder."""
    inner = folder / "checkpoints"
    state = checkpoint.load_newest(inner if inner.is_dir() else folder)
    if state is None:
        raise InvalidInput(
            f"{folder} holds no checkpoint. `weights` must name the folder of a run that has "
            "written one."
        )
    return _from_checkpoint(folder, state, network, "run")


def _from_checkpoint(
    path: pathlib.Path, state: Mapping[str, Any], network: str, kind: str
) -> Weights:
    """The trunk and MPH of a training run's state."""
    config, method = state["config"], state["method"]
    names = ("query",) if network == "query" else KEY_NETWORKS
    prefix = next((name for name in names if f"{name}.trunk.conv1.weight" in method), None)
    if prefix is None:
        if network == "key":
            raise InvalidInput(
                f"`network` must be query for {path}: {config['method']} has no key network."
            )
        raise InvalidInput(f"{path} is a checkpoint without a trunk (`query.trunk.…`).")
    trunk = config["model"]["trunk"]
    return Weights(
        trunk=trunk,
        trunk_state=_checked(path, trunk, _part(method, f"{prefix}.trunk.")),
        mph_state=_checked_mph(path, trunk, _part(method, f"{prefix}.mph.")),
        description={
            "source": kind,
            "trunk": trunk,
            "network": network,
            "method": config["method"],
            "recipe": config["recipe"],
            "step": state["steps_done"],
            "view_size": config["model"]["view_size"],
            "group_size": config["model"]["group_size"],
            "seed": config["seed"],
            "data": state["loader"].get("dataset"),
        },
    )


def _from_export(
    path: pathlib.Path, state: Mapping[str, Any], description: Any, network: str
) -> Weights:
    """A file that `maskco-fast export` wrote: one network, described."""
    if not isinstance(description, dict):
        raise InvalidInput(
            f"{path}: its description must be a dict, got {type(description).__name__}. "
            "Write the file with `maskco-fast export`."
        )
    held = description.get("network", "query")
    if network != held and network == "key":
        raise InvalidInput(
            f"`network` must be {held} for {path}, which holds that network alone; got key."
        )
    trunk_state = {
        name: value for name, value in state.items() if not name.startswith(("mph.", "fc."))
    }
    trunk = description.get("trunk") or _recognise(path, trunk_state)
    return Weights(
        trunk=trunk,
        trunk_state=_checked(path, trunk, trunk_state),
        mph_state=_checked_mph(path, trunk, _part(state, "mph.")),
        description={**description, "source": "export", "trunk": trunk, "network": held},
    )


def _from_torchvision(path: pathlib.Path, state: Mapping[str, Any], network: str) -> Weights:
    """A state dict of torchvision's resnet18 or resnet50."""
    if network == "key":
        raise InvalidInput(
            f"`network` must be query for {path}, a plain state dict, which has no key network."
        )
    trunk_state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    trunk = _recognise(path, trunk_state)
    return Weights(
        trunk=trunk,
        trunk_state=_checked(path, trunk, trunk_state),
        description={"source": "torchvision", "trunk": trunk, "network": "query"},
    )


def _read_pickle(path: pathlib.Path) -> dict[str, Any]:
    """The dict in a file of `torch.save`; InvalidInput for anything else."""
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"{path} is no file of weights, or holds other objects than tensors and plain values. "
            "Those are refused, because reading them can run code. Save a state dict instead."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, LookupError) as error:
        raise InvalidInput(f"{path} is damaged or no file of torch.save: {error}") from error
    if not isinstance(contents, dict):
        raise InvalidInput(f"{path} must hold a state dict, got a {type(contents).__name__}.")
    return contents


def _read_safetensors(path: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the description of a safetensors file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingPackage(
            f"reading {path} requires safetensors: pip install 'maskco-fast[export]'"
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return state, json.loads(metadata.get(SAFETENSORS_KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise InvalidInput(f"{path} is damaged or no safetensors file: {error}") from error


def _recognise(path: pathlib.Path, state: Mapping[str, Any]) -> str:
    """The trunk whose keys `state` has most of; InvalidInput where it has none of them."""
    expected = {name: _empty_trunk(name).state_dict().keys() for name in TRUNKS}
    if not any(keys & state.keys() for keys in expected.values()):
        held = ", ".join(list(state)[:SHOWN]) or "nothing"
        raise InvalidInput(
            f"{path} must hold a ResNet with torchvision's names (conv1.weight, layer1.0.…), "
            f"got {held}."
        )
    # Fewest differences: a larger network may contain every key of a smaller one.
    return min(expected, key=lambda name: len(expected[name] ^ state.keys()))


def _checked(path: pathlib.Path, trunk: str, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The trunk's state dict, float32, after a check of its names, shapes and values."""
    if trunk not in TRUNKS:
        raise InvalidInput(f"{path} describes the trunk {trunk!r}; known are {', '.join(TRUNKS)}.")
    expected = _empty_trunk(trunk).state_dict()
    # Files from before torch 0.4.1 have no batch counters, which inference does not read.
    counters = {
        name: torch.zeros((), dtype=torch.int64)
        for name in expected
        if name.endswith("num_batches_tracked")
    }
    return _fitted(path, trunk, expected, {**counters, **state})


def _checked_mph(
    path: pathlib.Path, trunk: str, state: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The mask prediction head's state dict after the same check."""
    return _fitted(path, f"the MPH of {trunk}", _empty_mph(trunk, state).state_dict(), state)


def _fitted(
    path: pathlib.Path,
    network: str,
    expected: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """`state` in the order of `expected`, float32; InvalidInput lists what does not fit."""
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {_shape(state[name])} instead of {_shape(value)}"
            for name, value in expected.items()
            if name in state and _shape(state[name]) != _shape(value)
        ],
    }
    found = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
    if found:
        raise InvalidInput(f"{path} does not fit {network}: {found}.")
    fitted = {name: state[name] for name in expected}
    infinite = [name for name, value in fitted.items() if not bool(value.isfinite().all())]
    if infinite:
        raise InvalidInput(f"{path} holds infinite or NaN values: {_listed(infinite)}.")
    return {
        name: value.float().contiguous() if value.is_floating_point() else value
        for name, value in fitted.items()
    }


def _shape(value: Any) -> Any:
    """A tensor's shape as a tuple; the type's name for anything else."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names start with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
