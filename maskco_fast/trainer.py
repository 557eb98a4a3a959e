"""The training loop: steps, readings, checkpoints, signals. It knows no method and no loader by name."""

import dataclasses
import json
import math
import pathlib
import time
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from maskco_fast import checkpoint
from maskco_fast.config import TrainConfig, differences
from maskco_fast.devices import DTYPES, choose_device, choose_precision
from maskco_fast.loaders import Batch
from maskco_fast.methods import Method
from maskco_fast.metrics import Metrics
from maskco_fast.optim import learning_rate, make_optimizer
from maskco_fast.signals import StopSignal


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


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number."""


class Readings:
    """The last steps' scalars, still on the device, with what is known of those steps on the host.

    Reading a CUDA tensor waits for the device, so on CUDA the steps' scalars are read together, `every` at a time.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._names: list[str] = []
        self._scalars: list[torch.Tensor] = []
        self._lines: list[dict[str, float | int]] = []
        self._sample_ids: list[torch.Tensor] = []

    @property
    def full(self) -> bool:
        """Whether it is time to read."""
        return len(self._lines) >= self._every

    def add(self, line: dict[str, float | int], scalars: dict[str, torch.Tensor], sample_id: torch.Tensor) -> None:
        """Keep one step: `line` without the method's scalars, the scalars, the batch's sample ids."""
        self._names = list(scalars)
        self._scalars.append(torch.stack([value.detach() for value in scalars.values()]))
        self._lines.append(line)
        self._sample_ids.append(sample_id)

    def read(self) -> list[tuple[dict[str, float | int], torch.Tensor]]:
        """The kept steps' lines, with the scalars in them, and sample ids; forgets them. Waits for the device."""
        if not self._lines:
            return []
        values = torch.stack(self._scalars).tolist()
        read = [
            ({**line, **dict(zip(self._names, row))}, sample_id)
            for line, row, sample_id in zip(self._lines, values, self._sample_ids)
        ]
        self._scalars, self._lines, self._sample_ids = [], [], []
        return read


class Trainer:
    """One run on one process: `fit` trains from where the run folder stands to the last step."""

    def __init__(self, config: TrainConfig, method: Method, loader: BatchSource) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self.method = method.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loader = loader
        self.optimizer = make_optimizer(self.method.parameters(), config.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.step = 0
        self._forward = torch.compile(self.method) if config.compile else self.method
        self._ended = 0.0
        self._readings = Readings(config.log_every if self.device.type == "cuda" else 1)

    @property
    def checkpoint_folder(self) -> pathlib.Path:
        """Where this run's checkpoints are."""
        return self.config.run_dir / "checkpoints"

    def fit(self) -> str | None:
        """Train to `config.max_steps`; returns None, or the name of the signal that ended the run before.

        Goes on from the run folder's newest intact checkpoint. A checkpoint stands at the end in both cases.
        NonFiniteLoss leaves the batch's sample ids in the run folder and writes no checkpoint.
        """
        self.resume()
        config = self.config
        with (
            Metrics(
                config.run_dir,
                step=self.step,
                steps=config.max_steps,
                log_every=config.log_every,
                tensorboard=config.tensorboard,
            ) as metrics,
            StopSignal() as stop,
        ):
            try:
                self._loop(metrics, stop)
            finally:
                self._report_bad_samples()
        return stop.name if self.step < config.max_steps else None

    def _loop(self, metrics: Metrics, stop: StopSignal) -> None:
        self._report_bad_samples()
        saved = self.step
        batches = self._batches()
        self._ended = time.perf_counter()
        while self.step < self.config.max_steps and stop.name is None:
            self._one_step(batches)
            if self._readings.full:
                self._read(metrics)
            if self.step % self.config.checkpoint_every == 0:
                self._save(metrics)
                saved = self.step
        if saved != self.step:
            self._save(metrics)

    def resume(self) -> None:
        """Take up the run folder's newest intact checkpoint, if there is one.

        ValueError where it belongs to a run configured otherwise, or where `config.resume` is off.
        """
        if not self.config.resume and checkpoint.checkpoints(self.checkpoint_folder):
            raise ValueError(
                f"{self.config.run_dir} holds a run already: leave --no-resume out to go on with it, "
                "or name another --run-dir"
            )
        state = checkpoint.load_newest(self.checkpoint_folder)
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
        """The inverse of `state_dict`. ValueError names what the run would do otherwise than before."""
        changed = differences(state["config"], self.config)
        if changed:
            raise ValueError(
                f"{self.config.run_dir} was begun with other settings: {'; '.join(changed)}. "
                "Give the same, or name another --run-dir"
            )
        for name, now in self._arithmetic().items():
            if state["arithmetic"].get(name) != now:
                warnings.warn(
                    f"resumed with {name} {now} after {state['arithmetic'].get(name)}: "
                    "the losses go on, but not to the last bit as in an uninterrupted run",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["random"]["torch"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self.step = state["steps_done"]

    def _arithmetic(self) -> dict[str, str | int]:
        """What rounding depends on; sums split over another number of threads differ in their last bits."""
        return {
            "max_steps": self.config.max_steps,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "device": self.device.type,
            "precision": self.precision,
            "compile": self.config.compile,
        }

    def _batches(self) -> Iterator[Batch]:
        """Epoch after epoch, from the loader's position."""
        while True:
            yield from self.loader

    def _one_step(self, batches: Iterator[Batch]) -> None:
        config = self.config
        asked = time.perf_counter()
        epoch = self.loader.epoch
        batch = next(batches)
        waited = time.perf_counter() - asked
        sample_id = batch.sample_id
        batch = batch.to(self.device, non_blocking=True)
        rate = learning_rate(config.optimizer, config.batch_size, self.step, config.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            scalars = self._forward(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(scalars["loss"]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step()
        self.step += 1
        # From the end of the step before, so that writing metrics and checkpoints counts as well.
        began, self._ended = self._ended, time.perf_counter()
        seconds = self._ended - began
        line: dict[str, float | int] = {
            "step": self.step,
            "epoch": epoch,
            "learning_rate": rate,
            "images_per_s": len(batch) / seconds,
            "data_wait": waited / seconds,
        }
        self._readings.add(line, scalars, sample_id)

    def _read(self, metrics: Metrics) -> None:
        """Hand the kept steps to the metrics; NonFiniteLoss where one of them went wrong."""
        for line, sample_id in self._readings.read():
            if not math.isfinite(line["loss"]):
                raise self._non_finite(line, sample_id)
            metrics.record([line])

    def _non_finite(self, line: dict[str, float | int], sample_id: torch.Tensor) -> NonFiniteLoss:
        path = self.config.run_dir / f"non-finite-step-{line['step']:09d}.json"
        facts = {name: value if math.isfinite(value) else str(value) for name, value in line.items()}
        path.write_text(json.dumps({**facts, "sample_ids": sample_id.tolist()}, indent=1) + "\n")
        return NonFiniteLoss(
            f"the loss of step {line['step']} is {line['loss']}; the sample ids of its batch are in {path}. "
            "A lower --optimizer.learning-rate is the usual cure; the checkpoints are from before"
        )

    def _save(self, metrics: Metrics) -> None:
        self._read(metrics)  # so that no checkpoint holds the weights of a step whose loss nobody saw
        metrics.sync()
        checkpoint.save(self.checkpoint_folder, self.step, self.state_dict(), keep=self.config.keep_checkpoints)
        self._report_bad_samples()

    def _report_bad_samples(self) -> None:
        self.loader.quarantine.write(self.config.run_dir / "quarantine.json")
