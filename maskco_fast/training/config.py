"""The configuration of a training run: frozen dataclasses, validated on creation.

The options of `maskco-fast train` are derived from `TrainConfig`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from maskco_fast.evaluation.monitor import MonitorConfig
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import LOADERS, RemoteConfig
from maskco_fast.loaders.config import SCAN_INDEX_GB
from maskco_fast.loaders.order import check_block
from maskco_fast.loaders.shards.names import redact
from maskco_fast.loggers import LOGGERS
from maskco_fast.methods.registry import METHODS, MethodFields, find_method
from maskco_fast.methods.view_options import ViewOptions
from maskco_fast.networks.config import ModelConfig, group_length
from maskco_fast.training.optimizer import OptimizerConfig

MAY_CHANGE: Mapping[str, bool] = {"may_change": True}
"""Metadata of the fields that a resumed run may change; the others must equal the checkpoint's."""

if TYPE_CHECKING:
    LoaderName = str
else:
    LoaderName = Literal[tuple(["auto", *LOADERS])]
    """"auto" or a name in `LOADERS`; `--help` lists them."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the training loop needs of any run: pre-training, or probes on frozen features."""

    run_dir: pathlib.Path = field(default=pathlib.Path("runs/maskco"), metadata=MAY_CHANGE)
    """Output folder: metrics.jsonl, quarantine.json, config.json, checkpoints/ and tensorboard/."""
    max_steps: int = field(default=500_000, metadata=MAY_CHANGE)
    """Optimiser steps in total, over which all schedules stretch (paper: 500k)."""
    batch_size: int = 256
    """Images per step over all processes; a multiple of the group size, or at most one group."""
    accumulate: int = field(default=1, metadata=MAY_CHANGE)
    """Micro-batches per process and step: the same gradients in less memory. BatchNorm's running
    statistics move once per micro-batch."""
    seed: int = 0
    """Seed of the weights, the order and the augmentations."""
    checkpoint_every: int = field(default=1000, metadata=MAY_CHANGE)
    """Steps between checkpoints; a last one is written at the end and on SIGTERM or Ctrl-C."""
    keep_checkpoints: int = field(default=3, metadata=MAY_CHANGE)
    """Number of newest checkpoints kept on disk."""
    keep_steps: tuple[int, ...] = field(default=(), metadata=MAY_CHANGE)
    """Steps whose checkpoints are written and kept as well, for curves over a run's length."""
    resume: bool = field(default=True, metadata=MAY_CHANGE)
    """Continue from the run folder's newest intact checkpoint, if there is one. With --no-resume a
    run folder that has checkpoints is an error."""
    log_every: int = field(default=10, metadata=MAY_CHANGE)
    """Steps between progress lines and TensorBoard entries, and on CUDA between reads of the
    losses. metrics.jsonl has a line for every step in any case."""
    tensorboard: bool = field(default=True, metadata=MAY_CHANGE)
    """Write TensorBoard event files; --no-tensorboard leaves tensorboard out of --loggers."""
    loggers: str = field(default="jsonl,tensorboard", metadata=MAY_CHANGE)
    """Where the steps are logged, names with commas between: jsonl (metrics.jsonl, written in any
    case), tensorboard, wandb, trackio, mlflow. The last three are optional packages."""
    log_samples: bool = field(default=False, metadata=MAY_CHANGE)
    """Write samples.jsonl: one line per step with the ids (hashes of the keys) of its images, in
    the order of the epoch."""
    device: str = field(default="auto", metadata=MAY_CHANGE)
    """auto, cpu, cuda or cuda:N; auto is CUDA where available."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(default="auto", metadata=MAY_CHANGE)
    """Precision of the networks' autocast. auto: bf16 on CUDA and on CPUs with bf16 instructions
    (AMX or AVX512-BF16); fp32 on other CPUs, where bf16 is emulated and slower. fp16 requires
    CUDA."""
    tf32: bool = field(default=False, metadata=MAY_CHANGE)
    """CUDA: round float32 products and convolutions to TF32, with 10 bits of fraction. That is all
    of the networks with fp32, and losses and RoIAlign's averages with the others."""
    cudnn_benchmark: bool = field(default=True, metadata=MAY_CHANGE)
    """CUDA: cuDNN times its algorithms in the first step and takes the fastest. Without it a
    resumed run takes the same ones, as bit-equal losses require."""
    compile: bool = field(default=False, metadata=MAY_CHANGE)
    """Pass the method through torch.compile (on the CPU this requires a C++ compiler)."""
    cuda_graphs: bool = field(default=False, metadata=MAY_CHANGE)
    """Replay the whole step as one CUDA graph, which frees the host; the fastest on CUDA. For one
    process, and methods whose arithmetic is the same in every step: all but byol."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

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
                raise InvalidInput(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in self.logger_names:
            if name not in LOGGERS:
                raise InvalidInput(f"`loggers` must be of {', '.join(LOGGERS)}, got {name!r}.")

    @property
    def logger_names(self) -> list[str]:
        """The names in `loggers`, each once."""
        names = dict.fromkeys(name.strip() for name in self.loggers.split(","))
        return [name for name in names if name and (name != "tensorboard" or self.tensorboard)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, MethodFields):
    """One training run."""

    # May change: the loader's own state compares the shards' content, not how they are spelled.
    shards: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images. None: the built-in demo set."""
    config: pathlib.Path | None = field(default=None, metadata=MAY_CHANGE)
    """JSON file with options, such as another run's config.json or a part of it. The options of the
    command line win over the file's, and the file's over the recipe's."""
    recipe: str = field(default="paper", metadata=MAY_CHANGE)
    """Recipe that sets the defaults."""
    loader: LoaderName = field(default="auto", metadata=MAY_CHANGE)
    """Loader backend; dali and ffcv are optional packages. auto measures the installed ones on the
    run's shards for a few seconds and stores its choice in loader.json."""
    loader_threads: int | None = field(default=None, metadata=MAY_CHANGE)
    """Threads of the loader; None leaves the choice to the loader."""
    loader_process: bool = field(default=False, metadata=MAY_CHANGE)
    """Make the batches in a process of their own, so that the step's Python and the loader's do not
    share an interpreter lock; the batches are the same."""
    # May change: the loader's state has it, and refuses another one that is given.
    shuffle_block: int | Literal["all"] | None = field(default=None, metadata=MAY_CHANGE)
    """Shards that are shuffled together, and so read at the same time, or all. None: all on this
    machine's disks, 16 of shards on servers or network file systems; a resumed run keeps its own.
    """
    labels: str | None = None
    """Where labels are read from: cls, json:FIELD or folder. For methods that use them; None needs
    no labels."""
    decode: Literal["exact", "fast"] = "exact"
    """fast (native and ffcv): decode images whose crops allow it at 1/2, 1/4 or 1/8 size with
    libjpeg's fast IDCT; the others as with exact."""
    scan_index_gb: float = field(default=SCAN_INDEX_GB, metadata=MAY_CHANGE)
    """Most gigabytes of scan indexes beside the shards' indexes, 0 for none. Found in the first
    epoch, they let later ones read only the parts of a JPEG that its crops need."""
    model: ModelConfig = field(default_factory=ModelConfig)
    views: ViewOptions = field(default_factory=ViewOptions)
    monitor: MonitorConfig = field(default_factory=MonitorConfig, metadata=MAY_CHANGE)
    remote: RemoteConfig = field(default_factory=RemoteConfig, metadata=MAY_CHANGE)

    def __post_init__(self) -> None:
        MethodFields.__post_init__(self)
        RunConfig.__post_init__(self)
        if self.batch_size < 2:
            raise InvalidInput(
                "`batch_size` must be at least 2, got 1: images are contrasted with each other."
            )
        if self.batch_size > self.model.group_size and self.batch_size % self.model.group_size:
            raise InvalidInput(
                f"`batch_size` must be a multiple of the group size, {self.model.group_size}, "
                f"or at most one group, got {self.batch_size}: "
                "change --batch-size or --model.group-size."
            )
        if self.loader_threads is not None and self.loader_threads < 1:
            raise InvalidInput(
                f"`loader_threads` must be at least 1 or None, got {self.loader_threads}."
            )
        if self.shuffle_block is not None:
            check_block(self.shuffle_block, "shuffle_block")
        if find_method(self.method).method.spans_whole_batch and self.accumulate > 1:
            raise InvalidInput(
                f"`accumulate` must be 1 for {self.method}, got {self.accumulate}: its loss or "
                "its BatchNorm spans all images of a step. Lower --batch-size to save memory."
            )

    def images_per_process(self, processes: int) -> int:
        """Return the images of a step for each of `processes`.

        InvalidInput where the micro-batches would not consist of whole groups.
        """
        group = group_length(self.batch_size, self.model.group_size)
        groups = self.batch_size // group
        if groups % (processes * self.accumulate):
            unit = self.model.group_size * processes * self.accumulate
            works = -(-self.batch_size // unit) * unit
            raise InvalidInput(
                f"The number of groups must be a multiple of {processes} processes times "
                f"{self.accumulate} micro-batches, got {groups} ({self.batch_size} images in "
                f"groups of {group}). Give `--batch-size {works}`, or change the number of "
                "processes, --accumulate or --model.group-size."
            )
        return self.batch_size // processes


def public(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts for what is written: addresses redacted, secrets left out.

    A resumed run gets both from its own command line.
    """
    values: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if one.metadata.get("secret"):
            continue
        values[one.name] = public(value) if dataclasses.is_dataclass(value) else redact(value)
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested configurations by dotted name, such as "model.trunk"."""
    items: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            items.update(flatten(value, f"{prefix}{name}."))
        else:
            items[prefix + name] = list(value) if isinstance(value, tuple) else value
    return items


def differences(stored: dict, config: RunConfig) -> list[str]:
    """Compare a checkpoint's `public(config)` with the config of a resumed run.

    Returns a line `field: stored -> now` for each field that differs and is not `MAY_CHANGE`. Other
    methods' configs are not compared. A field that is younger than the checkpoint counts as stored
    with its default, which is how the run behaved before the field existed.
    """
    may_change = {one.name for one in dataclasses.fields(config) if one.metadata == MAY_CHANGE}
    if isinstance(config, MethodFields):
        may_change |= METHODS.keys() - {config.method}
    before = {**flatten(public(type(config)())), **flatten(redact(stored))}
    now = flatten(public(config))
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if name.split(".")[0] not in may_change and before.get(name) != now.get(name)
    ]
