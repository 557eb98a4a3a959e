"""Compilation of the loaders' kernels ahead of their first call, in processes of their own.

LLVM and Numba compile one function at a time in a process, so that only processes compile in
parallel. Each job compiles one large kernel into the cache directory. A loader that needs a kernel
meanwhile waits for the process that compiles it (`kernels.compiler.lock`).
"""

import functools
import hashlib
import logging
import os
import pathlib
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np
from numba.core.registry import cpu_target

from ...kernels import headers, tar
from ...kernels.compiler.cache import cache_folder
from ...kernels.compiler.jit import source_stamp
from ...kernels.compiler.lock import lock_file
from ...kernels.formats import FORMATS
from ...kernels.jpeg.checkpoints import checksum
from ...kernels.plan import plan
from ...kernels.render_records import RecordRenderer
from ...kernels.views import ViewConfig
from ..config import LoaderConfig
from ..system.children import child_command

_log = logging.getLogger(__name__)


def _index() -> None:
    archive = np.frombuffer(bytes(1024), np.uint8)  # read-only, as a mapped shard is
    tar.walk_tar(archive)
    offsets, verdicts, sides = np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.int32)
    headers.scan_headers(archive, offsets, offsets, verdicts, sides, sides, verdicts)


def _plan() -> None:
    one = np.ones(1, np.int64)
    plan(ViewConfig.maskco(), 0, 0, one, one, one)


def _decode() -> None:
    assert _renderer()[0].decode_address


def _checkpoints() -> None:
    checksum(b"")
    assert _renderer()[0].at_checkpoints_address


def _records() -> None:
    assert _renderer()[0].record_address


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
"""By name, each compiles kernels by calling them with next to nothing."""

SHORT_JOBS = ("index", "plan")
"""Jobs whose kernels a loader needs first; it compiles them itself while processes do the rest."""

LATE_JOBS = ("checkpoints",)
"""Jobs whose kernels a loader needs last: from the second epoch on, or with a scan index."""


def loader_jobs(config: LoaderConfig) -> tuple[str, ...]:
    """The jobs whose kernels the native loader calls with this configuration."""
    return ("index", "plan", *view_jobs(FORMATS[config.dtype].name, seam=config.seam))


def view_jobs(dtype: str, *, seam: bool) -> tuple[str, ...]:
    """The jobs of views of a dtype. `seam`: they are augmented on a device."""
    render = "resize" if seam else "render-" + dtype.replace("bfloat16", "float16")  # one in memory
    return "decode", render, *LATE_JOBS


def is_compiled(job: str) -> bool:
    """Whether a job has run, for these sources and this CPU, with the present cache directory."""
    return _marker(job).exists()


def run_jobs(jobs: Sequence[str]) -> None:
    """Run jobs in this process and note that they have run."""
    for job in jobs:
        if not is_compiled(job):
            JOBS[job]()
            _marker(job).touch()


def start_jobs(jobs: Sequence[str], lock: IO[bytes] | None = None) -> "subprocess.Popen[bytes]":
    """Run jobs in a new process, which holds `lock` until it ends."""
    # Numba keeps what it makes: garbage collection would take a sixth of the time to free nothing.
    code = (
        f"import gc\ngc.disable()\n"
        f"from {__package__}.compilation import run_jobs\nrun_jobs({tuple(jobs)!r})"
    )
    return subprocess.Popen(
        child_command(code),
        pass_fds=() if lock is None else (lock.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def compile_in_background(jobs: Sequence[str]) -> None:
    """Start a process for each long job that has not run, and let one go on with the late jobs;
    returns at once.

    Nothing is started where another process of this user, also on another host, is at it.
    """
    missing = [job for job in jobs if job not in SHORT_JOBS and not is_compiled(job)]
    if not missing or os.name != "posix":
        return
    lock = lock_file(_folder() / "background.lock", patience=0)
    if lock is None:
        return
    groups = [[job] for job in missing if job not in LATE_JOBS] or [[]]
    groups[0] += [job for job in missing if job in LATE_JOBS]
    _log.warning(
        "compiling the loader's kernels for this CPU, once, in %d process%s beside this one",
        len(groups),
        "es" if len(groups) > 1 else "",
    )
    with lock:
        for group in groups:
            process = start_jobs(group, lock)
            threading.Thread(target=process.wait, daemon=True).start()  # reaps it


def _folder() -> pathlib.Path:
    return cache_folder("numba") / source_stamp()


def _marker(job: str) -> pathlib.Path:
    cpu = repr(cpu_target.target_context.codegen().magic_tuple()).encode()
    return _folder() / f"{job}-{hashlib.sha256(cpu).hexdigest()[:12]}.compiled"
