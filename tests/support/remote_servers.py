"""Shared helpers of the remote tests: impatient settings and whole epochs."""

import pathlib
from typing import Any

import torch

from maskco_fast.loaders import Batch, RemoteConfig, ViewConfig, make_loader

VIEWS = ViewConfig.maskco(48)


def hurried(folder: pathlib.Path, **changes: Any) -> RemoteConfig:
    """A config with small requests and short waits, so that faults cost little time."""
    options = {
        "cache_gb": 1e-3,
        "request_mb": 0.02,
        "timeout": 0.5,
        "backoff": 0.02,
        "patience": 20.0,
        **changes,
    }
    return RemoteConfig(cache_folder=str(folder / "cache"), **options)


def batches(
    shards: Any, folder: pathlib.Path, config: RemoteConfig | None = None, **options: Any
) -> list[Batch]:
    """The batches of one epoch, with an index folder inside `folder`."""
    options = {"views": VIEWS, "index_folder": folder / "index", **options}
    with make_loader(shards, 8, remote=config or hurried(folder), **options) as loader:
        return list(loader)


def assert_same(mine: list[Batch], theirs: list[Batch]) -> None:
    """Assert equal samples in equal order, bit for bit."""
    for one, other in zip(mine, theirs, strict=True):
        for name in ("sample_id", "target", "index", "masked_box", "key_boxes", "query", "key"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
