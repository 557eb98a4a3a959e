"""A run that is killed again and again, and goes on each time with another number of processes and
threads.

    python benchmarks/kill_and_resume.py [--kills 24] [--seed 0]

Every launch is the real command, on two processes (torchrun) and one by turns. At a random moment a
random process of it gets SIGKILL, or all do, or one gets SIGTERM or SIGUSR1; some of the times the
newest checkpoint is damaged as well. After each, every line of samples.jsonl is compared with the
order computed from the shards and the seed: steps without gap, the images of each step, each image
of an epoch once. One line a kill; exits 1 where anything differs.
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

BATCH, CHECKPOINT_EVERY, STEPS_A_LAUNCH = 16, 3, 6
PATIENCE = 240.0
"""Seconds after which a launch that neither steps nor ends counts as hanging."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Kill a training run at random moments and let it go on."""

    kills: int = 24
    seed: int = 0
    """Of the moments, the victims and the numbers of threads; the run's own seed is fixed."""
    signals: tuple[str, ...] = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1")
    """Drawn from for each kill."""
    samples: int = 150
    """Scenes of the demo set that is trained on; 16 a step, so that an epoch leaves some over."""


class Failed(AssertionError):
    """The run did not go on as it should."""


class Run:
    """One training run in a folder, launched as often as needed."""

    def __init__(self, folder: pathlib.Path, options: Options) -> None:
        shards = demo_shards(folder / "data", samples=options.samples, shards=4, size=(64, 80))
        self.folder = folder / "run"
        self.max_steps = (options.kills + 1) * STEPS_A_LAUNCH
        self._shards = [str(path) for path in shards]
        self._dataset = open_dataset(self._shards, index_folder=folder / "index")
        self.steps_an_epoch = len(self._dataset) // BATCH
        self._log = folder / "log.txt"

    def step(self) -> int:
        """The last step that the run has told of."""
        lines = self._lines("metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    def _lines(self, name: str) -> list[dict]:
        """The whole lines of a file that may be being written."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @contextlib.contextmanager
    def launch(self, processes: int, threads: int) -> Iterator[subprocess.Popen]:
        """The command on `processes`, none of which outlives the context."""
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
        ]
        options = {
            **{
                "recipe": "demo",
                "run-dir": self.folder,
                "max-steps": self.max_steps,
                "batch-size": BATCH,
            },
            **{
                "model.view-size": 32,
                "model.group-size": BATCH // 2,
                "precision": "fp32",
                "log-every": 1,
            },
            **{"checkpoint-every": CHECKPOINT_EVERY, "loader": "native", "loader-threads": threads},
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
        """The job's exit code; Failed where it hangs."""
        try:
            return job.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"the job hangs at step {self.step()}:\n{self.told()}") from None

    def told(self) -> str:
        """What the last launch wrote to stderr."""
        return self._log.read_text()

    def wait_for(self, step: int, job: subprocess.Popen) -> None:
        """Return when `step` is done; Failed where the job ends or hangs before."""
        deadline = time.monotonic() + PATIENCE
        while self.step() < step:
            if job.poll() is not None or time.monotonic() > deadline:
                raise Failed(
                    f"ended or hung at step {self.step()}, before step {step}:\n{self.told()}"
                )
            time.sleep(0.005)

    def expected(self, place: int) -> list[int]:
        """The sample ids of the run's step number `place`, from 0."""
        epoch, number = divmod(place, self.steps_an_epoch)
        positions = order(self._dataset.shard_sizes, seed=0, epoch=epoch)[
            number * BATCH : (number + 1) * BATCH
        ]
        return self._dataset.samples["sample_id"][positions].tolist()

    def check(self) -> int:
        """Compare samples.jsonl with the order; returns its number of steps. Failed where they
        differ."""
        lines = self._lines("samples.jsonl")
        for place, line in enumerate(lines):
            epoch, expected = place // self.steps_an_epoch, self.expected(place)
            if (line["step"], line["epoch"], line["sample_ids"]) != (place + 1, epoch, expected):
                raise Failed(
                    f"step {place + 1} should be {expected} of epoch {epoch}; samples.jsonl has {line}"
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
    """Send the job a signal; returns to which processes of it, for the log."""
    workers = ranks(job) if processes > 1 else [job.pid]
    if len(workers) != processes:
        raise Failed(f"{len(workers)} of {processes} processes are there")
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
    """Launch, wait for a random moment, strike, check; returns what happened."""
    saved = checkpoint.checkpoints(run.folder / "checkpoints")
    damaged = len(saved) > 1 and chance.random() < 0.25
    if damaged:
        damage(saved.pop(), chance)
    start = int(saved[-1].stem.partition("-")[2]) if saved else 0
    threads = chance.randint(1, 3)
    target = run.step() + chance.randint(1, STEPS_A_LAUNCH)
    with run.launch(processes, threads) as job:
        run.wait_for(target, job)
        time.sleep(chance.uniform(0, 0.4))  # anywhere in a step, or while a checkpoint is written
        struck = time.time()
        whom = strike(job, processes, name, chance)
        run.wait(job)
        ended = f"the job ended in {time.time() - struck:.1f} s"
    if damaged and "is damaged" not in run.told():
        raise Failed(f"the damaged checkpoint was not noticed:\n{run.told()}")
    if name != "SIGKILL":
        newest = checkpoint.checkpoints(run.folder / "checkpoints")[-1]
        ended = f"saved in {newest.stat().st_mtime - struck:.1f} s, {ended}"
    warned = " (the newest damaged: warned of, the one before it taken)" if damaged else ""
    return (
        f"{processes} {'processes' if processes > 1 else 'process'}, loader threads {threads}: from checkpoint {start}"
        f"{warned} to step {run.check()}; {name} to {whom}, {ended}"
    )


def main(options: Options) -> int:
    """Print a line a kill and the verdict; returns the exit code."""
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(pathlib.Path(folder), options)
        try:
            for kill in range(options.kills):
                print(
                    f"{kill + 1:3}: {one_kill(run, 2 - kill % 2, chance.choice(options.signals), chance)}",
                    flush=True,
                )
            with run.launch(2 - options.kills % 2, 1) as job:
                if run.wait(job) != 0 or run.check() != run.max_steps:
                    raise Failed(
                        f"the last launch did not reach step {run.max_steps}:\n{run.told()}"
                    )
        except Failed as error:
            print(f"FAILED: {error}")
            return 1
        print(
            f"{run.max_steps} steps in epochs of {run.steps_an_epoch}: the images of every step are the order's"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
