"""The bench's results as a table with its meaning, and as JSON."""

import dataclasses
import os
from collections.abc import Sequence

from maskco_fast.bench.harness import machine, ratio_by_round
from maskco_fast.bench.rows import ROWS
from maskco_fast.bench.timing import Result
from maskco_fast.loaders.system.files import write_json


def table(results: Sequence[Result], gpu_images_per_s: float) -> str:
    """The table that `bench` prints, with the figures' meaning below it."""
    ours = next((result for result in results if result.kind == "ours" and result.rounds), None)
    lines = [
        machine(),
        f"{'row':18}{'images/s':>10}{'slowest-fastest':>18}{'CPU ms':>9}{'peak MB':>9}"
        f"{'decode':>8}{'ratio':>8}  parity",
    ]
    for result in results:
        if result.images_per_s is None:
            lines.append(f"{result.name:18}{'-':>10}  {result.error}")
            continue
        spread = f"{result.spread[0]:.0f}-{result.spread[1]:.0f}"
        share = f"{result.of_decoding:.0%}" if result.of_decoding is not None else "-"
        ratio = "-"
        if ours is not None and result is not ours:
            ratio = f"{ratio_by_round(ours.rounds, result.rounds).median:.2f}x"
        lines.append(
            f"{result.name:18}{result.images_per_s:>10.0f}{spread:>18}"
            f"{result.cpu_ms_per_image:>9.2f}{result.peak_mb:>9.0f}{share:>8}{ratio:>8}"
            f"  {result.parity}"
        )
    lines.append(
        "decode: images/s over decode_only's in the same round; "
        "ratio: our first row over this one, likewise"
    )
    return "\n".join(lines + pairs(results) + meaning(results, gpu_images_per_s))


def pairs(results: Sequence[Result]) -> list[str]:
    """Each peer against the row of ours that does the same work, where both were timed."""
    timed = {result.name: result for result in results if result.rounds}
    lines = []
    for name, peer in timed.items():
        mine = timed.get(ROWS[name].beside)
        if mine is not None and peer.cpu_ms_per_image:
            speed = ratio_by_round(mine.rounds, peer.rounds).median
            cpu = (mine.cpu_ms_per_image or 0) / peer.cpu_ms_per_image
            lines.append(
                f"{mine.name} against {name}: {speed:.2f}x the images/s, {cpu:.2f} of the CPU time"
            )
    return lines


def meaning(results: Sequence[Result], gpu_images_per_s: float) -> list[str]:
    """What the figures mean for the user, in sentences about our first row."""
    ours = next((result for result in results if result.kind == "ours" and result.rounds), None)
    if ours is None or ours.cpu_ms_per_image is None:
        return []
    timed = {result.name: result for result in results if result.rounds}
    lines = []
    decoding = timed.get("decode_only")
    if decoding is not None and decoding.cpu_ms_per_image is not None:
        lines.append(
            f"{ours.name} takes {ours.cpu_ms_per_image:.2f} CPU-ms an image with all its views; "
            f"libjpeg-turbo's full decoding alone takes {decoding.cpu_ms_per_image:.2f}"
        )
    if "cached_batch" in timed:
        lines.append(
            "a loader that costs nothing, handing over one batch again and again: "
            f"{timed['cached_batch'].images_per_s:.0f} images/s"
        )
    cores = gpu_images_per_s * ours.cpu_ms_per_image / 1000
    lines.append(
        f"a GPU that trains {gpu_images_per_s:.0f} images/s (--gpu-images-per-s) needs "
        f"{cores:.1f} cores like these"
    )
    return lines


def write_results(path: str | os.PathLike[str], results: Sequence[Result]) -> None:
    """Write the rows as a JSON list."""
    write_json(path, [dataclasses.asdict(result) for result in results])
