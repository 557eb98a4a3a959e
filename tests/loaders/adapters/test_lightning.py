"""Lightning's Trainer over our loaders: every checkpoint resumes at its sample."""

import logging
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from maskco_fast.loaders import ViewConfig, make_loader
from tests.support.processes import free_port, run_ranks
from tests.support.recorder import Recorder

pl: Any = pytest.importorskip("pytorch_lightning", reason="lightly brings pytorch_lightning")


class Module(pl.LightningModule):
    def __init__(self, estimates: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.estimates = estimates

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.layer(batch.query.mean((2, 3))).mean()

    def validation_step(self, batch: Any, _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.estimates:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(before)


def make(shards: list[str], form: Recorder) -> Any:
    return make_loader(shards, 4, views=ViewConfig.evaluation(16), form=form, threads=1)


def trainer(callbacks: list[Any], **options: Any) -> Any:
    return pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        callbacks=callbacks,
        **options,
    )


def every_steps(steps: int, folder: pathlib.Path | str) -> Any:
    """Lightning's callback that saves a checkpoint every so many steps, and keeps all."""
    return pl.callbacks.ModelCheckpoint(
        folder,
        filename="{step}",
        every_n_train_steps=steps,
        save_top_k=-1,
        save_on_train_epoch_end=False,
    )


def fit(shards: list[str], how: str, folder: pathlib.Path, **options: Any) -> list[list[int]]:
    """Train two epochs of 4 steps, or the rest of them; save after each step and each epoch.

    `how`: "callback" or "module", which keeps the position. Returns the samples of each step.
    """
    from maskco_fast.loaders.adapters.lightning import KeepPosition, LoaderModule

    each_epoch = pl.callbacks.ModelCheckpoint(folder, filename="end-{step}", save_top_k=-1)
    keeps = [KeepPosition()] if how == "callback" else []
    form = Recorder()
    estimates = options.pop("estimates", False)
    with make(shards, form) as loader, make(shards, Recorder()) as val:
        data = {"datamodule": LoaderModule(loader, val=val)} if how == "module" else {}
        if not data:
            data = {"train_dataloaders": loader, "val_dataloaders": val}
        trainer([every_steps(1, folder), each_epoch, *keeps]).fit(
            Module(estimates), **data, **options
        )
    return form.seen


@pytest.mark.parametrize("estimates", [False, True])
@pytest.mark.parametrize("how", ["callback", "module"])
def test_every_checkpoint_resumes_at_its_sample(shards, tmp_path, how, estimates):
    """`estimates`: the module reads `estimated_stepping_batches`, after which Lightning restores no
    loader by itself."""
    seen = fit(shards, how, tmp_path / "whole", estimates=estimates)
    with make(shards, Recorder()) as loader:
        assert seen == [batch.index.tolist() for _ in range(2) for batch in loader]
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(checkpoints) == 8 + 2
    for checkpoint in checkpoints:
        step = torch.load(checkpoint, weights_only=True)["global_step"]
        rest = fit(shards, how, tmp_path / "rest", estimates=estimates, ckpt_path=checkpoint)
        assert rest == seen[step:], checkpoint.name


def test_validation_leaves_the_position(shards, tmp_path):
    from maskco_fast.loaders.adapters.lightning import LoaderModule

    fit(shards, "module", tmp_path)
    with make(shards, Recorder()) as loader:
        module = LoaderModule(loader, val=make(shards, Recorder()))
        trainer([]).validate(Module(), datamodule=module, ckpt_path=tmp_path / "step=3.ckpt")
        assert loader.state_dict()["consumed"] == 0


def process(rank: int, port: int, shards: list[str], folder: str) -> None:
    """One of two processes that Lightning finds itself in."""
    from maskco_fast.loaders.adapters.lightning import KeepPosition

    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
    }
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    seen = []
    for checkpoint in (None, f"{folder}/step=3.ckpt"):
        form = Recorder()
        with make_loader(shards, 2, views=ViewConfig.evaluation(16), form=form) as loader:
            mine = trainer([KeepPosition(), every_steps(3, folder)], devices=2, strategy="ddp")
            mine.fit(Module(estimates=True), loader, ckpt_path=checkpoint)
        seen.append(form.seen)
    torch.save(seen, f"{folder}/{rank}.pt")


def test_two_processes_share_each_epoch_and_resume(shards, tmp_path):
    run_ranks(process, (free_port(), shards, str(tmp_path)))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    with make(shards, Recorder()) as loader:
        whole = [batch.index.tolist() for _ in range(2) for batch in loader]
    # A global batch of 2 ranks × 2 is a batch of 4.
    both, rest = ([[*a, *b] for a, b in zip(*shares)] for shares in zip(first, second))
    assert both == whole
    assert rest == whole[3:]
