"""Compilation of the loaders' kernels ahead of their first call, in processes of their own.

LLVM and Numba compile one function at a time in a process, so that only processes compile in
parallel. Each job compiles one large kernel into the cache directory. A loader that needs a kernel
meanwhile waits for the process that compiles it (`kernels.compiler.lock`).
"""

import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

from ...kernels import ahead
from ...kernels.ahead import compiled_folder, is_compiled
from ...kernels.compiler.lock import lock_file
from ...kernels.torch_formats import FORMATS
from ..config import LoaderConfig
from ..system.children import child_command

_log = logging.getLogger(__name__)


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


def start_jobs(jobs: Sequence[str], lock: IO[bytes] | None = None) -> "subprocess.Popen[bytes]":
    """Run jobs in a new process, which holds `lock` until it ends."""
    # Numba keeps what it makes: garbage collection would take a sixth of the time to free nothing.
    code = (
        f"import gc\ngc.disable()\nfrom {ahead.__name__} import run_jobs\nrun_jobs({tuple(jobs)!r})"
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
    lock = lock_file(compiled_folder() / "background.lock", patience=0)
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
