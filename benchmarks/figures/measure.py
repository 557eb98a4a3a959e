"""Measurements of `benchmarks.figures`: each part returns what JSON can hold."""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed import decode, scaling, step
from maskco_fast.bench.harness import machine
from maskco_fast.bench.setting import Setting
from maskco_fast.bench.stages import stages
from maskco_fast.bench.timing import time_rows
from maskco_fast.commands.bench import parse_rows
from maskco_fast.errors import say
from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.system.cpus import usable_cpus

ROWS = (
    *("native", "native_first_epoch", "native_coefficients", "dali", "ffcv"),
    *("torchvision_pil", "torchvision_v2", "lightly", "kornia", "spdl"),
    *("torchcodec", "kornia_rs", "grain"),
    *("dali_stock", "dali_dynamic", "dali_seam", "dali_roi_resize"),
    *("ffcv_without_blur", "ffcv_ssl", "ffcv_seam", "ffcv_stock"),
    *("decode_only", "cached_batch"),
)
"""All rows of the bench but the reference loader, those on a GPU, and litdata, whose workers make
batches beyond a short round, which would count against it. A row is measured once, for every table.
"""
PACKAGES = (
    *("torch", "torchvision", "numpy", "numba", "pillow", "simplejpeg"),
    *("nvidia-dali-cuda130", "ffcv", "lightly", "kornia", "spdl"),
    *("torchcodec", "kornia-rs", "litdata", "grain"),
)
"""Their versions are recorded."""


def conditions(options: Any) -> dict[str, Any]:
    """Machine, date, versions, images and options: what the figures hold for."""
    dataset = open_dataset(options.shards)
    samples = dataset.samples
    pixels = samples["height"].astype(float) * samples["width"]
    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    hidden = ("shards", "out", "from_json", "ffcv_ssl")  # paths of this machine
    found = {
        "machine": machine(),
        "cpus": usable_cpus(),
        "date": datetime.date.today().isoformat(),
        "shards": [pathlib.PurePath(name).name for name in options.shards],
        "images": {
            "count": len(dataset),
            "kilobytes": float(samples["size"].mean()) / 1000,
            "megapixels": float(pixels.mean()) / 1e6,
        },
        "versions": _versions(),
        "options": {name: value for name, value in chosen.items() if name not in hidden},
        "command": _command(options),
    }
    dataset.reader.close()
    return found


def _command(options: Any) -> str:
    """The command line of these figures: names without their folders, changed options only."""
    words = ["python -m benchmarks.figures --out docs"]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name != "out" and value != field.default:
            words.append(f"--{field.name.replace('_', '-')}")
            for one in value if isinstance(value, tuple) else (value,):
                name = pathlib.PurePath(one).name if isinstance(one, pathlib.Path) else str(one)
                words.append(f"'{pathlib.PurePath(name).name}'" if field.name == "shards" else name)
    return " ".join(words)


def _versions() -> dict[str, str]:
    """Versions of the installed `PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _setting(options: Any) -> Setting:
    return Setting(
        shards=options.shards,
        batch_size=options.batch_size,
        size=options.size,
        workers=usable_cpus(),
        dtype="float32",
        images=options.images,
        ffcv_ssl=options.ffcv_ssl,
    )


def measure_bench(options: Any) -> list[dict[str, Any]]:
    """The rows of the bench; see `Result`."""
    results = time_rows(
        parse_rows(options.rows),
        _setting(options),
        rounds=options.rounds,
        seconds=options.seconds,
        say=say,
    )
    return [dataclasses.asdict(result) for result in results]


def measure_stages(options: Any) -> dict[str, float]:
    """Milliseconds an image by stage of the native path, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return stages(_setting(options))
    finally:
        torch.set_num_threads(threads)


def measure_decode(options: Any) -> list[dict[str, Any]]:
    """The lines of the decode table."""
    found = []
    chosen = decode.Options(
        shards=options.shards, images=options.decode_images, rounds=options.decode_rounds
    )
    for line in decode.lines(chosen):
        say(decode.text(line))
        found.append(dataclasses.asdict(line))
    return found


def measure_cores(options: Any) -> dict[str, Any]:
    """Images/s over cores, with each simulated speed's share of the ideal."""
    chosen = scaling.Options(shards=options.shards, batch_size=options.batch_size)
    found = scaling.measure(chosen)
    share = {cores: found.share(cores) for cores in found.simulated}
    # By way of JSON, so that the keys are strings here as they are when read from the file.
    return json.loads(json.dumps({**dataclasses.asdict(found), "share": share}))


def measure_step(options: Any) -> dict[str, Any]:
    """Seconds by stage of the training step, plain and ours."""
    chosen = step.Options(
        trunk=options.trunk,
        size=options.size,
        batch_size=options.step_batch,
        rounds=options.rounds,
        product_side=options.product_side,
    )
    return dataclasses.asdict(step.measure(chosen))


PARTS: dict[str, Callable[[Any], Any]] = {
    "bench": measure_bench,
    "stages": measure_stages,
    "decode": measure_decode,
    "cores": measure_cores,
    "step": measure_step,
}
"""By name, in the order of measuring."""
