"""The configuration of a detection run and its recipes (docs/method.md, "Evaluation")."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from maskco_fast.evaluation.weights import Weights
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.networks.config import CONV5_STRIDES
from maskco_fast.training.config import MAY_CHANGE, RunConfig
from maskco_fast.training.optimizer import REFERENCE_BATCH, OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The detector: R-CNN on the res4 map of a ResNet ("C4"). Defaults: Detectron2's R50-C4."""

    trunk: Literal["resnet18", "resnet50"] = "resnet50"
    """torchvision's ResNet; res2 to res4 are the backbone, res5 is the head of every region."""
    masks: bool = False
    """Also predict a mask of each object (Mask R-CNN)."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Sides of the anchors, pixels; each in the ratios 1:2, 1:1 and 2:1."""
    roi_size: int = 14
    """Side of RoIAlign's output; res5 halves it."""
    anchors_per_image: int = 256
    """Anchors sampled for the RPN's loss."""
    rois_per_image: int = 512
    """Regions sampled for the head's loss."""
    proposals_train: tuple[int, int] = (12000, 2000)
    """The RPN's proposals in training, before and after non-maximum suppression."""
    proposals_test: tuple[int, int] = (6000, 1000)
    """The same in testing."""
    detections: int = 100
    """Most detections in an image."""
    score_threshold: float = 0.05
    """Least score of a detection."""

    def __post_init__(self) -> None:
        for name in ("roi_size", "anchors_per_image", "rois_per_image", "detections"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.anchor_sizes or min(self.anchor_sizes) < 1:
            raise InvalidInput(
                f"`anchor_sizes` must be one or more sizes of at least 1 pixel, "
                f"got {self.anchor_sizes}."
            )
        for name in ("proposals_train", "proposals_test"):
            before, after = getattr(self, name)
            if not 1 <= after <= before:
                raise InvalidInput(
                    f"`{name}` must be (before, after) with 1 <= after <= before, "
                    f"got {before} {after}."
                )


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """Fine-tune a detector from pre-trained weights, test it, and compare it with the paper's."""

    weights: str = "random"
    """Run folder, checkpoint, exported file, torchvision state dict, or random."""
    network: Literal["query", "key"] = "query"
    """The network of a run's checkpoint."""
    recipe: str = "voc"
    """Recipe that sets the defaults: voc, coco or demo."""
    data: pathlib.Path | None = None
    """Folder of the images, to which --train and --val are relative: VOCdevkit (with VOC2007 and
    VOC2012) or COCO's (with annotations, train2017 and val2017). The recipe demo makes its own."""
    train: tuple[str, ...] = ("VOC2007:trainval", "VOC2012:trainval")
    """Images to train on: FOLDER:SPLIT (VOC) or FILE.json:IMAGES (COCO)."""
    val: tuple[str, ...] = ("VOC2007:test",)
    """Images to test on, named alike."""
    rule: Literal["voc", "coco"] = "voc"
    """How AP is computed: VOC07's 11 points (difficult objects count neither way), or COCO's."""
    run_dir: pathlib.Path = pathlib.Path("runs/detect")
    """Output folder: config.json, metrics.jsonl, checkpoints/ and tensorboard/. The same command
    resumes an interrupted run."""
    out: pathlib.Path | None = None
    """Folder of detect.json and detections.png. None: the run folder."""
    json: str | None = None
    """Also write the result to this file; "-" for stdout."""
    max_steps: int = 24_000
    """Training steps."""
    batch_size: int = 16
    """Images a step over all processes."""
    learning_rate: float = 0.02
    """Learning rate after the warm-up, for `batch_size` images."""
    milestones: tuple[int, ...] = (18_000, 22_000)
    """Steps after which the rate is divided by ten."""
    warmup_steps: int = 100
    """Steps over which the rate rises linearly."""
    momentum: float = 0.9
    """Momentum of the gradients."""
    weight_decay: float = 1e-4
    """On all weights but BatchNorm's and biases."""
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Short side of a training image, drawn for each, pixels."""
    long_side: int = 1333
    """Longest long side of a training image, pixels."""
    test_short_side: int = 800
    """Short side of a test image, pixels."""
    test_long_side: int = 1333
    """Longest long side of a test image, pixels."""
    precise_bn: int = 200
    """Training batches over which BatchNorm's statistics are averaged before a test; 0: none."""
    eval_every: int | None = None
    """Steps between tests during training. None: test at the end only."""
    pictures: int = 6
    """Test images drawn in detections.png."""
    seed: int = 0
    """Seed of the new layers' weights, of the order, the sizes, the flips and the sampling."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; a last one is written at the end and on SIGTERM or Ctrl-C."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints kept on disk."""
    log_every: int = 10
    """Steps between progress lines and TensorBoard entries."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""
    threads: int | None = None
    """Images decoded and resized at a time, per process. None: one for each usable CPU."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is CUDA where available."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the convolutions; boxes and losses are float32. auto: bf16 on CUDA and on CPUs
    with bf16 instructions."""
    model: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        counts = ("max_steps", "batch_size", "checkpoint_every", "keep_checkpoints", "log_every")
        for name in (*counts, "long_side", "test_short_side", "test_long_side"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("precise_bn", "pictures", "warmup_steps"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.eval_every is not None and self.eval_every < 1:
            raise InvalidInput(f"`eval_every` must be at least 1 or None, got {self.eval_every}.")
        if self.threads is not None and self.threads < 1:
            raise InvalidInput(f"`threads` must be at least 1 or None, got {self.threads}.")
        if not self.short_sides or min(self.short_sides) < 1:
            raise InvalidInput(
                f"`short_sides` must be one or more sizes of at least 1 pixel, "
                f"got {self.short_sides}."
            )
        if not self.learning_rate > 0:
            raise InvalidInput(f"`learning_rate` must be greater than 0, got {self.learning_rate}.")
        bounds = (0, *self.milestones, self.max_steps)
        if any(one >= other for one, other in itertools.pairwise(bounds)):
            raise InvalidInput(
                f"`milestones` must be steps in ascending order, below `max_steps`, "
                f"{self.max_steps}, got {' '.join(map(str, self.milestones))}. "
                "A shorter run needs its own --milestones."
            )

    def run(self, weights: Weights) -> "DetectionRun":
        """The configuration of the training loop, from these weights.

        InvalidInput for a trunk whose conv4 map has another stride than the heads take.
        """
        if CONV5_STRIDES[weights.trunk] != 32:
            raise InvalidInput(
                "`weights` must be of resnet18 or resnet50, whose conv4 map has a stride of 16, "
                f"got {weights.trunk}."
            )
        return DetectionRun(
            run_dir=self.run_dir,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            log_every=self.log_every,
            tensorboard=self.tensorboard,
            device=self.device,
            precision=self.precision,
            optimizer=OptimizerConfig(
                learning_rate=self.learning_rate * REFERENCE_BATCH / self.batch_size,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                decay_biases=False,
                schedule="step",
                milestones=tuple(step / self.max_steps for step in self.milestones),
                warmup_steps=self.warmup_steps,
            ),
            short_sides=self.short_sides,
            long_side=self.long_side,
            model=dataclasses.replace(self.model, trunk=weights.trunk),  # type: ignore[arg-type]
            weights=weights.description,
            trunk_digest=weights.digest(),
        )


@dataclass(frozen=True, kw_only=True)
class DetectionRun(RunConfig):
    """The detector's run, as `Trainer` takes it and config.json holds it."""

    run_dir: pathlib.Path = field(default=pathlib.Path("runs/detect"), metadata=MAY_CHANGE)
    short_sides: tuple[int, ...] = ()
    long_side: int = 0
    model: DetectorConfig = field(default_factory=DetectorConfig)
    weights: dict[str, Any] = field(default_factory=dict)
    """Description of the weights."""
    trunk_digest: str = ""
    """SHA-256 of the trunk's weights: a run resumes with the same ones only."""


def voc() -> DetectConfig:
    """Faster R-CNN R50-C4 on VOC07+12: trainval of both years, tested on test2007."""
    return DetectConfig(recipe="voc")


def coco() -> DetectConfig:
    """Mask R-CNN R50-C4 on COCO train2017, tested on val2017."""
    return DetectConfig(
        recipe="coco",
        train=("annotations/instances_train2017.json:train2017",),
        val=("annotations/instances_val2017.json:val2017",),
        rule="coco",
        max_steps=180_000,
        milestones=(120_000, 160_000),
        warmup_steps=1000,
        short_sides=(640, 672, 704, 736, 768, 800),
        long_side=1200,
        model=DetectorConfig(masks=True),
    )


def demo() -> DetectConfig:
    """Mask R-CNN on ResNet-18-C4 and the built-in scenes: minutes on two CPU cores."""
    return DetectConfig(
        recipe="demo",
        train=("train.json:train",),
        val=("val.json:val",),
        rule="coco",
        max_steps=300,
        batch_size=8,
        learning_rate=0.02,
        milestones=(220, 270),
        warmup_steps=30,
        short_sides=(160, 176, 192, 208, 224),
        long_side=320,
        test_short_side=192,
        test_long_side=320,
        precise_bn=10,
        eval_every=75,
        checkpoint_every=75,
        model=DetectorConfig(
            trunk="resnet18",
            masks=True,
            anchor_sizes=(16, 32, 64, 128),
            roi_size=8,
            anchors_per_image=64,
            rois_per_image=16,
            proposals_train=(1000, 200),
            proposals_test=(500, 100),
            detections=30,
        ),
    )


RECIPES: Mapping[str, Callable[[], DetectConfig]] = {
    "voc": voc,
    "coco": coco,
    "demo": demo,
}
"""By the name that `--recipe` takes."""
