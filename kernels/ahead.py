"""Compilation of kernels ahead of their first call.

Each job compiles one large kernel into the cache directory, by calling it with next to nothing or
asking for its address. Nothing here imports torch, which takes longer than a small job.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from numba.core.registry import cpu_target

from . import headers, tar
from .compiler.cache import cache_folder
from .compiler.jit import source_stamp
from .jpeg.checkpoints import checksum, find_checkpoints
from .plan import plan
from .reading import read_parts
from .render.records import RecordRenderer
from .views import ViewConfig


def _index() -> None:
    archive = np.frombuffer(bytes(1024), np.uint8)  # read-only, as a mapped shard is
    tar.walk_tar(archive)
    offsets, verdicts, sides = np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.int32)
    headers.scan_headers(archive, offsets, offsets, verdicts, sides, sides, verdicts)


def _plan() -> None:
    one = np.ones(1, np.int64)
    plan(ViewConfig.maskco(), 0, 0, one, one, one)


def _decode() -> None:
    nothing = np.empty(0, np.int64)
    read_parts(nothing, nothing, nothing, np.empty(0, np.uint8), nothing)
    assert _renderer()[0].decode_address


def _checkpoints() -> None:
    checksum(b"")
    find_checkpoints(b"")  # what an index of scans calls besides the kernel of `_decode`
    assert _renderer()[0].at_checkpoints_address


def _records() -> None:
    assert _renderer()[0].record_address  # the loop over records is that of JPEGs, of `_render`


def _render(dtype: str) -> None:
    renderer, rows = _renderer(dtype)
    assert renderer.render_address  # first: the next line waits for the process that does `decode`
    out = np.zeros(renderer.config.layout.elements, renderer.buffer_dtype)
    renderer.render_jpegs([b"\xff"], np.full((1, 2), 8), rows, np.zeros(1, np.int64), out)


def _resize() -> None:
    renderer, rows = _renderer()
    assert renderer.resize_address
    out = np.zeros(renderer.config.layout.elements, np.uint8)
    renderer.resize_jpegs([b"\xff"], np.full((1, 2), 8), rows, np.zeros(1, np.int64), out)


def _renderer(dtype: str = "float32") -> tuple[RecordRenderer, np.ndarray]:
    """A renderer and the plan row of an empty crop, (1, columns) float32."""
    renderer = RecordRenderer(ViewConfig.maskco(), dtype)
    return renderer, np.zeros((1, renderer._columns), np.float32)


JOBS: dict[str, Callable[[], None]] = {
    "decode": _decode,
    "records": _records,
    "render-float32": functools.partial(_render, "float32"),
    "resize": _resize,
    "checkpoints": _checkpoints,
    "index": _index,
    "plan": _plan,
    "render-float16": functools.partial(_render, "float16"),
    "render-uint8": functools.partial(_render, "uint8"),
}
"""By name."""


def is_compiled(job: str) -> bool:
    """Whether a job has run, for these sources and this CPU, with the present cache directory."""
    return _marker(job).exists()


def run_jobs(jobs: Sequence[str]) -> None:
    """Run jobs in this process and note that they have run."""
    for job in jobs:
        if not is_compiled(job):
            JOBS[job]()
            _marker(job).touch()


def compiled_folder() -> pathlib.Path:
    """The folder of machine code of these sources."""
    return cache_folder("numba") / source_stamp()


def _marker(job: str) -> pathlib.Path:
    cpu = repr(cpu_target.target_context.codegen().magic_tuple()).encode()
    return compiled_folder() / f"{job}-{hashlib.sha256(cpu).hexdigest()[:12]}.compiled"
