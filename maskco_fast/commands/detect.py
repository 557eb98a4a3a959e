"""The `detect` command: fine-tune a detector from pre-trained weights and test it."""

import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any

from maskco_fast.commands.train import choice
from maskco_fast.demo.detection import demo_detection
from maskco_fast.detection.annotations import AnnotatedSet, read_annotations, trainable
from maskco_fast.detection.batches import DetectionLoader
from maskco_fast.detection.config import RECIPES, DetectConfig, DetectionRun
from maskco_fast.detection.masks import mask_tools
from maskco_fast.detection.network import DetectionMethod, make_detector
from maskco_fast.detection.testing import Evaluation, Tester
from maskco_fast.errors import SUCCESS, say
from maskco_fast.evaluation.paper import PAPER_ROWS
from maskco_fast.evaluation.results import write_result
from maskco_fast.evaluation.weights import read_weights
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.cpus import loader_threads
from maskco_fast.loaders.system.files import write_json
from maskco_fast.pictures.detections import detections_picture
from maskco_fast.progress import ProgressLines, duration
from maskco_fast.run_lock import lock_run_folder
from maskco_fast.training.config import public
from maskco_fast.training.devices import choose_device, configure_cuda, keep_freed_memory
from maskco_fast.training.distributed import World, join, local_rank
from maskco_fast.training.trainer import Trainer


def defaults(arguments: Sequence[str]) -> DetectConfig:
    """The configuration of `--recipe`, which the other options change."""
    return RECIPES[choice(arguments, "--recipe", "voc", RECIPES)]()


def detect(config: DetectConfig) -> int:
    """Train and test the detector; prints a table and returns the exit code.

    Writes detect.json and detections.png into `config.out`, and the rest into `config.run_dir`. A
    signal ends the training with a checkpoint, from which the same command resumes; the detector is
    tested once it is trained. Under torchrun this runs once a rank, and rank 0 writes and prints.
    """
    began = time.monotonic()
    device = choose_device(config.device, local_rank())
    if device.type == "cpu":
        keep_freed_memory()
    # Images differ in size, so that cuDNN would time its algorithms in nearly every step.
    configure_cuda(device, cudnn_benchmark=False)
    if config.rule == "coco" or config.model.masks:
        mask_tools()  # a missing package is reported before the training
    with join(device) as world, contextlib.ExitStack() as stack:
        if world.is_rank_zero:
            stack.enter_context(lock_run_folder(config.run_dir))
        weights = read_weights(
            config.weights, network=config.network, trunk=config.model.trunk, seed=config.seed
        )
        run = config.run(weights)
        train, val = _read_data(config, world)
        trainer, tester = make_trainer(config, run, weights.trunk_state, train, val, world)
        if world.is_rank_zero:
            write_json(config.run_dir / "config.json", public(run))
            kind = "Mask R-CNN" if run.model.masks else "Faster R-CNN"
            say(
                f"{config.recipe}: {kind} C4 from {weights.title()}, {run.batch_size} images a "
                f"step, {trainer.precision} on {device}; {len(trainer.loader.images)} images to "  # type: ignore[attr-defined]
                f"train on, {len(val.images)} to test on; into {config.run_dir}"
            )
        stopped_by = trainer.fit()
        if stopped_by is not None:
            if world.is_rank_zero:
                say(trainer.stop_message(stopped_by))
            return SUCCESS
        evaluation = tester.last
        if evaluation is None or run.max_steps % tester.every:
            evaluation = tester.test(trainer.method)  # type: ignore[arg-type]
        if world.is_rank_zero and evaluation is not None:
            _report(config, run, val, evaluation)
            say(f"done: {run.max_steps} steps in {duration(time.monotonic() - began)}")
    return SUCCESS


def make_trainer(
    config: DetectConfig,
    run: DetectionRun,
    trunk_state: dict[str, Any],
    train: AnnotatedSet,
    val: AnnotatedSet,
    world: World,
) -> tuple[Trainer, Tester]:
    """The training loop of the detector, and its tests."""
    if train.classes != val.classes:
        raise InvalidInput(
            f"`train` and `val` must have the same classes, got {', '.join(train.classes)} and "
            f"{', '.join(val.classes)}."
        )
    threads = config.threads or loader_threads(
        choose_device(config.device, world.local_rank).type, world.local_size
    )
    loader = DetectionLoader(
        trainable(train),
        run.batch_size,
        short_sides=run.short_sides,
        long_side=run.long_side,
        seed=run.seed,
        threads=threads,
        rank=world.rank,
        world_size=world.size,
    )
    detector = make_detector(
        run.model,
        trunk_state,
        classes=len(train.classes),
        processes=world.size,
        seed=run.seed,
    )
    method = DetectionMethod(detector, seed=run.seed, rank=world.rank)
    trainer = Trainer(run, method, loader, world)  # type: ignore[arg-type]
    tester = Tester(
        config,
        val,
        loader,
        device=trainer.device,
        precision=trainer.precision,
        threads=threads,
        world=world,
    )
    trainer.monitor = tester  # type: ignore[assignment]
    return trainer, tester


def _read_data(config: DetectConfig, world: World) -> tuple[AnnotatedSet, AnnotatedSet]:
    """The images to train on and to test on."""
    root = config.data
    if root is None:
        if config.recipe != "demo":
            raise InvalidInput(
                f"`data` must be the folder of the images for the recipe {config.recipe}: "
                "give --data, or --recipe demo for the built-in scenes."
            )
        with world.local_rank_zero_first():
            root = demo_detection(progress=ProgressLines())
    masks = config.model.masks
    train = read_annotations(config.train, root=root, masks=masks)
    return train, read_annotations(config.val, root=root, masks=masks)


def _report(
    config: DetectConfig, run: DetectionRun, val: AnnotatedSet, evaluation: Evaluation
) -> None:
    """Write detect.json and detections.png, and print the table."""
    out = config.out if config.out is not None else config.run_dir
    result: dict[str, Any] = {
        "AP": evaluation.boxes.ap,
        "AP50": evaluation.boxes.ap50,
        "AP75": evaluation.boxes.ap75,
        "rule": config.rule,
        "images": len(val.images),
        "classes": list(val.classes),
        "AP_by_class": evaluation.boxes.by_class,
    }
    if evaluation.masks is not None:
        result["masks"] = {
            "AP": evaluation.masks.ap,
            "AP50": evaluation.masks.ap50,
            "AP75": evaluation.masks.ap75,
            "AP_by_class": evaluation.masks.by_class,
        }
    result |= {
        "recipe": config.recipe,
        "steps": run.max_steps,
        "batch_size": run.batch_size,
        "learning_rate": config.learning_rate,
        "seed": run.seed,
        "trunk": run.model.trunk,
        "weights": run.weights,
        "tests": _tests(config),
    }
    write_json(out / "detect.json", result)
    if config.pictures:
        detections_picture(val, evaluation.found, out / "detections.png", count=config.pictures)
    if config.json != "-":
        print(table(result), flush=True)
    write_result("detect", result, config.json, config.weights)


def _tests(config: DetectConfig) -> list[dict[str, float]]:
    """The tests during training: step and figures, from metrics.jsonl."""
    with (config.run_dir / "metrics.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    names = ("step", "AP", "AP50", "AP75", "mask_AP", "mask_AP50")
    return [{name: line[name] for name in names if name in line} for line in lines if "AP" in line]


def table(result: dict[str, Any]) -> str:
    """AP, AP50 and AP75 of a detect.json; for the recipe voc beside the paper's rows."""
    rows = {f"this run, {result['steps']} steps, boxes": result}
    if "masks" in result:
        rows[f"this run, {result['steps']} steps, masks"] = result["masks"]
    if result["recipe"] == "voc":
        rows |= {f"paper: {row.method}, {row.pretraining}": vars(row) for row in PAPER_ROWS}
    width = max(map(len, rows))
    columns = ("AP", "AP50", "AP75")
    lines = [f"{'':{width}}" + "".join(f" {name:>5}" for name in columns)]
    for name, row in rows.items():
        lines.append(f"{name:{width}}" + "".join(f" {row[column]:5.1f}" for column in columns))
    return "\n".join(lines)
