"""Run a codebase's script and record the samples of each batch; a part of `dropin`."""

import functools
import inspect
import json
import os
import pathlib
import runpy
import socket
import sys
from typing import Any

import torch

from maskco_fast.kernels.views import ViewConfig
from maskco_fast.loaders import Batch
from maskco_fast.loaders.factory import VIEWS
from maskco_fast.loaders.loader import Loader

SIDE = 64
"""Of the views, pixels."""
SAVE_AT = 3
"""The step after which Lightning's Trainer saves a checkpoint."""


def record(path: pathlib.Path) -> None:
    """Have each loader write the samples' numbers of each batch that it delivers."""
    make = Loader.__init__

    def make_recording(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        form = self._form

        def recorded(batch: Batch) -> Any:
            with path.open("a") as file:
                print(json.dumps(batch.index.tolist()), file=file)
            return batch if form is None else form(batch)

        self._form = recorded

    Loader.__init__ = make_recording  # type: ignore[method-assign]


def shrink_views() -> None:
    """Make the published views small."""
    for name in ("moco_v2", "simclr", "byol"):
        VIEWS[name] = functools.partial(getattr(ViewConfig, name), SIDE)
    VIEWS["dino"] = functools.partial(ViewConfig.dino, SIDE, SIDE // 2)


def be_the_only_rank() -> None:
    """Set torchrun's variables, which some scripts need."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    )


def stay_in_this_process() -> None:
    """Replace `spawn`, whose processes would not record."""
    torch.multiprocessing.spawn = lambda fn, args=(), **_: fn(0, *args)


def do_without_gpu() -> None:
    """Let scripts that call `.cuda()` run on the CPU."""
    parallel: Any = torch.nn.parallel.DistributedDataParallel
    make, load = parallel.__init__, torch.load
    begin = torch.distributed.init_process_group

    def make_on_cpu(self: Any, module: Any, device_ids: Any = None, **options: Any) -> None:
        make(self, module, **options)

    def load_on_cpu(*arguments: Any, **options: Any) -> Any:
        return load(*arguments, **{**options, "map_location": "cpu"})

    def begin_on_cpu(backend: str | None = None, **options: Any) -> None:
        begin("gloo", **options)

    def stay(self: Any, *_: Any, **__: Any) -> Any:
        return self

    parallel.__init__, torch.load = make_on_cpu, load_on_cpu
    torch.Tensor.cuda = stay  # type: ignore[method-assign]
    torch.nn.Module.cuda = stay  # type: ignore[method-assign]
    torch.cuda.set_device = lambda device: None
    torch.cuda.device_count = lambda: 1
    torch.cuda.synchronize = lambda device=None: None
    torch.distributed.init_process_group = begin_on_cpu  # type: ignore[assignment]


def save_in_mid_epoch(path: pathlib.Path) -> None:
    """Have Lightning's Trainer save a checkpoint after step `SAVE_AT`, on one device."""
    import lightning.pytorch as pl

    make = pl.Trainer.__init__

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == SAVE_AT and not path.exists():
                trainer.save_checkpoint(path)

    def make_saving(self: Any, **options: Any) -> None:
        make(self, **{**options, "devices": 1, "callbacks": [*options["callbacks"], Save()]})

    make_saving.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
    pl.Trainer.__init__ = make_saving


def main(record_to: str, device: str, script: str, *arguments: str) -> None:
    """Run the script with these arguments; RECORD_TO gets a JSON line for each batch."""
    path = pathlib.Path(record_to)
    record(path)
    shrink_views()
    stay_in_this_process()
    if device == "cpu":
        do_without_gpu()
    if pathlib.Path(script).name == "main_dino.py":
        be_the_only_rank()
        torch.hub.list = lambda *_, **__: []  # names of further networks, from the internet
    if pathlib.Path(script).name == "main_pretrain.py":
        save_in_mid_epoch(path.with_name("step.ckpt"))
    sys.argv = [script, *arguments]
    sys.path[0] = str(pathlib.Path(script).parent)
    runpy.run_path(script, run_name="__main__")
