"""The faster of the two ways to decode from checkpoints, by a short timing on this CPU.

AVX-512's gathers are fast on some CPUs and slow on others: on Intel's from Skylake to Ice Lake the
microcode against Downfall makes each one take hundreds of cycles.
"""

import functools
import hashlib
import logging
import pathlib
import time
from typing import Any

import numpy as np
import simplejpeg
from numba.core.registry import cpu_target

from ..compiler.cache import cache_folder
from ..compiler.features import has_avx512
from ..compiler.jit import source_stamp
from ..jpeg.checkpoints import Checkpoints, as_rows, checksum, make_table
from ..jpeg.chunks import decode_region_by_lanes, decode_region_by_streams
from ..jpeg.decode import decode_region, make_jpeg_scratch
from ..jpeg.pixels import LANES

_log = logging.getLogger(__name__)

_SIDE = 384
"""Sides of the image that is decoded, pixels."""
_ROUNDS = 7
_KERNELS = {"lanes": decode_region_by_lanes, "streams": decode_region_by_streams}


@functools.cache
def fastest_from_checkpoints() -> Any:
    """`decode_region_by_lanes` or `decode_region_by_streams`, whichever is faster on this CPU.

    Without AVX-512 the former is not even compiled. The choice is stored beside the machine code,
    so that later processes do not time it again.
    """
    if not has_avx512():
        return decode_region_by_streams
    path = _choice_path()
    try:
        chosen = path.read_text()
    except OSError:
        chosen = ""
    if chosen not in _KERNELS:
        times = time_kernels()
        chosen = min(times, key=times.__getitem__)
        _log.info("decoding from checkpoints by %s: %s s an image", chosen, times)
        try:
            path.write_text(chosen)
        except OSError as error:  # a full disk
            _log.info("the choice is not stored: %s", error)
    return _KERNELS[chosen]


def time_kernels() -> dict[str, float]:
    """Seconds of each way to decode an image of noise, the least of several interleaved rounds."""
    noise = np.random.default_rng(0).normal(128, 20, (_SIDE, _SIDE, 3))
    data = simplejpeg.encode_jpeg(noise.clip(0, 255).astype(np.uint8), 80, "RGB", "444")
    file = np.frombuffer(data, np.uint8)
    scratch = make_jpeg_scratch(len(data), _SIDE)
    pixels = np.empty(3 * (_SIDE * _SIDE + LANES), np.uint8)
    arguments = file, len(data), _SIDE, _SIDE, 0, 0, _SIDE, _SIDE, scratch, pixels
    found = make_table(1, find=np.array([[_SIDE, _SIDE]]))
    decode_region(*arguments, found, 0)
    count = int(found.counts[0])
    checkpoints = Checkpoints(
        as_rows(found.found, count),
        np.array([0, count]),
        np.array([len(data)]),
        np.array([checksum(data)]),
    )
    table = make_table(1, checkpoints)
    times = dict.fromkeys(_KERNELS, np.inf)
    for _ in range(_ROUNDS):
        for name, kernel in _KERNELS.items():
            began = time.thread_time()
            kernel(*arguments, table, 0)
            times[name] = min(times[name], time.thread_time() - began)
    return times


def _choice_path() -> pathlib.Path:
    """Where the choice for this CPU is stored, in a folder that exists."""
    cpu = repr(cpu_target.target_context.codegen().magic_tuple()).encode()
    folder = cache_folder("numba") / source_stamp()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"checkpoints-{hashlib.sha256(cpu).hexdigest()[:12]}.choice"
