"""Our FFCV loader beside FFCV's own operators on the same .beton: CPU time and images/s, on this
machine's CPU.

    python benchmarks/ffcv_peers.py --beton in1k.beton --ffcv-ssl ../FFCV-SSL

`maskco-fast beton` writes the file. FFCV and FFCV-SSL are both called `ffcv`, so every row has a
process of its own; it compiles, runs one epoch that is not counted, and then an epoch whenever it
is its turn, so that what else the machine does falls on all rows alike. Ours make both 224 views of
each image; `ffcv_one_view` makes one, without colour; `ffcv_ssl` two, with colour jitter and
grayscale and without blur, as `ours_without_blur` does. Ours are timed only where the first batch
is the reference loader's.
"""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import tyro

from benchmarks.correctness.parity import SEAM, at_seam, gate
from maskco_fast.loaders import Loader, LoaderConfig, ViewConfig, open_dataset
from maskco_fast.loaders.system.cpus import usable_cpus


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time our FFCV loader beside FFCV's own operators."""

    beton: str
    """A file that `maskco-fast beton` wrote."""
    ffcv_ssl: pathlib.Path | None = None
    """A checkout of FFCV-SSL whose extension is built in place; None leaves its row out."""
    rounds: int = 5
    """Epochs a row that are counted."""
    batch_size: int = 50
    """Images a batch."""
    threads: int = usable_cpus()
    """Of every row."""
    row: str = ""
    """The row that this process is; set by the benchmark itself."""


def our_loader(options: Options, kind: str) -> Loader:
    """`kind`: "ours_seam" (two uint8 views, cropped and flipped), "ours" or "ours_without_blur"
    (float32)."""
    from maskco_fast.loaders.backends.ffcv import FfcvLoader
    from maskco_fast.loaders.backends.reference import ReferenceLoader

    views, seam = ViewConfig.maskco(224), kind == "ours_seam"
    if kind == "ours_without_blur":
        views = dataclasses.replace(
            views,
            views=tuple(dataclasses.replace(view, blur_probability=0.0) for view in views.views),
        )
    config = LoaderConfig(
        batch_size=options.batch_size,
        views=at_seam(views) if seam else views,
        dtype=torch.uint8 if seam else torch.float32,
        threads=options.threads,
        rank=0,
        world_size=1,
    )
    dataset = open_dataset(options.beton)
    loader = FfcvLoader(dataset, config)
    gate(loader, ReferenceLoader(dataset, config), SEAM if seam else "finished, float32")
    loader.close()
    loader.set_epoch(1)
    return loader


def one_view(options: Options) -> Iterable:
    """FFCV's own decoder with one random resized crop of 224, as its ImageNet example has it."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader as FfcvOwnLoader
    from ffcv.loader import OrderOption
    from ffcv.transforms import ToTensor

    pipeline = [RandomResizedCropRGBImageDecoder((224, 224), scale=(0.2, 1.0)), ToTensor()]
    return FfcvOwnLoader(
        options.beton,
        batch_size=options.batch_size,
        num_workers=options.threads,
        order=OrderOption.RANDOM,
        pipelines={"image": pipeline, "label": None, "sample_id": None},
    )


def two_views_ssl(options: Options) -> Iterable:
    """FFCV-SSL's way to two views: a pipeline each, both decoding (its
    examples/test_ffcv_augmentations_ssl.py)."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader as FfcvOwnLoader
    from ffcv.loader import OrderOption
    from ffcv.transforms import RandomColorJitter, RandomGrayscale, RandomHorizontalFlip, ToTensor

    def pipeline() -> list:
        return [
            RandomResizedCropRGBImageDecoder((224, 224), scale=(0.2, 1.0)),
            RandomHorizontalFlip(),
            RandomColorJitter(
                jitter_prob=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
            ),
            RandomGrayscale(gray_prob=0.2),
            ToTensor(),
        ]

    return FfcvOwnLoader(
        options.beton,
        batch_size=options.batch_size,
        num_workers=options.threads,
        order=OrderOption.RANDOM,
        pipelines={"image": pipeline(), "image2": pipeline(), "label": None, "sample_id": None},
        custom_field_mapper={"image2": "image"},
    )


ROWS: dict[str, Callable[[Options], Iterable]] = {
    "ffcv_one_view": one_view,
    "ours_seam": lambda options: our_loader(options, "ours_seam"),
    "ours": lambda options: our_loader(options, "ours"),
    "ours_without_blur": lambda options: our_loader(options, "ours_without_blur"),
    "ffcv_ssl": two_views_ssl,
}


def serve(options: Options) -> None:
    """One row's process: an epoch for every line on stdin, answered by images/s and CPU-ms an
    image."""
    warnings.filterwarnings("ignore")
    if options.row == "ffcv_ssl":
        sys.path.insert(0, str(options.ffcv_ssl))
    loader = ROWS[options.row](options)
    for _ in sys.stdin:
        images, began, cpu = 0, time.perf_counter(), time.process_time()
        for batch in loader:
            images += len(batch) if options.row.startswith("ours") else len(batch[0])
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(
            json.dumps({"images_per_s": images / seconds, "cpu_ms": 1000 * cpu / images}),
            flush=True,
        )


def epoch(process: subprocess.Popen) -> dict[str, float]:
    """One epoch of a row; RuntimeError where its process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("epoch\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(
            f"{process.args} ended with {process.wait()}; what it wrote stands above"
        )
    return json.loads(line)


def main() -> None:
    """Print the table: medians over the rounds, and the ratios that are held to a target."""
    options = tyro.cli(Options)
    if options.row:
        serve(options)
        return
    names = [name for name in ROWS if name != "ffcv_ssl" or options.ffcv_ssl is not None]
    processes = {}
    try:
        for name in names:
            command = [
                sys.executable,
                "-m",
                "benchmarks.speed.ffcv_peers",
                *sys.argv[1:],
                "--row",
                name,
            ]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            processes[name] = subprocess.Popen(command, text=True, **pipes)
            epoch(processes[name])
        rounds = [{name: epoch(processes[name]) for name in names} for _ in range(options.rounds)]
    finally:
        for process in processes.values():
            process.kill()
    print(f"{options.threads} threads, {options.rounds} rounds, median (lowest .. highest)")
    for name in names:
        rates = [entry[name]["images_per_s"] for entry in rounds]
        cpu = statistics.median(entry[name]["cpu_ms"] for entry in rounds)
        spread = f"{statistics.median(rates):7.0f} ({min(rates):.0f} .. {max(rates):.0f})"
        print(f"{name:<18} {spread:<24} images/s  {cpu:6.2f} CPU-ms an image")
    for mine, theirs, kind in (
        ("ours_seam", "ffcv_one_view", "cpu_ms"),
        ("ours_without_blur", "ffcv_ssl", "images_per_s"),
    ):
        if theirs in names:
            ratio = np.median([entry[mine][kind] / entry[theirs][kind] for entry in rounds])
            print(f"{mine} / {theirs}, {kind}: {ratio:.2f}")


if __name__ == "__main__":
    main()
