"""The training loop: steps, metrics, checkpoints and signals, for any method and any loader."""

import contextlib
import itertools
import math
import pathlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.parallel import DistributedDataParallel

from maskco_fast.kernels.errors import InvalidInput, MaskCoError
from maskco_fast.loaders import Batch, Quarantine, ReadEnded
from maskco_fast.loaders.quarantine import BadSample
from maskco_fast.loaders.system.files import write_json
from maskco_fast.methods.base import Method
from maskco_fast.training import checkpoint
from maskco_fast.training.checkpoint_writer import CheckpointWriter
from maskco_fast.training.config import RunConfig, differences, flatten, public
from maskco_fast.training.deferred_scalars import DeferredScalars, Line
from maskco_fast.training.devices import autocast, choose_device, choose_precision
from maskco_fast.training.distributed import World, average_running_statistics
from maskco_fast.training.graphed import GraphedStep, Step
from maskco_fast.training.meter import StepMeter, make_clock
from maskco_fast.training.metrics import Metrics
from maskco_fast.training.optimizer import LearningRate, learning_rate, make_optimizer
from maskco_fast.training.signals import StopSignal


class BatchSource(Protocol):
    """The interface to a loader, such as `maskco_fast.loaders.Loader`."""

    quarantine: Any

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def interrupt(self) -> None:
        """Make waiting for a batch raise ReadEnded; called from another thread."""


class Monitor(Protocol):
    """A measurement of the trained network between two steps, such as `KnnMonitor`."""

    every: int
    """Steps between two measurements."""

    def measure(self, method: Method, stopped: Callable[[], bool]) -> dict[str, float]:
        """Return named values for the step's line, the same on all ranks; none once stopped.

        Leaves the method and all random generators as they are.
        """


class NonFiniteLoss(MaskCoError, RuntimeError):
    """The loss of a step is infinite or NaN."""


@dataclass(frozen=True)
class Fetched:
    """A step's batch and its epoch."""

    batch: Batch
    epoch: int


@dataclass(frozen=True)
class _Output:
    """The writers of a run's logs and checkpoints; only rank 0 has them."""

    metrics: Metrics
    checkpoints: CheckpointWriter


class Trainer:
    """Trains a run, on one process or on all ranks of `world`; `fit` resumes and runs to the end.

    The loader yields this rank's share of every batch: `config.batch_size` / ranks images.
    """

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        loader: BatchSource,
        world: World | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.config = config
        self.world = world if world is not None else World()
        self.device = choose_device(config.device, self.world.local_rank)
        self.precision = choose_precision(config.precision, self.device)
        self.method = method.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loader = loader
        self.monitor = monitor
        heads_differ = config.optimizer.head_weight_decay is not None
        self.optimizer = make_optimizer(
            self.method.parameters(),
            config.optimizer,
            heads=self.method.head_parameters() if heads_differ else (),
        )
        rate = torch.zeros((), device=self.device) if self.device.type == "cuda" else None
        self._learning_rate = LearningRate(self.optimizer, rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.step = 0
        self._resumed = False
        self._parallel = self._make_parallel() if self.world.size > 1 else None
        self._forward = self._make_forward()
        self._train = self._make_step()
        self.bad_samples = Quarantine()
        """On rank 0: the samples that all ranks had quarantined at the last checkpoint."""
        self._meter = StepMeter(make_clock(self.device))
        if hasattr(loader, "before_device_work"):
            loader.before_device_work = self._meter.arrive
        # On one CPU process reading a loss costs nothing, so every step is logged at once.
        read_waits = self.device.type == "cuda" or self.world.size > 1
        self._deferred = DeferredScalars(config.log_every if read_waits else 1, self.world)

    def _make_forward(self) -> Callable[[Batch], dict[str, torch.Tensor]]:
        """The method's forward pass, distributed and compiled as configured."""
        forward = self._parallel if self._parallel is not None else self.method
        return torch.compile(forward) if self.config.compile else forward

    def _make_step(self) -> Step:
        """`_train_on`, as one graph where configured. InvalidInput where that cannot be."""
        if not self.config.cuda_graphs:
            return self._train_on
        if self.device.type != "cuda":
            reason = f"requires CUDA, got device {self.device}"
        elif self.world.size > 1:
            reason = f"is for one process, got {self.world.size}"
        elif self.method.scheduled:
            reason = "requires the same arithmetic in every step, and this method has a schedule"
        elif self.scaler.is_enabled() and self.config.optimizer.name != "sgd":
            reason = "requires sgd with fp16, whose scaler reads a value before other optimisers"
        else:
            return GraphedStep(self._train_on, self.device)
        raise InvalidInput(f"`--cuda-graphs` {reason}. Omit the option.")

    def _make_parallel(self) -> DistributedDataParallel:
        """Average the gradients over the ranks during the backward pass; leave buffers alone."""
        with warnings.catch_warnings():
            # The option's new name does not exist in the oldest supported torch.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(
                self.method, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    @property
    def checkpoint_folder(self) -> pathlib.Path:
        """The folder of this run's checkpoints."""
        return self.config.run_dir / "checkpoints"

    def fit(self) -> str | None:
        """Train to `config.max_steps`; returns None, or the name of the signal that ended the run.

        Starts from the run folder's newest intact checkpoint, and always writes one at the end. A
        signal ends the run after the current step; waiting for a batch ends at once. All ranks call
        this method, and a signal to one of them ends all after the same step.

        Raises NonFiniteLoss after writing the batch's sample ids into the run folder. No checkpoint
        then holds the step.
        """
        if not self._resumed:
            self.resume()
        with contextlib.ExitStack() as stack:
            # Entered first and so left last: a signal during the last checkpoint's write must not
            # kill the process.
            stop = stack.enter_context(StopSignal(self.loader.interrupt))
            output = self._open_output(stack) if self.world.is_rank_zero else None
            try:
                stopped_by = self._loop(output, stop)
            except BaseException:
                # Without the other ranks, which may have ended; the disk may be full.
                with contextlib.suppress(OSError):
                    if self.world.is_rank_zero:
                        self._write_bad_samples([self.loader.quarantine.entries])
                raise
        return stopped_by if self.step < self.config.max_steps else None

    def stop_message(self, signal: str) -> str:
        """A line for the user about the run that a signal of this name ended."""
        return (
            f"{signal}: saved at step {self.step} of {self.config.max_steps}; "
            "the same command resumes the run"
        )

    def _open_output(self, stack: contextlib.ExitStack) -> _Output:
        config = self.config
        metrics = Metrics(
            config.run_dir,
            step=self.step,
            steps=config.max_steps,
            log_every=config.log_every,
            loggers=config.logger_names,
            config=flatten(public(config)),
            log_samples=config.log_samples,
        )
        writer = CheckpointWriter(
            self.checkpoint_folder, keep=config.keep_checkpoints, keep_steps=config.keep_steps
        )
        return _Output(stack.enter_context(metrics), stack.enter_context(writer))

    def _loop(self, output: _Output | None, stop: StopSignal) -> str | None:
        """Run steps until the last one or a signal; returns the signal's name or None."""
        self._report_bad_samples()
        saved_step = self.step
        batches = self._batches()
        stopped_by = None
        self._meter.restart()
        while self.step < self.config.max_steps:
            position = self.loader.state_dict()
            fetched = self._fetch(batches, stop)
            stopped_by = self.world.agree_to_stop(stop.name)
            if fetched is None or stopped_by is not None:
                # The fetched batch is not used: the resumed run must see it again.
                self.loader.load_state_dict(position)
                break
            self._one_step(fetched)
            self._measure(stop)
            if self._deferred.full:
                self._read_scalars(output)
            due = self.step % self.config.checkpoint_every == 0
            if due or self.step in self.config.keep_steps:
                self._save(output)
                saved_step = self.step
            if output is not None:
                output.checkpoints.check()
        if saved_step != self.step:
            self._save(output)
        return stopped_by

    def resume(self) -> None:
        """Load the run folder's newest intact checkpoint, if there is one; `fit` does so otherwise.

        Rank 0 reads it and sends it to the others, so that only rank 0 needs access to the folder.
        Raises InvalidInput if the checkpoint has another configuration, or if `config.resume` is
        off and the folder holds a checkpoint.
        """
        state = None
        if self.world.is_rank_zero:
            if not self.config.resume and checkpoint.checkpoints(self.checkpoint_folder):
                raise InvalidInput(
                    f"{self.config.run_dir} already holds a run. "
                    "Omit --no-resume to continue it, or name another --run-dir."
                )
            state = checkpoint.load_newest(self.checkpoint_folder)
        state = self.world.broadcast(state)
        if state is not None:
            self.load_state_dict(state)
        self._resumed = True

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, in the form that `checkpoint.save` takes."""
        config = public(self.config)
        config["run_dir"] = str(config["run_dir"])
        random = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "config": config,
            "steps_done": self.step,
            "method": self.method.state_dict(),
            "optimizer": self._learning_rate.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "random": random,
            "arithmetic": self._arithmetic(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises InvalidInput if a setting differs that would change the run. Warns if the arithmetic
        differs, such as the number of threads.
        """
        changed = differences(state["config"], self.config)
        if changed:
            raise InvalidInput(
                f"{self.config.run_dir} was started with other settings: {'; '.join(changed)}. "
                "Use the same settings, or name another --run-dir."
            )
        for name, now in self._arithmetic().items():
            before = state["arithmetic"].get(name, now)
            if self.world.is_rank_zero and before != now:
                warnings.warn(
                    f"resumed with {name} {now} after {before}: "
                    "the losses will differ from an uninterrupted run's in their last bits",
                    RuntimeWarning,
                    stacklevel=2,
                )
        # The loader first: it raises if the shards have changed.
        self.loader.load_state_dict(state["loader"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"]["torch"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self.step = state["steps_done"]
        self._train = self._make_step()  # a graph holds the former state's addresses

    def _arithmetic(self) -> dict[str, str | int]:
        """Settings that change the rounding of a step; sums over other threads, for example."""
        arithmetic: dict[str, str | int] = {
            "max_steps": self.config.max_steps,
            "processes": self.world.size,
            "accumulate": self.config.accumulate,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "device": self.device.type,
            "precision": self.precision,
            "compile": self.config.compile,
        }
        if self.device.type == "cuda":
            arithmetic["tf32"] = self.config.tf32
            arithmetic["cudnn_benchmark"] = self.config.cudnn_benchmark
        return arithmetic

    def _batches(self) -> Iterator[Batch]:
        """Yield batches epoch after epoch, from the loader's position."""
        while True:
            yield from self.loader

    def _fetch(self, batches: Iterator[Batch], stop: StopSignal) -> Fetched | None:
        """The next batch; None if a signal came first."""
        if stop.name is not None:
            return None
        self._meter.ask()
        epoch = self.loader.epoch
        try:
            batch = next(batches)
        except ReadEnded:
            if stop.name is None:
                raise
            return None
        self._meter.arrive()
        return Fetched(batch, epoch)

    def _one_step(self, fetched: Fetched) -> None:
        """Train on one batch and keep its scalars, without waiting for the device."""
        config = self.config
        sample_id = fetched.batch.sample_id
        batch = fetched.batch.to(self.device, non_blocking=True)
        rate = learning_rate(config.optimizer, config.batch_size, self.step, config.max_steps)
        self._learning_rate.set(rate)
        scalars = self._train(batch)
        self.step += 1
        line: Line = {"step": self.step, "epoch": fetched.epoch, "learning_rate": rate}
        timing = self._meter.end(len(batch) * self.world.size)
        self._deferred.add(line, scalars, sample_id, timing)

    def _train_on(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Move the weights by a batch's gradients; returns the scalars. No value is read."""
        self.optimizer.zero_grad(set_to_none=True)
        scalars = self._gradients(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(self.step / self.config.max_steps)
        return scalars

    def _measure(self, stop: StopSignal) -> None:
        """Add the monitor's values to the step's line, if they are due; its time counts nowhere."""
        if self.monitor is not None and self.step % self.monitor.every == 0:
            values = self.monitor.measure(self.method, lambda: stop.name is not None)
            self._deferred.annotate(values)
            self._meter.restart()

    def _gradients(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Accumulate the mean loss's gradients over micro-batches; returns the mean scalars."""
        parts = batch.split(len(batch) // self.config.accumulate)
        collected: list[dict[str, torch.Tensor]] = []
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            # Ranks exchange gradients once, in the last micro-batch's backward pass.
            exchange = (
                self._parallel.no_sync()
                if self._parallel is not None and not last
                else contextlib.nullcontext()
            )
            with exchange:
                with autocast(self.device, self.precision):
                    scalars = self._forward(part)
                self.scaler.scale(scalars["loss"] / len(parts)).backward()
            collected.append({name: value.detach() for name, value in scalars.items()})
        return {
            name: torch.stack([scalars[name] for scalars in collected]).mean()
            for name in collected[0]
        }

    def _read_scalars(self, output: _Output | None) -> None:
        """Log the deferred steps; raises NonFiniteLoss at the first one with such a loss."""
        for record in self._deferred.read():
            if not math.isfinite(record.line["loss"]):
                raise self._non_finite(record.line, record.sample_ids)
            if output is not None:
                output.metrics.record(record.line, record.sample_ids)

    def _non_finite(self, line: Line, sample_ids: list[int]) -> NonFiniteLoss:
        """The error for a step; rank 0 writes the step's metrics and sample ids to a file."""
        path = self.config.run_dir / f"non-finite-step-{line['step']:09d}.json"
        facts = {
            name: value if math.isfinite(value) else str(value) for name, value in line.items()
        }
        if self.world.is_rank_zero:
            write_json(path, {**facts, "sample_ids": sample_ids})
        return NonFiniteLoss(
            f"The loss of step {line['step']} is {line['loss']}; "
            f"the sample ids of its batch are in {path}. "
            "Lower --optimizer.learning-rate; all checkpoints are from earlier steps."
        )

    def _save(self, output: _Output | None) -> None:
        """Log the deferred steps, then write a checkpoint."""
        # First, since it raises NonFiniteLoss: no checkpoint may hold a step with an unread loss.
        self._read_scalars(output)
        if self.world.size > 1:
            average_running_statistics(self.method)
        if output is not None:
            # Metrics are synced first, so that no checkpoint is ahead of metrics.jsonl.
            output.checkpoints.save(self.step, self.state_dict(), before_write=output.metrics.sync)
        self._report_bad_samples()

    def _report_bad_samples(self) -> None:
        """Gather the quarantined samples of all ranks and write quarantine.json."""
        found = self.world.gather_objects(list(self.loader.quarantine.entries))
        if self.world.is_rank_zero:
            self._write_bad_samples(found)

    def _write_bad_samples(self, found: list[list[BadSample]]) -> None:
        """Write quarantine.json. `found`: each rank's samples, which may overlap."""
        self.bad_samples = Quarantine(list(dict.fromkeys(itertools.chain.from_iterable(found))))
        self.bad_samples.write(self.config.run_dir / "quarantine.json")
