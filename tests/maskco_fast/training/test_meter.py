"""images/s and data wait in front of a device that lags behind the host, on simulated clocks."""

import dataclasses
import types
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from maskco_fast.kernels.plan import VIEW_FLOATS
from maskco_fast.loaders import Batch, Quarantine, ViewConfig
from maskco_fast.loaders.config import LoaderConfig
from maskco_fast.loaders.device_stage import DeviceStage
from maskco_fast.loaders.request import Rendered, Request
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training import trainer as trainer_module
from maskco_fast.training.meter import HostClock, StepMeter, make_clock
from maskco_fast.training.metrics import describe
from maskco_fast.training.trainer import Trainer
from tests.support.runs import losses, metrics
from tests.support.simulated_device import SimulatedDevice
from tests.support.small_methods import OneWeight
from tests.support.tiny_run import tiny_config

IMAGES, AUGMENTATION, STEP, LAUNCH = 4, 0.010, 0.090, 0.005
TRUE_SPEED = IMAGES / (AUGMENTATION + STEP)


class StagedLoader:
    """A loader that has a batch every `seconds`, behind the product's device stage."""

    def __init__(self, device: SimulatedDevice, seconds: float) -> None:
        self.quarantine = Quarantine()
        self.epoch = 0
        self.before_device_work: Callable[[], None] = lambda: None
        self._device = device
        self._seconds = seconds
        config = LoaderConfig(batch_size=IMAGES, views=ViewConfig.npid(8), device="meta")
        samples = np.zeros(IMAGES, [("sample_id", "i8"), ("target", "i8")])
        dataset = types.SimpleNamespace(
            samples=samples, sample_ids=lambda indices, **_: samples["sample_id"][indices]
        )
        self._stage = DeviceStage(
            dataset,  # type: ignore[arg-type]
            config,
            device,
            torch.device("cpu"),
            before_work=lambda: self.before_device_work(),
        )
        self._stage._augment = self._augment  # type: ignore[assignment]

    def _augment(self, memory: torch.Tensor, *_: object, **__: object) -> list[torch.Tensor]:
        self._device.work(AUGMENTATION)
        return [memory.view(IMAGES, 8, 8, 3).permute(0, 3, 1, 2).float()]

    def _rendered(self) -> Iterator[Rendered]:
        numbers = np.arange(IMAGES)
        ready = self._device.now
        while True:
            ready += self._seconds
            self._device.now = max(self._device.now, ready)
            rows = np.zeros((IMAGES, VIEW_FLOATS), np.float32)
            request = Request(0, numbers, rows, rows, numbers, np.zeros(IMAGES, bool))
            yield Rendered(request, (torch.ones(IMAGES, 8, 8, 3, dtype=torch.uint8),))

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[Batch]:
        return self._stage.batches(self._rendered())  # type: ignore[arg-type]

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass

    def interrupt(self) -> None:
        pass


class SlowMonitor:
    """Takes the device and the host a second after every fifth step."""

    every = 5

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device

    def measure(self, *_: object) -> dict[str, float]:
        self._device.work(1.0)
        self._device.host_waits(self._device.done())
        return {}


@dataclasses.dataclass
class Measured:
    """Means over a run's lines after the first, and the truth."""

    images_per_s: float
    data_wait: float
    busy: float
    """Share of the time in which the device worked."""
    lines: list[dict]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[..., Measured]:
    def run(
        *, loader_seconds: float, copy_seconds: float = 0.001, host_clock: bool = False, **more
    ) -> Measured:
        device = SimulatedDevice(copy_seconds=copy_seconds)
        clock = types.SimpleNamespace(
            mark=lambda: device.now, seconds=lambda earlier, later: later - earlier
        )
        monkeypatch.setattr(trainer_module, "make_clock", lambda _: clock if host_clock else device)
        method = OneWeight()
        monkeypatch.setattr(method, "after_step", lambda progress: device.work(STEP, launch=LAUNCH))
        monitor = SlowMonitor(device) if more.pop("monitor", False) else None
        config = tiny_config(
            tmp_path,
            batch_size=IMAGES,
            model=ModelConfig(group_size=4),
            max_steps=40,
            checkpoint_every=100,
            log_every=10,
        )
        trainer = Trainer(config, method, StagedLoader(device, loader_seconds), monitor=monitor)
        deferred = trainer._deferred
        monkeypatch.setattr(deferred, "every", 20)
        read = deferred.read

        def waiting_read() -> list:
            device.host_waits(device.done())  # a real one copies the losses to the host
            return read()

        monkeypatch.setattr(deferred, "read", waiting_read)
        trainer.fit()
        lines = metrics(tmp_path)
        assert len(lines) == 40
        seconds = [IMAGES / line["images_per_s"] for line in lines[1:]]
        waited = sum(line["data_wait"] * second for line, second in zip(lines[1:], seconds))
        return Measured(
            images_per_s=IMAGES * len(seconds) / sum(seconds),
            data_wait=waited / sum(seconds),
            busy=device.busy / device.now,
            lines=lines,
        )

    return run


def test_a_fast_loader_is_no_data_wait(run):
    """The device computes without a pause; the host waits for it inside `next(loader)`."""
    measured = run(loader_seconds=0.0)
    assert measured.busy > 0.98
    assert measured.data_wait < 0.01
    assert measured.images_per_s == pytest.approx(TRUE_SPEED, rel=0.01)
    for line in measured.lines[1:]:
        assert line["images_per_s"] == pytest.approx(TRUE_SPEED, rel=0.1)


def test_the_hosts_clock_would_be_wrong(run):
    """Why the meter needs the device's clock: the same run, metered by the host's."""
    measured = run(loader_seconds=0.0, host_clock=True)
    assert measured.busy > 0.98
    assert measured.data_wait > 0.5
    assert max(line["images_per_s"] for line in measured.lines) > 100


def test_a_slow_loader_starves_the_device(run):
    measured = run(loader_seconds=0.3)
    assert measured.images_per_s == pytest.approx(IMAGES / 0.3, rel=0.01)
    assert measured.data_wait == pytest.approx(1 - measured.busy, abs=0.03)
    assert measured.data_wait == pytest.approx(2 / 3, abs=0.02)


def test_a_slow_bus_starves_the_device(run):
    """The batch is on the host in time; three tensors of it take 150 ms to the device."""
    measured = run(loader_seconds=0.0, copy_seconds=0.05)
    assert measured.images_per_s == pytest.approx(IMAGES / 0.15, rel=0.02)
    assert measured.data_wait == pytest.approx(1 / 3, abs=0.02)


def test_a_measurement_counts_nowhere(run):
    measured = run(loader_seconds=0.0, monitor=True)
    assert measured.busy > 0.95
    assert measured.data_wait < 0.01
    assert measured.images_per_s == pytest.approx(TRUE_SPEED, rel=0.02)


def test_the_meter_changes_no_loss(run, tmp_path):
    run(loader_seconds=0.0)
    first = losses(tmp_path)
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run(loader_seconds=0.3, monitor=True)
    assert losses(tmp_path) == first


def test_on_a_cpu_the_hosts_clock_is_the_devices():
    clock = make_clock(torch.device("cpu"))
    assert isinstance(clock, HostClock)
    meter = StepMeter(clock)
    meter.ask()
    meter.arrive()
    timing = meter.end(8)
    assert timing.began <= timing.asked <= timing.ready <= timing.ended
    found = timing.read()
    assert found["images_per_s"] > 0
    assert 0 <= found["data_wait"] <= 1


def test_progress_weights_steps_by_their_time():
    """A step of 1 s, all of it a wait, and one of 0.1 s: 8 images in 1.1 s."""
    common = {"step": 1, "loss": 1.0, "learning_rate": 0.1}
    lines = [
        {**common, "images_per_s": 4.0, "data_wait": 1.0},
        {**common, "images_per_s": 40.0, "data_wait": 0.0},
    ]
    text = describe(lines, 2, remaining=None)
    assert "7.3 images/s" in text
    assert "data wait 91 %" in text


@pytest.mark.gpu
def test_on_cuda_a_lagging_device_is_no_data_wait(tmp_path):
    """The loader is idle: 20 steps of about 30 ms, of which the host queues each at once."""
    device = torch.device("cuda")
    clock = make_clock(device)
    meter = StepMeter(clock)
    timings = []
    for _ in range(20):
        meter.ask()
        meter.arrive()
        torch.cuda._sleep(50_000_000)  # cycles
        timings.append(meter.end(4))
    torch.cuda.synchronize()
    found = [timing.read() for timing in timings[1:]]
    assert max(one["data_wait"] for one in found) < 0.02
    speeds = sorted(one["images_per_s"] for one in found)
    assert speeds[-1] / speeds[0] < 1.5
