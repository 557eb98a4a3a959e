"""The training loop: steps, readings, checkpoints, signals. It knows no method and no loader by
name."""

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel

from maskco_fast.kernels.errors import InvalidInput, MaskCoError
from maskco_fast.loaders import Batch, Quarantine, ReadEnded
from maskco_fast.loaders.quarantine import BadSample
from maskco_fast.methods.base import Method
from maskco_fast.training import checkpoint
from maskco_fast.training.checkpoint_writer import CheckpointWriter
from maskco_fast.training.config import TrainConfig, differences
from maskco_fast.training.deferred_scalars import DeferredScalars, Line
from maskco_fast.training.devices import DTYPES, choose_device, choose_precision
from maskco_fast.training.distributed import World, average_running_statistics
from maskco_fast.training.metrics import Metrics
from maskco_fast.training.optimizer import learning_rate, make_optimizer
from maskco_fast.training.signals import StopSignal


class BatchSource(Protocol):
    """What the trainer asks of a loader: `maskco_fast.loaders.Loader` and anything of its kind."""

    quarantine: Any

    @property
    def epoch(self) -> int:
        """The epoch that the next batch comes from."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def interrupt(self) -> None:
        """From another thread: a batch that would have to be waited for raises ReadEnded."""


class NonFiniteLoss(MaskCoError, RuntimeError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class Fetched:
    """A step's batch, its epoch, and the seconds that the step waited for it."""

    batch: Batch
    epoch: int
    waited: float


@dataclass(frozen=True)
class _Output:
    """What a run writes beside the steps; rank 0 has one."""

    metrics: Metrics
    checkpoints: CheckpointWriter


class Trainer:
    """One run, on this process or on all of `world`: `fit` trains from where the run folder stands
    to the last step.

    The loader yields this rank's share of every step's images: `config.batch_size` over the number
    of ranks.
    """

    def __init__(
        self, config: TrainConfig, method: Method, loader: BatchSource, world: World | None = None
    ) -> None:
        self.config = config
        self.world = world if world is not None else World()
        self.device = choose_device(config.device, self.world.local_rank)
        self.precision = choose_precision(config.precision, self.device)
        self.method = method.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loader = loader
        self.optimizer = make_optimizer(self.method.parameters(), config.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.step = 0
        self._parallel = self._make_parallel() if self.world.size > 1 else None
        self._forward = self._make_forward()
        self.bad_samples = Quarantine()
        """What all ranks had quarantined at the last checkpoint; on rank 0."""
        self._ended = 0.0
        waits = self.device.type == "cuda" or self.world.size > 1
        self._readings = DeferredScalars(config.log_every if waits else 1, self.world)

    def _make_forward(self) -> Callable[[Batch], dict[str, torch.Tensor]]:
        forward = self._parallel if self._parallel is not None else self.method
        if self.config.cuda_graphs:
            if self.device.type != "cuda":
                raise InvalidInput(
                    f"--cuda-graphs wants CUDA, and the device is {self.device}; leave it out"
                )
            return torch.compile(forward, mode="reduce-overhead")
        return torch.compile(forward) if self.config.compile else forward

    def _make_parallel(self) -> DistributedDataParallel:
        """Gradients averaged over the ranks while the backward pass goes on. Buffers stay each
        rank's own."""
        with warnings.catch_warnings():
            # Its new name is newer than the oldest torch that will do.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                self.method, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    @property
    def checkpoint_folder(self) -> pathlib.Path:
        """Where this run's checkpoints are."""
        return self.config.run_dir / "checkpoints"

    def fit(self) -> str | None:
        """Train to `config.max_steps`; returns None, or the name of the signal that ended the run
        before.

        Goes on from the run folder's newest intact checkpoint. A checkpoint stands at the end in
        both cases. A signal ends the run after the step at hand, and the wait for a batch at once.
        NonFiniteLoss leaves the batch's sample ids in the run folder and writes no checkpoint. All
        ranks call this, and a signal to one of them ends all after the same step.
        """
        self.resume()
        with contextlib.ExitStack() as stack:
            # Left last, when the last checkpoint is still being written.
            stop = stack.enter_context(StopSignal(self.loader.interrupt))
            output = self._open_output(stack) if self.world.is_rank_zero else None
            try:
                stopped_by = self._loop(output, stop)
            except BaseException:
                if self.world.is_rank_zero:  # the other ranks may be gone
                    self._write_bad_samples([self.loader.quarantine.entries])
                raise
        return stopped_by if self.step < self.config.max_steps else None

    def _open_output(self, stack: contextlib.ExitStack) -> _Output:
        config = self.config
        metrics = Metrics(
            config.run_dir,
            step=self.step,
            steps=config.max_steps,
            log_every=config.log_every,
            tensorboard=config.tensorboard,
            log_samples=config.log_samples,
        )
        writer = CheckpointWriter(self.checkpoint_folder, keep=config.keep_checkpoints)
        return _Output(stack.enter_context(metrics), stack.enter_context(writer))

    def _loop(self, output: _Output | None, stop: StopSignal) -> str | None:
        """Step until the last, or until a signal, whose name is returned."""
        self._report_bad_samples()
        saved = self.step
        batches = self._batches()
        stopped_by = None
        self._ended = time.perf_counter()
        while self.step < self.config.max_steps:
            position = self.loader.state_dict()
            fetched = self._fetch(batches, stop)
            stopped_by = self.world.agree_to_stop(stop.name)
            if fetched is None or stopped_by is not None:
                self.loader.load_state_dict(
                    position
                )  # what was fetched is for the step that the run resumes with
                break
            self._one_step(fetched)
            if self._readings.full:
                self._read(output)
            if self.step % self.config.checkpoint_every == 0:
                self._save(output)
                saved = self.step
            if output is not None:
                output.checkpoints.check()
        if saved != self.step:
            self._save(output)
        return stopped_by

    def resume(self) -> None:
        """Take up the run folder's newest intact checkpoint, if there is one, as rank 0 finds it.

        ValueError where it belongs to a run configured otherwise, or where `config.resume` is off.
        """
        state = None
        if self.world.is_rank_zero:
            if not self.config.resume and checkpoint.checkpoints(self.checkpoint_folder):
                raise InvalidInput(
                    f"{self.config.run_dir} holds a run already: leave --no-resume out to go on with it, "
                    "or name another --run-dir"
                )
            state = checkpoint.load_newest(self.checkpoint_folder)
        state = self.world.broadcast(state)  # so that a disk that only rank 0 has will do
        if state is not None:
            self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as `checkpoint.save` takes it."""
        config = dataclasses.asdict(self.config)
        config["run_dir"] = str(config["run_dir"])
        random = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "config": config,
            "steps_done": self.step,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "random": random,
            "arithmetic": self._arithmetic(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. ValueError names what the run would do otherwise than
        before."""
        changed = differences(state["config"], self.config)
        if changed:
            raise InvalidInput(
                f"{self.config.run_dir} was begun with other settings: {'; '.join(changed)}. "
                "Give the same, or name another --run-dir"
            )
        for name, now in self._arithmetic().items():
            if self.world.is_rank_zero and state["arithmetic"].get(name, now) != now:
                warnings.warn(
                    f"resumed with {name} {now} after {state['arithmetic'].get(name)}: "
                    "the losses go on, but not to the last bit as in an uninterrupted run",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self.loader.load_state_dict(
            state["loader"]
        )  # first: it says so where the shards are others
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"]["torch"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self.step = state["steps_done"]

    def _arithmetic(self) -> dict[str, str | int]:
        """What rounding depends on; sums split over another number of threads differ in their last
        bits."""
        return {
            "max_steps": self.config.max_steps,
            "processes": self.world.size,
            "accumulate": self.config.accumulate,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "device": self.device.type,
            "precision": self.precision,
            "compile": self.config.compile or self.config.cuda_graphs,
        }

    def _batches(self) -> Iterator[Batch]:
        """Epoch after epoch, from the loader's position."""
        while True:
            yield from self.loader

    def _fetch(self, batches: Iterator[Batch], stop: StopSignal) -> Fetched | None:
        """The next batch; None where a signal came before it."""
        if stop.name is not None:
            return None
        asked = time.perf_counter()
        epoch = self.loader.epoch
        try:
            batch = next(batches)
        except ReadEnded:
            if stop.name is None:
                raise
            return None
        return Fetched(batch, epoch, time.perf_counter() - asked)

    def _one_step(self, fetched: Fetched) -> None:
        config = self.config
        sample_id = fetched.batch.sample_id
        batch = fetched.batch.to(self.device, non_blocking=True)
        rate = learning_rate(config.optimizer, config.batch_size, self.step, config.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        scalars = self._gradients(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step()
        self.step += 1
        # From the end of the step before, so that writing metrics and checkpoints counts as well.
        began, self._ended = self._ended, time.perf_counter()
        seconds = self._ended - began
        line: Line = {
            "step": self.step,
            "epoch": fetched.epoch,
            "learning_rate": rate,
            "images_per_s": len(batch) * self.world.size / seconds,
            "data_wait": fetched.waited / seconds,
        }
        self._readings.add(line, scalars, sample_id)

    def _gradients(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Add the gradients of the batch's mean loss, a micro-batch at a time; returns its scalars'
        means."""
        parts = batch.split(len(batch) // self.config.accumulate)
        collected: list[dict[str, torch.Tensor]] = []
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            # The ranks exchange the sum, not every addend.
            alone = (
                self._parallel.no_sync()
                if self._parallel is not None and not last
                else contextlib.nullcontext()
            )
            with alone:
                with torch.autocast(
                    self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"
                ):
                    scalars = self._forward(part)
                self.scaler.scale(scalars["loss"] / len(parts)).backward()
            collected.append({name: value.detach() for name, value in scalars.items()})
        return {
            name: torch.stack([scalars[name] for scalars in collected]).mean()
            for name in collected[0]
        }

    def _read(self, output: _Output | None) -> None:
        """Hand the kept steps to the metrics; NonFiniteLoss where one of them went wrong."""
        for reading in self._readings.read():
            if not math.isfinite(reading.line["loss"]):
                raise self._non_finite(reading.line, reading.sample_ids)
            if output is not None:
                output.metrics.record(reading.line, reading.sample_ids)

    def _non_finite(self, line: Line, sample_ids: list[int]) -> NonFiniteLoss:
        path = self.config.run_dir / f"non-finite-step-{line['step']:09d}.json"
        facts = {
            name: value if math.isfinite(value) else str(value) for name, value in line.items()
        }
        if self.world.is_rank_zero:
            path.write_text(json.dumps({**facts, "sample_ids": sample_ids}, indent=1) + "\n")
        return NonFiniteLoss(
            f"the loss of step {line['step']} is {line['loss']}; the sample ids of its batch are in {path}. "
            "A lower --optimizer.learning-rate is the usual cure; the checkpoints are from before"
        )

    def _save(self, output: _Output | None) -> None:
        self._read(
            output
        )  # so that no checkpoint holds the weights of a step whose loss nobody saw
        if self.world.size > 1:
            average_running_statistics(self.method)
        if output is not None:
            # Metrics first: a checkpoint never knows of more steps than metrics.jsonl does.
            output.checkpoints.save(self.step, self.state_dict(), first=output.metrics.sync)
        self._report_bad_samples()

    def _report_bad_samples(self) -> None:
        """Write what all ranks found."""
        found = self.world.gather_objects(list(self.loader.quarantine.entries))
        if self.world.is_rank_zero:
            self._write_bad_samples(found)

    def _write_bad_samples(self, found: list[list[BadSample]]) -> None:
        self.bad_samples = Quarantine(dict.fromkeys(itertools.chain.from_iterable(found)))
        self.bad_samples.write(self.config.run_dir / "quarantine.json")
