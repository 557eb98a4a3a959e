"""Kill a training run at random moments, resume it, and check that no image is lost or repeated.

    python -m benchmarks.correctness.kill_and_resume [--kills 24] [--seed 0]

Each launch runs the command with another number of loader threads, on two processes (torchrun) and
one in turn. At a random moment SIGKILL goes to a random process or to all, or SIGTERM or SIGUSR1 to
one. Sometimes the newest checkpoint is damaged before a launch. After each launch every line of
samples.jsonl is compared with the order computed from the shards and the seed: consecutive steps,
the images of each step, each image once an epoch. Prints a line a kill; exits 1 at a difference.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import tyro

from maskco_fast.demo.shards import demo_shards
from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.order import order
from maskco_fast.training import checkpoint

BATCH = 16
CHECKPOINT_EVERY = 3
STEPS_PER_LAUNCH = 6
PATIENCE = 240.0
"""Seconds without a step or an end after which a launch counts as hanging."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Kill a training run at random moments and resume it."""

    kills: int = 24
    seed: int = 0
    """Seed of the moments, the processes hit and the thread counts; the run's own seed is fixed."""
    signals: tuple[str, ...] = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1")
    """Each kill draws one of these."""
    samples: int = 150
    """Scenes of the demo set; not a multiple of the batch, so that an epoch leaves some over."""


class Failed(AssertionError):
    """The run hung, ended early or trained on the wrong images."""


class Run:
    """One training run in a folder, launched as often as needed."""

    def __init__(self, folder: pathlib.Path, options: Options) -> None:
        shards = demo_shards(folder / "data", samples=options.samples, shards=4, size=(64, 80))
        self.folder = folder / "run"
        self.max_steps = (options.kills + 1) * STEPS_PER_LAUNCH
        self._shards = [str(path) for path in shards]
        self._dataset = open_dataset(self._shards, index_folder=folder / "index")
        self.steps_an_epoch = len(self._dataset) // BATCH
        self._log = folder / "log.txt"

    def step(self) -> int:
        """The last step in metrics.jsonl."""
        lines = self._lines("metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    def _lines(self, name: str) -> list[dict]:
        """The complete lines of a file that another process may be appending to."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @contextlib.contextmanager
    def launch(self, processes: int, threads: int) -> Iterator[subprocess.Popen]:
        """Run the command on `processes` processes; kills those left at the end of the block."""
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
        ]
        options = {
            "recipe": "demo",
            "run-dir": self.folder,
            "max-steps": self.max_steps,
            "batch-size": BATCH,
            "model.view-size": 32,
            "model.group-size": BATCH // 2,
            "precision": "fp32",
            "log-every": 1,
            "checkpoint-every": CHECKPOINT_EVERY,
            "loader": "native",
            "loader-threads": threads,
        }
        command = [
            *(sys.executable, *(torchrun if processes > 1 else []), "-m", "maskco_fast", "train"),
            *("--no-tensorboard", "--log-samples", "--shards", *self._shards),
            *(part for name, value in options.items() for part in (f"--{name}", str(value))),
        ]
        with self._log.open("w") as log:
            job = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield job
        finally:
            for pid in [*ranks(job), job.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            job.wait()

    def wait(self, job: subprocess.Popen) -> int:
        """Wait for the job and return its exit code; Failed if it hangs."""
        try:
            return job.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"the job hangs at step {self.step()}:\n{self.log()}") from None

    def log(self) -> str:
        """The last launch's stderr."""
        return self._log.read_text()

    def wait_for(self, step: int, job: subprocess.Popen) -> None:
        """Wait until `step` is done; Failed if the job ends or hangs before."""
        deadline = time.monotonic() + PATIENCE
        while self.step() < step:
            if job.poll() is not None or time.monotonic() > deadline:
                raise Failed(
                    f"ended or hung at step {self.step()}, before step {step}:\n{self.log()}"
                )
            time.sleep(0.005)

    def expected(self, place: int) -> list[int]:
        """The sample ids of the run's step number `place`, counted from 0."""
        epoch, number = divmod(place, self.steps_an_epoch)
        positions = order(self._dataset.shard_sizes, seed=0, epoch=epoch)
        positions = positions[number * BATCH : (number + 1) * BATCH]
        return self._dataset.samples["sample_id"][positions].tolist()

    def check(self) -> int:
        """Compare samples.jsonl with the order; returns its number of steps, or raises Failed."""
        lines = self._lines("samples.jsonl")
        for place, line in enumerate(lines):
            epoch, expected = place // self.steps_an_epoch, self.expected(place)
            if (line["step"], line["epoch"], line["sample_ids"]) != (place + 1, epoch, expected):
                raise Failed(
                    f"step {place + 1} should be {expected} of epoch {epoch}; "
                    f"samples.jsonl has {line}"
                )
        for epoch in range(len(lines) // self.steps_an_epoch):
            seen = [one for line in lines if line["epoch"] == epoch for one in line["sample_ids"]]
            if len(set(seen)) != self.steps_an_epoch * BATCH:
                raise Failed(f"epoch {epoch} has images twice")
        return len(lines)


def ranks(job: subprocess.Popen) -> list[int]:
    """The process ids of torchrun's workers, by rank; none for one process."""
    children = pathlib.Path(f"/proc/{job.pid}/task/{job.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def strike(job: subprocess.Popen, processes: int, name: str, chance: random.Random) -> str:
    """Send the job a signal; returns which of its processes received it, for the log."""
    workers = ranks(job) if processes > 1 else [job.pid]
    if len(workers) != processes:
        raise Failed(f"{len(workers)} of {processes} processes are running")
    number = signal.Signals[name]
    if number == signal.SIGKILL and chance.random() < 0.4:
        for pid in [job.pid, *workers]:
            os.kill(pid, number)
        return "all"
    victim = chance.randrange(processes)
    os.kill(workers[victim], number)
    return f"rank {victim}"


def damage(path: pathlib.Path, chance: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def one_kill(run: Run, processes: int, name: str, chance: random.Random) -> str:
    """Launch, send a signal at a random moment, check the samples; returns a line for the log."""
    saved = checkpoint.checkpoints(run.folder / "checkpoints")
    damaged = len(saved) > 1 and chance.random() < 0.25
    if damaged:
        damage(saved.pop(), chance)
    start = int(saved[-1].stem.partition("-")[2]) if saved else 0
    threads = chance.randint(1, 3)
    target = run.step() + chance.randint(1, STEPS_PER_LAUNCH)
    with run.launch(processes, threads) as job:
        run.wait_for(target, job)
        time.sleep(chance.uniform(0, 0.4))  # anywhere in a step or in a checkpoint's write
        struck = time.time()
        whom = strike(job, processes, name, chance)
        run.wait(job)
        ended = f"the job ended in {time.time() - struck:.1f} s"
    if damaged and "is damaged" not in run.log():
        raise Failed(f"the damaged checkpoint was not noticed:\n{run.log()}")
    if name != "SIGKILL":
        newest = checkpoint.checkpoints(run.folder / "checkpoints")[-1]
        ended = f"saved in {newest.stat().st_mtime - struck:.1f} s, {ended}"
    warned = " (with a warning that the newest is damaged)" if damaged else ""
    return (
        f"{processes} {'processes' if processes > 1 else 'process'}, loader threads {threads}: "
        f"from checkpoint {start}{warned} to step {run.check()}; {name} to {whom}, {ended}"
    )


def main(options: Options) -> int:
    """Print a line a kill and the verdict; returns the exit code."""
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(pathlib.Path(folder), options)
        try:
            for kill in range(options.kills):
                line = one_kill(run, 2 - kill % 2, chance.choice(options.signals), chance)
                print(f"{kill + 1:3}: {line}", flush=True)
            with run.launch(2 - options.kills % 2, 1) as job:
                if run.wait(job) != 0 or run.check() != run.max_steps:
                    raise Failed(
                        f"the last launch did not reach step {run.max_steps}:\n{run.log()}"
                    )
        except Failed as error:
            print(f"FAILED: {error}")
            return 1
        print(
            f"{run.max_steps} steps in epochs of {run.steps_an_epoch}: "
            "each step saw exactly the images it should have"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
