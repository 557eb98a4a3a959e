"""The registry of methods: by name, each method's config class and method class.

A new method adds its module, an entry of `METHODS` and a field of `MethodFields`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.methods.base import Method
from maskco_fast.methods.byol import BYOL, BYOLConfig
from maskco_fast.methods.maskco import MaskCo, MaskCoConfig
from maskco_fast.methods.moco_v2 import MoCoV2, MoCoV2Config
from maskco_fast.methods.npid import NPID, NPIDConfig
from maskco_fast.methods.relative_loc import RelativeLoc, RelativeLocConfig
from maskco_fast.methods.rotation import Rotation, RotationConfig
from maskco_fast.methods.simclr import SimCLR, SimCLRConfig
from maskco_fast.networks.config import ModelConfig


class MethodEntry(NamedTuple):
    """A method's row of the registry."""

    config: type
    """The method's config dataclass."""
    method: type[Method]
    """The method's class, called as `method(config, model, seed=seed)`."""


METHODS: Mapping[str, MethodEntry] = {
    "maskco": MethodEntry(MaskCoConfig, MaskCo),
    "moco_v2": MethodEntry(MoCoV2Config, MoCoV2),
    "simclr": MethodEntry(SimCLRConfig, SimCLR),
    "npid": MethodEntry(NPIDConfig, NPID),
    "byol": MethodEntry(BYOLConfig, BYOL),
    "relative_loc": MethodEntry(RelativeLocConfig, RelativeLoc),
    "rotation": MethodEntry(RotationConfig, Rotation),
}
"""By the name that `--method` takes."""

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
    """A name in `METHODS`; `--help` lists them."""


def find_method(name: str) -> MethodEntry:
    """Return the entry of method `name`; InvalidInput where `METHODS` has none."""
    if name not in METHODS:
        raise InvalidInput(f"`method` must be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


@dataclass(frozen=True, kw_only=True)
class MethodFields:
    """The fields of `TrainConfig` that choose and configure the method.

    There is one config per entry of `METHODS`, by the same name; only the chosen method's is used.
    """

    method: MethodName = "maskco"
    """Pre-training method. It also selects the recipe's defaults."""
    maskco: MaskCoConfig = field(default_factory=MaskCoConfig)
    moco_v2: MoCoV2Config = field(default_factory=MoCoV2Config)
    simclr: SimCLRConfig = field(default_factory=SimCLRConfig)
    npid: NPIDConfig = field(default_factory=NPIDConfig)
    byol: BYOLConfig = field(default_factory=BYOLConfig)
    relative_loc: RelativeLocConfig = field(default_factory=RelativeLocConfig)
    rotation: RotationConfig = field(default_factory=RotationConfig)

    def __post_init__(self) -> None:
        find_method(self.method)

    @property
    def method_config(self) -> Any:
        """The config of the chosen method, such as `MaskCoConfig`."""
        return getattr(self, self.method)


def make_method(name: str, config: Any, model: ModelConfig, *, seed: int) -> Method:
    """Make the method in train mode, with weights drawn from `seed`.

    `config`: the method's own config, such as `MaskCoConfig`. torch's global generator is left
    unchanged. InvalidInput for a name that is not in `METHODS` and for another method's config.
    """
    entry = find_method(name)
    if not isinstance(config, entry.config):
        raise InvalidInput(
            f"`config` must be a {entry.config.__name__} for {name}, got {type(config).__name__}."
        )
    # torch's layers draw weights from the global generator before `initialise` replaces them.
    with torch.random.fork_rng(devices=[]):
        return entry.method(config, model, seed=seed).train()
