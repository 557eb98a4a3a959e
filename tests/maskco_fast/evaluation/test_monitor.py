"""The k-NN monitor: the same losses with and without it, its value, its place in the logs."""

import io
import pathlib
import signal

import pytest
import torch

from maskco_fast.evaluation.features import extract, pooled
from maskco_fast.evaluation.knn import knn_top1
from maskco_fast.evaluation.monitor import KnnMonitor, MonitorConfig
from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.methods.maskco import MaskCo, MaskCoConfig
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training import checkpoint
from maskco_fast.training.config import TrainConfig
from maskco_fast.training.metrics import TrainingProgress
from maskco_fast.training.trainer import Trainer
from tests.support.runs import losses, metrics
from tests.support.tiny_run import NoiseLoader, tiny_config

SIZE, BATCH = 32, 4
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shards(make_shards) -> list[str]:
    """Two labelled shards of 12 images."""
    return make_shards(shards=2, samples=12)


def config(run_dir: pathlib.Path, shards: list[str], every: int = 2, **fields) -> TrainConfig:
    return tiny_config(
        run_dir,
        batch_size=BATCH,
        max_steps=4,
        checkpoint_every=10,
        model=ModelConfig(trunk="resnet10-small", view_size=SIZE, group_size=BATCH),
        maskco=MaskCoConfig(mph_blocks=0),
        monitor=MonitorConfig(
            every=every, train_shards=(shards[0],), val_shards=(shards[1],), k=3, batch_size=5
        ),
        **fields,
    )


def make_monitor(settings: TrainConfig) -> KnnMonitor | None:
    if not settings.monitor.every:
        return None
    return KnnMonitor(settings.monitor, size=SIZE, device=CPU, precision="fp32", threads=1)


def train(settings: TrainConfig, signal_at: int = 0) -> Trainer:
    method = make_method("maskco", settings.maskco, settings.model, seed=0)
    loader = NoiseLoader(
        size=SIZE, batch=BATCH, signal_at=signal_at, number=signal.SIGTERM if signal_at else 0
    )
    trainer = Trainer(settings, method, loader, monitor=make_monitor(settings))
    trainer.fit()
    return trainer


def state(run_dir: pathlib.Path) -> dict:
    found = checkpoint.load_newest(run_dir / "checkpoints")
    assert found is not None
    return found


def test_the_run_is_the_same_with_and_without_to_the_bit(tmp_path, shards):
    train(config(tmp_path / "with", shards))
    train(config(tmp_path / "without", shards, every=0))
    lines = losses(tmp_path / "with")
    assert [line.pop("knn_top1", None) is not None for line in lines] == [False, True, False, True]
    assert lines == losses(tmp_path / "without")
    measured, plain = state(tmp_path / "with"), state(tmp_path / "without")
    for name, value in plain["method"].items():
        assert torch.equal(measured["method"][name], value), name
    assert torch.equal(measured["random"]["torch"], plain["random"]["torch"])


def test_the_value_is_that_of_the_features(tmp_path, shards):
    settings = config(tmp_path, shards)
    trainer = train(settings)
    assert isinstance(trainer.method, MaskCo)
    trunk = trainer.method.query.get_submodule("trunk").eval()
    shares = []
    for shard in shards:
        dataset = open_dataset([shard], labels="cls")
        with make_loader(
            dataset, 7, views=ViewConfig.evaluation(SIZE), shuffle=False, drop_last=False, threads=1
        ) as loader:
            features = extract(pooled(trunk), loader, "fp32")
            assert features is not None
            shares.append(features)
    near, far = shares
    expected = knn_top1(near, far, [settings.monitor.setting], classes=4, device=CPU)
    assert [metrics(tmp_path)[-1]["knn_top1"]] == expected


def test_each_measurement_takes_the_weights_of_its_step(tmp_path, shards):
    settings = config(tmp_path, shards)
    monitor = make_monitor(settings)
    assert monitor is not None
    for seed in (0, 1):
        method = make_method("maskco", settings.maskco, settings.model, seed=seed)
        method.query.get_buffer("trunk.bn1.running_mean").fill_(seed)
        copy = monitor._snapshot(method)
        expected = method.query.get_submodule("trunk").state_dict()
        found = copy.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert not copy.training


def test_a_resumed_run_may_change_the_monitor(tmp_path, shards):
    train(config(tmp_path, shards), signal_at=3)
    assert metrics(tmp_path)[-1]["step"] == 2
    train(config(tmp_path, shards, every=3), signal_at=4)
    train(config(tmp_path, shards, every=0))
    assert metrics(tmp_path)[-1]["step"] == 4
    assert [line["step"] for line in metrics(tmp_path) if "knn_top1" in line] == [2, 3]


def test_a_signal_ends_a_measurement(tmp_path, shards):
    settings = config(tmp_path, shards)
    monitor = make_monitor(settings)
    assert monitor is not None
    method = make_method("maskco", settings.maskco, settings.model, seed=0)
    answers = iter([False, False])
    assert monitor.measure(method, lambda: next(answers, True)) == {}


def test_tensorboard_and_the_progress_line_show_it(tmp_path, shards):
    event_file_loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    train(config(tmp_path, shards, tensorboard=True, log_every=3))
    events = event_file_loader(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("knn_top1")] == [2, 4]
    assert [event.step for event in events.Scalars("loss")] == [3]
    stream = io.StringIO()
    progress = TrainingProgress(steps=4, window=2, stream=stream)
    for line in metrics(tmp_path):
        progress.add(line)
    progress.close()
    value = metrics(tmp_path)[-1]["knn_top1"]
    assert stream.getvalue().splitlines()[-1].count(f"k-NN {value:.1f} %") == 1


def test_shards_come_in_pairs():
    with pytest.raises(ValueError, match="must be given together"):
        MonitorConfig(every=5, train_shards=("x.tar",))
    with pytest.raises(ValueError, match="`every` must be at least 0"):
        MonitorConfig(every=-1)
