"""The target of JPEGs' checkpoints."""

import functools
from typing import Any

import numpy as np

from benchmarks.correctness.fuzz import seeds
from benchmarks.correctness.fuzz.memory import (
    MAX_JPEG_PIXELS,
    Finding,
    guarded_file,
    guarded_pixels,
    guarded_scratch,
    pixels_or_none,
)
from benchmarks.correctness.fuzz.mutate import Random, damage, damage_jpeg, pick
from maskco_fast.kernels import headers
from maskco_fast.kernels.compiler.features import has_avx512
from maskco_fast.kernels.jpeg.checkpoints import (
    CHECKPOINT_DTYPE,
    Checkpoints,
    checksum,
    find_checkpoints,
    make_table,
)
from maskco_fast.kernels.jpeg.chunks import decode_region_by_lanes, decode_region_by_streams
from maskco_fast.kernels.jpeg.decode import DECODED
from maskco_fast.kernels.jpeg.pixels import LANES
from maskco_fast.loaders.shards.decode import decode_pillow


@functools.cache
def _checkpoint_kernels() -> tuple[Any, ...]:
    """The ways to decode from checkpoints that this CPU has."""
    return (decode_region_by_streams, *((decode_region_by_lanes,) if has_avx512() else ()))


def check_checkpoints(data: bytes, random: Random) -> None:
    """From a JPEG's checkpoints all ways yield Pillow's pixels; from others, also of other files,
    they access nothing outside their memory."""
    height, width, scan = headers.find_ordinary_scan(np.frombuffer(data, np.uint8))
    if not scan or height * width > MAX_JPEG_PIXELS:
        return
    found = find_checkpoints(data)
    wrong = found
    if wrong is None:
        wrong = np.zeros(int(random.integers(1, 40)), CHECKPOINT_DTYPE)
        wrong["bit"] = random.integers(0, 8 * len(data), len(wrong))
    wrong = np.frombuffer(damage(random, wrong.tobytes() * 2), np.uint8)
    wrong = wrong[: CHECKPOINT_DTYPE.itemsize * (len(wrong) // 2 // CHECKPOINT_DTYPE.itemsize)]
    y, x = (2 * random.integers(0, [(height + 1) // 2, (width + 1) // 2])).tolist()
    rows, columns = random.integers(1, [height - y + 1, width - x + 1]).tolist()
    pixels = guarded_pixels()[-3 * (rows * columns + LANES) :]
    file, scratch = guarded_file()(data), guarded_scratch()
    for checkpoints in (found, wrong.view(CHECKPOINT_DTYPE)):
        if checkpoints is None:
            continue
        claimed = Checkpoints(
            checkpoints,
            np.array([0, len(checkpoints)]),
            np.array([len(data)]),
            np.array([checksum(data)]),
        )
        table = make_table(1, claimed)
        for kernel in _checkpoint_kernels():
            region = y, x, rows, columns
            verdict = kernel(file, len(data), height, width, *region, scratch, pixels, table, 0)
            if scratch.coefficients.any():
                raise Finding("coefficients are left behind")
            if checkpoints is not found:
                continue
            if verdict != DECODED:
                raise Finding("a JPEG is not decoded from its own checkpoints")
            mine = pixels[: 3 * rows * columns].reshape(rows, columns, 3)
            truth = pixels_or_none(decode_pillow, data)
            if truth is None or not np.array_equal(mine, truth[y : y + rows, x : x + columns]):
                raise Finding("decoding from checkpoints yields other pixels than Pillow")


def make_checkpoints(random: Random) -> bytes:
    data = pick(random, seeds.jpegs())
    return data if random.integers(4) == 0 else damage_jpeg(random, data)
