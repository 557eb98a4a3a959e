"""Passes over a loader, its copies, and the processes it meets: in a trainer's own code."""

import copy
import itertools
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from maskco_fast.loaders import (
    IteratorSuperseded,
    RemoteConfig,
    ViewConfig,
    make_loader,
    open_dataset,
)
from maskco_fast.loaders.factory import VIEWS
from maskco_fast.loaders.process import ProcessLoader
from maskco_fast.loaders.quarantine import BadSample
from tests.support.images import write_shards

SMALL = ViewConfig.evaluation(16)
BAD = BadSample(shard="a.tar", key="b", reason="c", found="index")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), 2, 8, side=24)


def make(shards: Any, **options: Any) -> Any:
    return make_loader(shards, 4, **{"views": SMALL, "threads": 1, **options})


def ids(batches):
    return [batch.index.tolist() for batch in batches]


def whole_epochs(shards, count):
    with make(shards) as loader:
        return [ids(loader) for _ in range(count)]


def test_a_pass_that_was_left_early_is_over(shards):
    epochs = whole_epochs(shards, 4)
    with make(shards) as loader:
        first = next(iter(loader))
        assert first.index.tolist() == epochs[0][0]
        assert loader.epoch == 0
        assert ids(loader) == epochs[1]
        assert ids(itertools.islice(loader, 3)) == epochs[2][:3]
        state = loader.state_dict()  # the position in the pass that was left
        assert ids(loader) == epochs[3]
        loader.load_state_dict(state)
        loader.set_epoch(2)
        assert ids(loader) == epochs[2][3:]
        assert ids(loader) == epochs[3]
        loader.set_epoch(1)
        next(iter(loader))
        loader.set_epoch(1)
        assert loader.state_dict()["consumed"] == 4
        assert ids(loader) == epochs[1]
        assert loader.epoch == 2


def test_a_failed_start_repeats_its_position(shards, monkeypatch):
    with make(shards) as loader:
        state = {**loader.state_dict(), "consumed": 8}
        loader.load_state_dict(state)
        monkeypatch.setattr(loader.dataset, "read_stored", lambda indices, memory: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(iter(loader))
        monkeypatch.undo()
        assert ids(loader) == whole_epochs(shards, 1)[0][2:]


def test_a_superseded_iterator_raises(shards):
    with make(shards) as loader:
        for move in (lambda: next(iter(loader)), lambda: loader.set_epoch(7)):
            iterator = iter(loader)
            next(iterator)
            move()
            with pytest.raises(IteratorSuperseded, match=r"make a second loader, such as copy\.d"):
                next(iterator)
            assert len(iterator) == len(loader) == 4
        iterator = iter(loader)
        state = loader.state_dict()
        next(iterator)
        loader.load_state_dict(state)
        with pytest.raises(IteratorSuperseded, match="load_state_dict ended"):
            next(iterator)
        done = iter(loader)
        list(done)
        list(loader)
        assert list(done) == []  # it was not cut short


class _Wrapped(IterableDataset):
    """A loader where a `DataLoader` expects a dataset."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def test_workers_of_a_dataloader_are_refused(shards):
    with make(shards) as loader:
        dataset = _Wrapped(loader)
        assert ids(DataLoader(dataset, batch_size=None)) == whole_epochs(shards, 1)[0]
        workers = DataLoader(
            dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"
        )
        with pytest.raises(ValueError, match="must not be iterated in the workers of a DataLoader"):
            next(iter(workers))


@pytest.mark.parametrize("kind", ["native", "process", "remote", "stream"])
def test_copies_keep_position_and_settings(shards, tmp_path, kind):
    options: dict[str, Any] = {}
    paths: Any = shards
    if kind == "process":
        options = {"loader_process": True}
    if kind == "remote":
        paths = [f"pipe:cat {path}" for path in shards]
        options = {
            "remote": RemoteConfig(cache_folder=str(tmp_path / "cache")),
            "index_folder": tmp_path / "index",
        }
    if kind == "stream":
        options = {"remote": RemoteConfig(mode="stream", epoch_samples=16)}
    with make(paths, seed=3, **options) as loader:
        loader.quarantine.note(BAD)
        state = {**loader.state_dict(), "epoch": 5, "consumed": 8}
        loader.load_state_dict(state)
        copies = [pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader)]
    for mine in copies:
        assert type(mine) is type(loader)
        assert mine.config == loader.config
        assert mine.state_dict() == state
        assert mine.quarantine.entries[-1] == BAD
    with copies[0] as mine, copies[1] as other:
        rest = [batch.sample_id.tolist() for batch in mine]
        assert len(rest) == 2
        assert mine.epoch == 6
        if kind == "process":
            assert isinstance(mine, ProcessLoader)
        else:
            assert [batch.sample_id.tolist() for batch in other] == rest
    if kind != "stream":
        with make(shards, seed=3) as here:
            here.load_state_dict(state)
            assert [batch.sample_id.tolist() for batch in here] == rest


def test_a_running_loader_copies_without_its_threads(shards):
    with make(shards) as loader:
        iterator = iter(loader)
        next(iterator)
        other = copy.deepcopy(loader)
        assert other.state_dict() == loader.state_dict()
        rest, epoch_1 = ids(iterator), ids(loader)
    with other:
        assert ids(other) == epoch_1  # a new pass, as of the original
        other.set_epoch(0)
        assert ids(other)[1:] == rest


def test_slurm_tasks_share_an_epoch(shards, monkeypatch):
    (epoch,) = whole_epochs(shards, 1)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with warnings.catch_warnings(), make(shards) as loader:
        warnings.simplefilter("error")
        assert len(loader) == 4  # a batch script, not a step: one process
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with make(shards) as loader, pytest.warns(RuntimeWarning, match="SLURM task 1's share of 2"):
        assert ids(loader) == epoch[1::2]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with make(shards) as loader:
        assert len(loader) == 4


def test_views_by_name_and_text(shards):
    with make(shards, views="moco_v2", rank=0, world_size=2) as loader:
        assert loader.config.views == ViewConfig.moco_v2()
        assert repr(loader) == (
            "NativeLoader(16 samples in batches of 4, rank 0 of 2: 2 views of 224x224 float32 on "
            "cpu; seed 0, epoch 0)"
        )
    names = [name for name in vars(ViewConfig) if isinstance(vars(ViewConfig)[name], classmethod)]
    assert list(VIEWS) == names
    for wrong in ("mocov2", ["moco_v2"]):
        with pytest.raises(ValueError, match=r"`views` must be a ViewConfig or one of maskco, moc"):
            make(shards, views=wrong)
    dataset = open_dataset(shards, labels="cls", fields="cls")
    assert repr(dataset) == "Dataset(16 samples, 2 shards, 4 classes by cls, fields cls)"


def test_a_block_of_one_shard_is_read_at_a_time(shards):
    with make(shards, shuffle_block=1) as loader:
        first_shard = [index < 8 for batch in ids(loader) for index in batch]
        assert first_shard in ([True] * 8 + [False] * 8, [False] * 8 + [True] * 8)
        state = loader.state_dict()
    with (
        make(shards, shuffle_block=16) as loader,
        pytest.raises(ValueError, match="block 1, this loader 16"),
    ):
        loader.load_state_dict(state)
    with make(shards) as loader:  # which has chosen 16 and takes over the position's
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        following = ids(loader)
    with make(shards, shuffle_block=1) as loader:
        loader.set_epoch(1)
        assert ids(loader) == following
    with pytest.raises(
        ValueError, match="`shuffle_block` must be at least 1 shard, or 'all', got 0"
    ):
        make(shards, shuffle_block=0)


def test_lightning_trains_and_validates(shards):
    """Lightning reads `batch_sampler`; `estimated_stepping_batches` probes the loader."""
    lightning: Any = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)
            self.seen: list[list[int]] = []
            self.validated = 0

        def training_step(self, batch, _):
            view, _ = batch
            self.seen.append(batch.index.tolist())
            return self.layer(view.mean((2, 3))).mean()

        def validation_step(self, batch, _):
            self.validated += len(batch)

        def predict_step(self, batch, _):
            return batch.index

        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == 8
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    module = Module()
    with warnings.catch_warnings(), make(shards) as loader:
        warnings.simplefilter("ignore")
        with make_loader(shards, 6, views=SMALL, shuffle=False, drop_last=False) as val:
            trainer.fit(module, loader, val)
            predicted = trainer.predict(module, val)
    assert module.seen == list(itertools.chain(*whole_epochs(shards, 2)))
    assert module.validated == 6 + 2 * 16
    assert torch.cat(predicted).tolist() == list(range(16))
