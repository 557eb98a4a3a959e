"""The `compile` command: compile the loaders' kernels ahead of the first run."""

import json as json_format
import subprocess
import time
from dataclasses import dataclass
from typing import Any, Literal

from maskco_fast.errors import FAILURE, SUCCESS, say
from maskco_fast.kernels.ahead import JOBS, is_compiled
from maskco_fast.kernels.compiler.cache import cache_folder
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.backends.compilation import (
    SHORT_JOBS,
    start_jobs,
    view_jobs,
)
from maskco_fast.loaders.system.cpus import usable_cpus
from maskco_fast.progress import ProgressLines

POLL_SECONDS = 0.1
"""Time between two looks at the processes."""


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    """Compile the native loader's kernels into the cache folder, for an image or a cluster."""

    dtype: Literal["float32", "float16", "bfloat16", "uint8", "all"] = "float32"
    """Dtype of the views on a CPU, or all of them."""
    device: Literal["cpu", "cuda", "all"] = "all"
    """Where the views are augmented: kernels of the CPU's loader, of a GPU's, or both."""
    coefficients: bool = False
    """Also the kernels that read .beton files of coefficients."""
    processes: int | None = None
    """Processes that compile at once, about 500 MB each. None: one for each available CPU."""
    json: bool = False
    """Print one JSON object instead of text."""


def compile(config: CompileConfig) -> int:
    """Compile what is missing and print the report; returns the exit code.

    InvalidInput for less than one process. FAILURE where a process failed.
    """
    began = time.monotonic()
    processes = usable_cpus() if config.processes is None else config.processes
    if processes < 1:
        raise InvalidInput(f"`--processes` must be at least 1, got {processes}.")
    jobs = _jobs(config)
    waiting = [job for job in jobs if not is_compiled(job)]
    ready = [job for job in jobs if job not in waiting]
    failed = _run(waiting, processes, ProgressLines())
    facts: dict[str, Any] = {
        "compiled": [job for job in waiting if job not in failed],
        "ready": ready,
        "failed": failed,
        "folder": str(cache_folder("numba")),
        "seconds": round(time.monotonic() - began, 1),
    }
    if config.json:
        print(json_format.dumps(facts, indent=1))
    else:
        print(
            f"compiled {', '.join(facts['compiled']) or 'nothing'} in {facts['seconds']} s; "
            f"{len(ready)} of {len(jobs)} were there; cached in {facts['folder']}"
        )
    for job in failed:
        say(f"the kernels of {job} were not compiled: run `maskco-fast doctor`, and try again")
    return FAILURE if failed else SUCCESS


def _jobs(config: CompileConfig) -> list[str]:
    """The jobs of a configuration, the longest first, as `JOBS` orders them."""
    wanted = set(SHORT_JOBS)
    if config.device != "cuda":
        dtypes = ("float32", "float16", "uint8") if config.dtype == "all" else (config.dtype,)
        for dtype in dtypes:
            wanted.update(view_jobs(dtype, seam=False))
    if config.device != "cpu":
        wanted.update(view_jobs("float32", seam=True))
    if config.coefficients:
        wanted.add("records")
    return [job for job in JOBS if job in wanted]


def _run(jobs: list[str], processes: int, progress: ProgressLines) -> list[str]:
    """Run each job in a process, at most `processes` at once; returns the failed ones."""
    waiting, failed = list(jobs), list[str]()
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                running[job] = start_jobs([job])
            time.sleep(POLL_SECONDS)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                if running.pop(job).returncode or not is_compiled(job):
                    failed.append(job)
                done = len(jobs) - len(waiting) - len(running)
                progress("groups of kernels compiled for this CPU", done, len(jobs))
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return failed
