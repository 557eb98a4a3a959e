"""What a training run is: frozen dataclasses, checked when made, from which the command line is
derived."""

import dataclasses
import pathlib
from dataclasses import dataclass, field
from typing import Literal

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import RemoteConfig, ViewConfig
from maskco_fast.methods.region_contrast import group_length


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks that every method shares."""

    trunk: Literal["resnet18", "resnet50"] = "resnet50"
    """torchvision's ResNet up to conv5, with the stride on the 3x3 convolution."""
    view_size: int = 224
    """Side of every view, pixels; a multiple of 32, so that conv5's cells tile it."""
    features: int = 128
    """Length of the projection head's output."""
    group_size: int = 32
    """Images that share BatchNorm statistics and contrast, one GPU of the paper. A smaller batch is
    one group."""

    def __post_init__(self) -> None:
        if self.view_size < 32 or self.view_size % 32:
            raise InvalidInput(
                f"ModelConfig.view_size is {self.view_size}; it wants a positive multiple of 32 pixels"
            )
        if self.features < 1:
            raise InvalidInput(f"ModelConfig.features is {self.features}; it wants at least 1")
        if self.group_size < 2:
            raise InvalidInput(
                f"ModelConfig.group_size is {self.group_size}; contrast between images wants at least 2"
            )


@dataclass(frozen=True, kw_only=True)
class MaskCoConfig:
    """Contrastive mask prediction (SPEC 1); every row of the paper's Tables 4-6 is one of these."""

    mask: bool = True
    """Zero the positive box in the query view (paper, Table 5: on / off)."""
    mph_blocks: int = 3
    """Bottleneck blocks of the mask prediction head (paper, Table 4: 0-4)."""
    negatives: Literal["inter", "intra", "both"] = "inter"
    """Whose negative boxes are contrasted with: the group's other images', the image's own, or both
    (the paper's `+in`; Table 6)."""
    temperature: float = 0.2
    """Divides the cosine similarities (paper, eq. 1)."""
    momentum: float = 0.999
    """The key network's share of itself in each moving average step (paper, Alg. 1)."""
    roi_sampling_ratio: int = -1
    """RoIAlign's samples a side of a box; -1 takes one a map cell that the box spans, rounded up.
    """
    roi_aligned: bool = True
    """RoIAlign's half-cell shift, as torchvision has it."""
    boxes: int | None = None
    """Boxes in the key view, the positive first. None here and below keeps `ViewConfig.maskco`'s
    value."""
    box_side: tuple[float, float] | None = None
    """Range of a box's width and height, pixels."""
    min_overlap: float | None = None
    """Least span of the crops' intersection on both axes of the key view, pixels."""
    max_negative_iou: float | None = None
    """A negative box overlaps the positive by less than this."""
    max_mask_share: float | None = None
    """The masked box covers at most this share of the query view."""

    def __post_init__(self) -> None:
        if not 0 <= self.mph_blocks <= 16:
            raise InvalidInput(f"MaskCoConfig.mph_blocks is {self.mph_blocks}; it wants 0..16")
        if not self.temperature > 0:
            raise InvalidInput(
                f"MaskCoConfig.temperature is {self.temperature}; it wants more than 0"
            )
        if not 0 <= self.momentum <= 1:
            raise InvalidInput(f"MaskCoConfig.momentum is {self.momentum}; it wants 0..1")
        if self.boxes is not None and self.boxes < 2:
            raise InvalidInput(
                f"MaskCoConfig.boxes is {self.boxes}; a positive and a negative make at least 2"
            )
        if self.roi_sampling_ratio == 0 or self.roi_sampling_ratio < -1:
            raise InvalidInput(
                f"MaskCoConfig.roi_sampling_ratio is {self.roi_sampling_ratio}; it wants -1 or at least 1"
            )

    def views(self, size: int) -> ViewConfig:
        """The views of side `size` pixels that this configuration trains on."""
        names = ("boxes", "box_side", "min_overlap", "max_negative_iou", "max_mask_share")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(ViewConfig.maskco(size, mask=self.mask), **chosen)


@dataclass(frozen=True, kw_only=True)
class MoCoV2Config:
    """MoCo v2 (SPEC 2). BatchNorm's shuffle wants a batch of several groups: with one it changes
    nothing."""

    queue: int = 65_536
    """Keys that a query is contrasted with."""
    temperature: float = 0.2
    """Divides the cosine similarities."""
    momentum: float = 0.999
    """The key network's share of itself in each moving average step."""

    def __post_init__(self) -> None:
        if self.queue < 1:
            raise InvalidInput(f"MoCoV2Config.queue is {self.queue}; it wants at least 1")
        if not self.temperature > 0:
            raise InvalidInput(
                f"MoCoV2Config.temperature is {self.temperature}; it wants more than 0"
            )
        if not 0 <= self.momentum <= 1:
            raise InvalidInput(f"MoCoV2Config.momentum is {self.momentum}; it wants 0..1")


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig:
    """SimCLR (SPEC 2). BatchNorm and contrast are over the global batch, whatever the group size."""

    temperature: float = 0.1
    """Divides the cosine similarities."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InvalidInput(
                f"SimCLRConfig.temperature is {self.temperature}; it wants more than 0"
            )


@dataclass(frozen=True, kw_only=True)
class NPIDConfig:
    """Instance discrimination with a memory bank, a float32 feature for every image of the shards
    (SPEC 2)."""

    objective: Literal["nce", "softmax"] = "nce"
    """Noise-contrastive estimation (Wu et al., eq. 7), or the softmax over the same entries that
    OpenSelfSup, the paper's codebase, has in its place (with 65536 negatives)."""
    negatives: int = 4096
    """Entries of the bank that an image is contrasted with, drawn anew for each image and step (Wu
    et al.: 4096)."""
    temperature: float = 0.07
    """Divides the cosine similarities."""
    bank_momentum: float = 0.5
    """An entry's share of itself when its image has been seen (OpenSelfSup and the authors' code).
    """

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise InvalidInput(f"NPIDConfig.negatives is {self.negatives}; it wants at least 1")
        if not self.temperature > 0:
            raise InvalidInput(
                f"NPIDConfig.temperature is {self.temperature}; it wants more than 0"
            )
        if not 0 <= self.bank_momentum < 1:
            raise InvalidInput(
                f"NPIDConfig.bank_momentum is {self.bank_momentum}; it wants 0 <= bank_momentum < 1"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD or LARS with a cosine to zero by iteration (SPEC 1, 2)."""

    name: Literal["sgd", "lars"] = "sgd"
    """lars (You et al. 2017) scales each weight's step by norms, and spares biases and BatchNorm
    the decay as well."""
    learning_rate: float = 0.03
    """The first rate for a total batch of 256; scaled linearly with the batch."""
    momentum: float = 0.9
    """Of the gradients."""
    weight_decay: float = 1e-4
    """On all parameters, with lars on weights alone. MoCo v2's value; the paper prints 1e-3 (SPEC
    1, open)."""
    warmup_steps: int = 0
    """Steps over which the rate grows to its cosine, linearly."""
    trust: float = 0.001
    """The coefficient of LARS: a step's norm over its weight's, at a rate of 1."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise InvalidInput(
                f"OptimizerConfig.warmup_steps is {self.warmup_steps}; it wants at least 0"
            )
        if not self.trust > 0:
            raise InvalidInput(f"OptimizerConfig.trust is {self.trust}; it wants more than 0")
        if not self.learning_rate > 0:
            raise InvalidInput(
                f"OptimizerConfig.learning_rate is {self.learning_rate}; it wants more than 0"
            )
        if not 0 <= self.momentum < 1:
            raise InvalidInput(
                f"OptimizerConfig.momentum is {self.momentum}; it wants 0 <= momentum < 1"
            )
        if self.weight_decay < 0:
            raise InvalidInput(
                f"OptimizerConfig.weight_decay is {self.weight_decay}; it wants at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    shards: tuple[str, ...] = ()
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images. None: the built-in demo set."""
    recipe: str = "paper"
    """The recipe that gave the defaults."""
    run_dir: pathlib.Path = pathlib.Path("runs/maskco")
    """Where metrics.jsonl, quarantine.json, config.json, checkpoints/ and tensorboard/ are written.
    """
    max_steps: int = 500_000
    """Optimiser steps in all, and the length of the learning rate's cosine (paper: 500k)."""
    batch_size: int = 256
    """Images a step over all processes; a multiple of the group size, or less than one group."""
    accumulate: int = 1
    """Micro-batches that each process puts its share of a step's images through the networks in,
    one after another: the same gradients in less memory. BatchNorm's running statistics move once a
    micro-batch."""
    loader: str = "auto"
    """Which loader feeds the run: native, dali, ffcv (these two where they are installed),
    reference; or auto, which measures those installed on the run's shards for a few seconds and
    remembers its choice in loader.json."""
    loader_threads: int | None = None
    """Threads of the loader; None lets it choose."""
    decode: Literal["exact", "fast"] = "exact"
    """fast (native and ffcv): images whose crops allow are decoded at a half, a quarter or an
    eighth, by libjpeg's fast IDCT; of the others nothing below the crops is read, so that damage
    there goes unseen."""
    seed: int = 0
    """Of the weights, the order and the plans."""
    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next; one more is written at the end and on SIGTERM or
    Ctrl-C."""
    keep_checkpoints: int = 3
    """The newest checkpoints that stay on disk."""
    resume: bool = True
    """Continue from the run folder's newest intact checkpoint, where there is one. With --no-resume
    a run folder that has checkpoints is refused."""
    log_every: int = 10
    """Steps from one progress line and TensorBoard entry to the next, and on CUDA from one reading
    of the losses to the next. metrics.jsonl gets a line for every step all the same."""
    tensorboard: bool = True
    """Write TensorBoard's event files too."""
    log_samples: bool = False
    """Write samples.jsonl: a line a step with the ids (the keys' hashes) of its images, in the
    order of the epoch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where there is any."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the networks' autocast. auto: bf16 on CUDA and on CPUs with bf16 instructions (AMX or
    AVX512-BF16), fp32 on other CPUs, where bf16 is emulated and took 1.8-2.3 times as long. fp16
    wants CUDA."""
    compile: bool = False
    """Pass the method through torch.compile (a C++ compiler is needed on the CPU)."""
    cuda_graphs: bool = False
    """Pass it through torch.compile so that its forward and backward pass are replayed as CUDA
    graphs. CUDA only, and not run on a GPU yet."""
    method: str = "maskco"
    """What is learned: maskco, moco_v2, simclr or npid. The recipe's defaults are the method's."""
    model: ModelConfig = field(default_factory=ModelConfig)
    maskco: MaskCoConfig = field(default_factory=MaskCoConfig)
    moco_v2: MoCoV2Config = field(default_factory=MoCoV2Config)
    simclr: SimCLRConfig = field(default_factory=SimCLRConfig)
    npid: NPIDConfig = field(default_factory=NPIDConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_size",
            "accumulate",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise InvalidInput(
                    f"TrainConfig.{name} is {getattr(self, name)}; it wants at least 1"
                )
        if self.batch_size < 2:
            raise InvalidInput(
                "TrainConfig.batch_size is 1; contrast between images wants at least 2"
            )
        if self.batch_size > self.model.group_size and self.batch_size % self.model.group_size:
            raise InvalidInput(
                f"TrainConfig.batch_size is {self.batch_size}; it wants a multiple of the group size, "
                f"{self.model.group_size}, or less than one group (--model.group-size)"
            )
        if self.loader_threads is not None and self.loader_threads < 1:
            raise InvalidInput(
                f"TrainConfig.loader_threads is {self.loader_threads}; it wants at least 1, or None"
            )

    def images_a_process(self, processes: int) -> int:
        """Images of a step that each of `processes` takes; ValueError where its micro-batches are
        not whole groups."""
        group = group_length(self.batch_size, self.model.group_size)
        groups = self.batch_size // group
        if groups % (processes * self.accumulate):
            raise InvalidInput(
                f"{self.batch_size} images in groups of {group} make {groups} groups, which {processes} processes with "
                f"{self.accumulate} micro-batches each do not share evenly: change the number of processes, "
                "--accumulate, --batch-size or --model.group-size"
            )
        return self.batch_size // processes


FREE_TO_CHANGE = frozenset(
    {
        *(
            "recipe",
            "run_dir",
            "max_steps",
            "accumulate",
            "loader",
            "loader_threads",
            "checkpoint_every",
        ),
        *(
            "keep_checkpoints",
            "resume",
            "log_every",
            "tensorboard",
            "log_samples",
            "device",
            "precision",
            "compile",
            "cuda_graphs",
            "shards",
            "remote",
        ),
    }
)
"""Fields of `TrainConfig` that a resumed run may set anew. Shards are here because the loader's own
state judges by their content, not by how they are spelled."""


def differences(stored: dict, config: TrainConfig) -> list[str]:
    """What a checkpoint's `dataclasses.asdict(config)` fixes otherwise than `config`: `field:
    stored -> now` lines."""

    def flat(values: dict, prefix: str = "") -> dict:
        items: dict = {}
        for name, value in values.items():
            if isinstance(value, dict):
                items.update(flat(value, f"{prefix}{name}."))
            else:
                items[prefix + name] = list(value) if isinstance(value, tuple) else value
        return items

    before, now = flat(stored), flat(dataclasses.asdict(config))
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if name.split(".")[0] not in FREE_TO_CHANGE and before.get(name) != now.get(name)
    ]
