"""All measurements on a GPU, in parts that cannot stop each other; `make gpu-check`.

    python -m benchmarks.gpu --out gpu-report
    python -m benchmarks.gpu --parts probe values step --limit-s 230

Each part is a process with a time limit of its own. It writes its results after every one into
PART.json, and its output into PART.log; session.json joins them after every part. A part begins
only if enough of `--limit-s` is left. Nothing is installed: packages that the machine lacks may lie
as wheels in `.gpu/whl` of the checkout, and are unpacked. `--device cpu` runs all parts at small
sizes without a GPU.
"""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu import ROOT
from benchmarks.gpu.photographs import copy_shards

WHEELS = ROOT / ".gpu" / "whl"
"""Wheels of packages that the machine lacks."""
PHOTOGRAPHS = ROOT / ".gpu" / "data"
"""Shards whose copies are read, unless `--shards` names others."""
DRY_RUN = 10
"""Factor of the parts' time limits in a dry run: CPUs are slower."""
COPIES = 256
"""Shards made of them: epochs of so many batches that what happens between two counts little."""
LEAST = 12
"""Seconds left with which a part still begins."""
SPARE = 5
"""Seconds kept back from the last part, to join the results."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure everything on this machine's GPU."""

    parts: tuple[str, ...] = ()
    """Names of parts, in their order (default: all)."""
    limit_s: float = 900.0
    """Seconds for all parts together."""
    out: pathlib.Path = pathlib.Path("gpu-report")
    """Folder of the results."""
    shards: str | None = None
    """Shards of photographs for the parts that load. None: copies of those in `.gpu/data`, or the
    built-in demo set."""
    device: str = "cuda"
    """cuda, or cpu for a dry run at small sizes."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A process of the session."""

    seconds: float
    """At most."""
    answers: str
    command: str
    """Module of `benchmarks.gpu` and arguments; `{shards}` and `{out}` are filled in."""
    small: str
    """Further arguments of a dry run."""

    def arguments(self, options: Options, out: pathlib.Path, shards: str) -> list[str]:
        """Arguments of python, but for `--json`."""
        dry = "" if options.device.startswith("cuda") else self.small
        text = f"{self.command} {dry}".format(shards=shlex.quote(shards), out=shlex.quote(str(out)))
        module, *others = shlex.split(text)
        return ["-m", f"benchmarks.gpu.{module}", *others]


SMALL_CHECK = "--device cpu --batch 4 --size 32 --checked 4 --repeats 2 --calls 1"
SMALL_STEP = "--device cpu --trunk resnet18 --batch 8 --group 4 --size 64 --warm 1 --steps 2"

PARTS: Mapping[str, Part] = {
    "probe": Part(
        seconds=25,
        answers="versions; copies, products, PCIe, launches: the ceilings",
        command="probe",
        small="--device cpu --rounds 2",
    ),
    "values": Part(
        seconds=60,
        answers="the device kernels' values against torchvision's operators",
        command="check --only values",
        small=SMALL_CHECK,
    ),
    "step": Part(
        seconds=150,
        answers="the step by variants: ms, launches, busy share, kernels by name",
        command="step --variants eager cuda-graphs torch-batch-norm one-group fp16 "
        "--profile {out}/step-kernels.txt",
        small=f"{SMALL_STEP} --variants eager",
    ),
    "tests": Part(
        seconds=80,
        answers="the tests marked gpu",
        command="marked_tests",
        small="--processes 1 --arguments='-m gpu tests/maskco_fast/training/test_meter.py'",
    ),
    "augmentation": Part(
        seconds=40,
        answers="each augmentation kernel: microseconds, GB/s, registers",
        command="augmentation",
        small="--device cpu --batch 4 --size 32 --calls 2",
    ),
    "batch_norm": Part(
        seconds=40,
        answers="each BatchNorm kernel by layer: microseconds, TB/s",
        command="batch_norm",
        small="--device cpu",
    ),
    "times": Part(
        seconds=75,
        answers="the augmentation beside a copy and other libraries",
        command="check --only times",
        small=SMALL_CHECK,
    ),
    "train": Part(
        seconds=110,
        answers="the loader alone, and steps that it feeds: data wait, idle share",
        command="step --variants cuda-graphs --shards {shards} --profile {out}/train-kernels.txt",
        small=f"{SMALL_STEP} --variants eager --train-steps 3 --loader-seconds 0.2",
    ),
    "run": Part(
        seconds=80,
        answers="train by the command line, and its resumption",
        command="run --shards {shards}",
        small="--steps 2 --resumed-steps 3 "
        "--arguments='--recipe demo --loader native --batch-size 8 --model.group-size 4'",
    ),
    "commands": Part(
        seconds=150,
        answers="the other commands on the device and on the CPU; torchrun with NCCL",
        command="commands",
        small="--device cpu --steps 4 --detector-steps 2 --seconds 300",
    ),
    "dali": Part(
        seconds=110,
        answers="DALI's device graph: values with a lagging device, images/s",
        command="dali --shards {shards}",
        small="--device cpu --batch 4 --batches 2 --timed-batch 4 --size 64 --seconds 0.2",
    ),
    "rows": Part(
        seconds=150,
        answers="our loader beside DALI, nvJPEG and nvImageCodec on the GPU: images/s",
        command="rows --shards {shards}",
        small="--rows native_gpu cached_batch --batch 4 --size 32 --rounds 1 --seconds 0.1",
    ),
    "compiled": Part(
        seconds=120,
        answers="the step with --compile",
        command="step --variants compile --seconds-a-variant 50",
        small=f"{SMALL_STEP} --variants compile --group 8 --force-backend aot_eager",
    ),
}
"""By name, in the order of a session: what the others rest on comes first."""


def run_part(
    name: str, arguments: Sequence[str], seconds: float, out: pathlib.Path
) -> dict[str, Any]:
    """Run a part for at most `seconds`; returns its exit code, time and results, and never raises.

    The exit code is 124 where the time ran out. Results are those written until then.
    """
    result = out / f"{name}.json"
    result.unlink(missing_ok=True)
    began = time.monotonic()
    with (out / f"{name}.log").open("wb") as log:
        # A session of its own: processes that a part has started end with it.
        process = subprocess.Popen(
            [sys.executable, *arguments, "--json", str(result)],
            cwd=ROOT,
            env=_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = 124
        finally:
            _kill(process)
    entry: dict[str, Any] = {
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 1),
        "results": None,
    }
    try:
        entry["results"] = json.loads(result.read_text())
    except (OSError, ValueError) as error:
        entry["note"] = f"no results: {error}; see {name}.log"
    return entry


def _environment() -> dict[str, str]:
    """The parts' environment: this process's import path, output as it comes."""
    path = [str(ROOT), *(entry for entry in sys.path if entry)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a part's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def use_wheels(folder: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Unpack the wheels in `folder` for this process and its parts; returns their names."""
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    if wheels:
        sys.path.append(str(target))  # behind the machine's own packages
    return [wheel.name for wheel in wheels]


def _shards(options: Options, work: pathlib.Path) -> str:
    """The photographs' pattern; the demo set's without any."""
    if options.shards is not None:
        return options.shards
    if any(PHOTOGRAPHS.glob("*.tar")):
        return copy_shards(PHOTOGRAPHS, work / "shards", COPIES)
    from maskco_fast.demo.shards import demo_shards

    return str(pathlib.Path(demo_shards()[0]).parent / "*.tar")


def run_session(
    parts: Mapping[str, tuple[float, Sequence[str]]], limit_s: float, out: pathlib.Path
) -> dict[str, Any]:
    """Run parts, given as (seconds, arguments), one after the other; returns their entries."""
    began = time.monotonic()
    entries: dict[str, Any] = {}
    for name, (most, arguments) in parts.items():
        left = limit_s - (time.monotonic() - began)
        if left < LEAST:
            entries[name] = {"exit_code": None, "seconds": 0.0, "note": f"left out, {left:.0f} s"}
        else:
            print(f"== {name}: at most {min(most, left - SPARE):.0f} s", flush=True)
            entries[name] = run_part(name, arguments, min(most, left - SPARE), out)
        print(f"-- {name}: exit code {entries[name]['exit_code']}", flush=True)
        # After every part: a session that is cut off keeps what it has.
        (out / "session.json").write_text(json.dumps(entries, indent=1) + "\n")
    return entries


def main(options: Options) -> int:
    """Run the parts and print a line for each; 0 where all have succeeded."""
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        print(f"there is no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        shards = _shards(options, pathlib.Path(work))
        patience = 1 if options.device.startswith("cuda") else DRY_RUN
        commands = {
            name: (PARTS[name].seconds * patience, PARTS[name].arguments(options, out, shards))
            for name in options.parts or tuple(PARTS)
        }
        entries = run_session(commands, options.limit_s, out)
    for name, entry in entries.items():
        code = "left out" if entry["exit_code"] is None else f"exit code {entry['exit_code']}"
        print(f"{name:14}{code:14}{entry['seconds']:>6} s   {PARTS[name].answers}")
    print(f"written to {out / 'session.json'}")
    return int(any(entry["exit_code"] != 0 for entry in entries.values()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as unpacked:
        use_wheels(WHEELS, pathlib.Path(unpacked))
        import tyro

        sys.exit(main(tyro.cli(Options)))
