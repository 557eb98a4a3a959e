"""The training loop: a step by hand, golden losses, resume to the last bit, non-finite losses."""

import dataclasses
import json
import pathlib
import signal
import tempfile
import threading

import numpy as np
import pytest
import torch

from maskco_fast.loaders import RemoteConfig, make_loader
from maskco_fast.loaders.system.files import write_json
from maskco_fast.methods.maskco import MaskCo, MaskCoConfig
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from maskco_fast.training import checkpoint
from maskco_fast.training.config import TrainConfig, public
from maskco_fast.training.distributed import World
from maskco_fast.training.optimizer import OptimizerConfig, learning_rate
from maskco_fast.training.recipes import RECIPES
from maskco_fast.training.trainer import NonFiniteLoss, Trainer
from tests.support.processes import Ended, run_mains
from tests.support.runs import losses, metrics
from tests.support.small_disk import small_disk
from tests.support.small_methods import OneWeight
from tests.support.tiny_run import (
    BATCH,
    NoiseLoader,
    TinyMaskCo,
    program,
    tiny_config,
    tiny_trainer,
)

GOLDEN = pathlib.Path(__file__).parents[2] / "support" / "golden_losses.json"


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread: the same sums on every machine, and no contention with other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_steps_equal_hand_computed_ones(tmp_path):
    optimizer = OptimizerConfig(learning_rate=256.0, momentum=0.8, weight_decay=0.1)
    config = tiny_config(tmp_path, max_steps=3, optimizer=optimizer)
    method, loader = OneWeight(), NoiseLoader()
    Trainer(config, method, loader).fit()
    weight = key = 0.5
    speed = 0.0
    # Base rate 256 · 6 / 256 = 6, times (1 + cos(pi·step/3)) / 2 = 1, 3/4, 1/4.
    for batch, rate in zip(NoiseLoader(), (6.0, 4.5, 1.5)):
        gradient = batch.query.double().mean().item()
        speed = 0.8 * speed + gradient + 0.1 * weight
        weight -= rate * speed
        key = 0.9 * key + 0.1 * weight
    assert method.query[0].item() == pytest.approx(weight, rel=1e-5)
    assert method.key[0].item() == pytest.approx(key, rel=1e-5)


def test_learning_rate_is_linear_in_the_batch_and_a_cosine_to_zero():
    config = OptimizerConfig()
    assert learning_rate(config, 256, 0, 1000) == pytest.approx(0.03)
    assert learning_rate(config, 512, 500, 1000) == pytest.approx(0.03)
    assert learning_rate(config, 256, 1000, 1000) == pytest.approx(0, abs=1e-12)


def test_weight_decay_is_on_every_trained_parameter(tmp_path):
    trainer = tiny_trainer(tiny_config(tmp_path))
    (group,) = trainer.optimizer.param_groups
    assert group["weight_decay"] == 1e-4
    trained = [parameter for parameter in trainer.method.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in group["params"]} == {
        id(parameter) for parameter in trained
    }
    assert len(trained) == len(list(trainer.method.query.parameters()))


def golden_run(run_dir: pathlib.Path) -> list[float]:
    """Five float64 steps of the real method on noise, from weights bit-identical on every CPU."""
    config = tiny_config(
        run_dir,
        max_steps=5,
        batch_size=4,
        checkpoint_every=100,
        model=ModelConfig(trunk="resnet18", view_size=64, group_size=2),
        maskco=MaskCoConfig(mph_blocks=1, momentum=0.9),
        optimizer=OptimizerConfig(learning_rate=1.0),
    )
    method = make_method(
        config.method, config.method_config, config.model, seed=config.seed
    ).double()
    assert isinstance(method, MaskCo)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for query, key in zip(method.query.parameters(), method.key.parameters()):
            if query.dim() > 1:
                scale = (2 / query[0].numel()) ** 0.5
                query.copy_(torch.from_numpy(random.standard_normal(tuple(query.shape)) * scale))
                key.copy_(query)
    Trainer(config, method, NoiseLoader(size=64, batch=4, dtype=torch.float64)).fit()
    return [line["loss"] for line in metrics(run_dir)]


def test_golden_losses(tmp_path):
    """A change of these numbers is a change of what is trained.

    In float64 another CPU or thread count moves them by less than 1e-9. In float32 a rounding error
    at a ReLU's kink moves a loss by 1e-3. Regenerate with
    `python -m tests.maskco_fast.training.test_trainer`.
    """
    assert golden_run(tmp_path) == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-6)


def test_every_line_has_what_others_rely_on(tmp_path):
    tiny_trainer(tiny_config(tmp_path, log_every=5)).fit()
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["epoch"] for line in lines] == [0] * 5 + [1] * 5 + [2] * 2
    for line in lines:
        assert line["images_per_s"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert 0 <= line["accuracy"] <= 1
    assert json.loads((tmp_path / "quarantine.json").read_text())["quarantined"] == 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[list, dict]:
    """The losses and final weights of twelve uninterrupted steps."""
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    assert tiny_trainer(tiny_config(run_dir)).fit() is None
    state = checkpoint.load_newest(run_dir / "checkpoints")
    assert state is not None
    return losses(run_dir), state["method"]


def assert_same_run(run_dir: pathlib.Path, uninterrupted: tuple[list, dict]) -> None:
    assert losses(run_dir) == uninterrupted[0]
    state = checkpoint.load_newest(run_dir / "checkpoints")
    assert state is not None
    for name, value in uninterrupted[1].items():
        assert torch.equal(state["method"][name], value), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_to_the_last_bit(tmp_path, uninterrupted, number):
    before = signal.getsignal(number)
    config = tiny_config(tmp_path)
    assert tiny_trainer(config, signal_at=7, number=number).fit() == signal.Signals(number).name
    assert signal.getsignal(number) is before
    assert (
        metrics(tmp_path)[-1]["step"] == 6
    )  # the batch that came with the signal is left for the next time
    assert checkpoint.checkpoints(tmp_path / "checkpoints")[-1].name == "step-000000006.pt"
    assert tiny_trainer(config).fit() is None
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_interrupt_ends_at_once(tmp_path):
    def interrupt_twice(*_):
        if trainer.step == 1:  # while the second step runs
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    trainer = tiny_trainer(tiny_config(tmp_path))
    trainer.method.register_forward_hook(interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_trains_outside_the_main_thread_too(tmp_path):
    result = []
    thread = threading.Thread(
        target=lambda: result.append(tiny_trainer(tiny_config(tmp_path, max_steps=2)).fit())
    )
    thread.start()
    thread.join()
    assert result == [None]


def test_killed_processes_leave_a_run_that_goes_on_to_the_last_bit(tmp_path, uninterrupted):
    def run(*arguments: str) -> Ended:
        (ended,) = run_mains(program, ["--run-dir", str(tmp_path), *arguments])
        return ended

    killed = run("--kill-at", "8", "--kill", "SIGKILL")
    assert killed.returncode == -signal.SIGKILL
    assert metrics(tmp_path)[-1]["step"] == 7  # one more than the checkpoint at 6 knows of
    ended = run("--kill-at", "11", "--kill", "SIGTERM")
    assert ended.returncode == 0, ended.stderr
    assert "SIGTERM" in ended.stdout
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 11))
    assert tiny_trainer(tiny_config(tmp_path)).fit() is None
    assert_same_run(tmp_path, uninterrupted)


def test_a_real_loader_resumes_in_mid_epoch_to_the_last_bit(tmp_path, make_shards):
    shards = make_shards(shards=2, samples=14, bad=(5,), side=80)  # four batches of six an epoch

    def run(name: str, stop_at: int | None = None) -> str | None:
        config = tiny_config(tmp_path / name, max_steps=7)
        method = TinyMaskCo(config).train()
        with make_loader(
            shards, BATCH, views=method.views, backend="reference", threads=1
        ) as loader:
            trainer = Trainer(config, method, loader)
            if stop_at is not None:
                method.register_forward_hook(
                    lambda *_: (
                        signal.raise_signal(signal.SIGTERM) if trainer.step + 1 == stop_at else None
                    )
                )
            return trainer.fit()

    assert run("whole") is None
    for stop_at in (2, 6):
        assert run("parts", stop_at) == "SIGTERM"
        assert metrics(tmp_path / "parts")[-1]["step"] == stop_at
    assert run("parts") is None
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert [line["epoch"] for line in metrics(tmp_path / "whole")] == [0] * 4 + [1] * 3


def test_a_damaged_checkpoint_costs_steps_not_the_run(tmp_path, uninterrupted):
    config = tiny_config(tmp_path)
    tiny_trainer(config, signal_at=8, number=signal.SIGTERM).fit()
    newest = checkpoint.checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="step-000000007.pt is damaged"):
        tiny_trainer(config).fit()
    assert_same_run(tmp_path, uninterrupted)


def test_a_non_finite_loss_stops_and_names_the_batch(tmp_path):
    with pytest.raises(NonFiniteLoss, match="loss of step 5 is nan"):
        tiny_trainer(tiny_config(tmp_path), nan_at=5).fit()
    facts = json.loads((tmp_path / "non-finite-step-000000005.json").read_text())
    assert facts["sample_ids"] == [400 + image for image in range(BATCH)]
    assert facts["loss"] == "nan"
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == [
        "step-000000003.pt"
    ]


@pytest.fixture
def read_late(monkeypatch):
    """A function that makes a trainer read its losses every `every` steps, as on CUDA.

    Returns the list of the steps at which losses are then read.
    """

    def patch(trainer: Trainer, every: int) -> list[int]:
        deferred = trainer._deferred
        assert deferred.every == 1  # what one process on a CPU has
        monkeypatch.setattr(deferred, "every", every)
        read = deferred.read
        steps = []

        def recording_read():
            records = read()
            if records:
                steps.append(trainer.step)
            return records

        monkeypatch.setattr(deferred, "read", recording_read)
        return steps

    return patch


def test_losses_read_together_are_all_written(tmp_path, uninterrupted, read_late):
    trainer = tiny_trainer(tiny_config(tmp_path, log_every=5, checkpoint_every=12))
    steps = read_late(trainer, 5)
    trainer.fit()
    assert steps == [5, 10, 12]
    assert losses(tmp_path) == uninterrupted[0]


@pytest.mark.parametrize(
    ("nan_at", "saved"), [(2, []), (3, []), (4, [3]), (6, [3]), (11, [3, 6, 9]), (12, [3, 6, 9])]
)
def test_no_checkpoint_holds_a_step_whose_loss_was_not_read(tmp_path, read_late, nan_at, saved):
    trainer = tiny_trainer(tiny_config(tmp_path, log_every=50), nan_at=nan_at)
    steps = read_late(trainer, 50)
    with pytest.raises(NonFiniteLoss, match=f"loss of step {nan_at} is nan"):
        trainer.fit()
    read_at = -(-nan_at // 3) * 3  # the next checkpoint's step, not the step itself
    assert steps == list(range(3, read_at + 1, 3))
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, nan_at))
    paths = checkpoint.checkpoints(tmp_path / "checkpoints")
    assert [checkpoint.load(path)["step"] for path in paths] == saved
    for path in paths:
        for name, value in checkpoint.load(path)["method"].items():
            assert value.isfinite().all(), name


def test_the_checkpoint_of_a_stopped_run_holds_no_unread_loss_either(tmp_path, read_late):
    config = tiny_config(tmp_path, log_every=50, checkpoint_every=50)
    trainer = tiny_trainer(config, nan_at=2, signal_at=5, number=signal.SIGTERM)
    read_late(trainer, 50)
    with pytest.raises(NonFiniteLoss, match="loss of step 2 is nan"):
        trainer.fit()
    assert trainer.step == 4
    assert not checkpoint.checkpoints(tmp_path / "checkpoints")


def test_resume_refuses_another_configuration_and_no_resume_an_old_run(tmp_path):
    config = tiny_config(tmp_path, max_steps=3)
    tiny_trainer(config).fit()
    with pytest.raises(
        ValueError, match=r"other settings: maskco.temperature: 0.2 -> 0.1; seed: 0 -> 4"
    ):
        tiny_trainer(tiny_config(tmp_path, seed=4, maskco=MaskCoConfig(temperature=0.1))).fit()
    with pytest.raises(ValueError, match="already holds a run"):
        tiny_trainer(tiny_config(tmp_path, resume=False)).fit()
    assert len(metrics(tmp_path)) == 3


def test_resume_with_other_arithmetic_warns(tmp_path):
    tiny_trainer(tiny_config(tmp_path, max_steps=3)).fit()
    torch.set_num_threads(2)
    with pytest.warns(RuntimeWarning) as warned:
        tiny_trainer(tiny_config(tmp_path, max_steps=4)).fit()
    assert any("threads 2 after 1" in str(one.message) for one in warned)
    assert any("max_steps 4 after 3" in str(one.message) for one in warned)
    assert len(metrics(tmp_path)) == 4


def test_groups_of_one_batch_equal_batches_of_one_group():
    """6 images in groups of 3 have the mean loss of two batches of 3: BatchNorm is per group."""
    config = tiny_config(pathlib.Path("unused"))
    method = TinyMaskCo(config).train()
    batch = next(iter(NoiseLoader()))
    whole = method(batch)["loss"]
    halves = [method(half) for half in batch.split(3)]
    assert whole.item() == pytest.approx(sum(half["loss"].item() for half in halves) / 2, rel=1e-6)


def test_accumulated_micro_batches_train_as_the_whole_batch(tmp_path, uninterrupted):
    tiny_trainer(tiny_config(tmp_path, accumulate=2)).fit()
    for part, whole in zip(losses(tmp_path), uninterrupted[0], strict=True):
        assert part == pytest.approx(whole, rel=1e-5)


def test_bf16_autocast_on_the_cpu_trains(tmp_path):
    tiny_trainer(tiny_config(tmp_path / "bf16", precision="bf16", max_steps=4)).fit()
    tiny_trainer(tiny_config(tmp_path / "fp32", max_steps=4)).fit()
    mixed, plain = (
        [line["loss"] for line in metrics(tmp_path / name)] for name in ("bf16", "fp32")
    )
    assert mixed != plain
    assert mixed == pytest.approx(plain, rel=0.05)


def test_cuda_graphs_are_for_one_process_on_cuda_without_a_schedule(tmp_path):
    config = tiny_config(tmp_path, cuda_graphs=True)
    with pytest.raises(ValueError, match="--cuda-graphs` requires CUDA"):
        tiny_trainer(config)
    trainer = tiny_trainer(tiny_config(tmp_path))
    trainer.config, trainer.device = config, torch.device("cuda", 0)
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.config = dataclasses.replace(config, optimizer=OptimizerConfig(name="lars"))
    with pytest.raises(ValueError, match="requires sgd with fp16"):
        trainer._make_step()
    trainer.method.scheduled = True
    with pytest.raises(ValueError, match="this method has a schedule"):
        trainer._make_step()
    trainer.world = World(size=2)
    with pytest.raises(ValueError, match="is for one process, got 2"):
        trainer._make_step()


def test_recipes_name_themselves_and_hold_the_papers_values():
    for name, recipe in RECIPES.items():
        assert recipe().recipe == name
        assert recipe().batch_size % recipe().model.group_size == 0
    paper = RECIPES["paper"]()
    assert (paper.model.trunk, paper.model.view_size, paper.batch_size, paper.max_steps) == (
        "resnet50",
        224,
        256,
        500_000,
    )
    assert (
        paper.optimizer.weight_decay,
        paper.optimizer.learning_rate,
        paper.maskco.mph_blocks,
    ) == (1e-3, 0.03, 3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps({"losses": golden_run(pathlib.Path(folder))}, indent=1) + "\n")


def test_a_run_writes_no_secrets_and_resumes_with_others(tmp_path):
    def config(secret: str, steps: int) -> TrainConfig:
        shards = (
            f"https://me:{secret}@host/a.tar?X-Amz-Signature={secret}",
            f"pipe:curl -H 'Authorization: Bearer {secret}' https://host/b.tar",
        )
        remote = RemoteConfig(headers=(f"X-Key: {secret}",), s3_endpoint=f"http://{secret}@host")
        return tiny_config(tmp_path, max_steps=steps, shards=shards, remote=remote)

    tiny_trainer(config("s3cret", 3)).fit()
    write_json(tmp_path / "config.json", public(config("s3cret", 3)))
    trainer = tiny_trainer(config("another", 6))
    trainer.fit()
    assert trainer.step == 6
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    for file in files:
        content = file.read_bytes()
        assert b"s3cret" not in content
        assert b"another" not in content
    assert b"https://host/a.tar" in (tmp_path / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_closed_terminal_saves_as_sigterm_does(tmp_path, name):
    trainer = tiny_trainer(tiny_config(tmp_path), signal_at=5, number=signal.Signals[name])
    before = signal.signal(signal.Signals[name], signal.SIG_DFL)  # the tests may run under nohup
    try:
        assert trainer.fit() == name
    finally:
        signal.signal(signal.Signals[name], before)
    assert checkpoint.checkpoints(trainer.checkpoint_folder)[-1].name == "step-000000004.pt"


def test_nohup_is_respected(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert tiny_trainer(tiny_config(tmp_path), signal_at=5, number=signal.SIGHUP).fit() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_ends_a_run_with_its_older_checkpoints_intact(tmp_path):
    with small_disk(tmp_path / "disk", "1200k") as disk:
        config = tiny_config(disk / "run", checkpoint_every=1, keep_checkpoints=9)
        trainer = tiny_trainer(config)
        with pytest.raises(checkpoint.CheckpointNotWritten, match="the older checkpoints are int"):
            trainer.fit()
        saved = checkpoint.checkpoints(trainer.checkpoint_folder)
        assert len(saved) > 1
        for path in saved:
            checkpoint.load(path)


def test_checkpoints_of_given_steps_are_written_and_kept(tmp_path):
    config = tiny_config(
        tmp_path, max_steps=8, checkpoint_every=3, keep_checkpoints=1, keep_steps=(2, 5)
    )
    tiny_trainer(config).fit()
    left = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt"))
    assert left == [f"step-{step:09d}.pt" for step in (2, 5, 8)]
