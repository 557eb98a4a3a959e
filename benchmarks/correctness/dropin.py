"""Train inside other codebases' own scripts, with at most three of their lines changed.

    git clone https://github.com/facebookresearch/moco && git -C moco checkout 7397dfe
    python -m benchmarks.correctness.dropin --moco moco

A copy of each checkout gets the change that docs/adapters.md shows. Its own script then trains two
epochs of four steps on demo scenes, and once more from a checkpoint. Checked: each step saw the
samples that it should have, and the resumed run those that were left. Settings only make it small:
views of 64 pixels and local ones of 32, batches of 4; on a machine without a GPU, `dropin_child`
replaces `.cuda()`.
The codebases' own requirements must be installed. Prints a table; exits 1 if a check fails.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable

import tyro

from maskco_fast.demo.shards import demo_shards
from maskco_fast.errors import say
from maskco_fast.loaders import make_loader

CHILD = f"""
import runpy, sys
runpy.run_path({str(pathlib.Path(__file__).with_name("dropin_child.py"))!r})["main"](*sys.argv[1:])
"""
BATCH = 4
BATCHES = 4
"""Of an epoch."""
EPOCHS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """Lines of a file from `first` to `last`, which `new` replaces or, without `last`, follows."""

    file: str
    first: str
    new: str
    last: str | None = None

    def apply(self, checkout: pathlib.Path) -> None:
        """Change the file. SystemExit where it does not have these lines."""
        path = checkout / self.file
        text = path.read_text(encoding="utf-8")
        begin = text.find(self.first)
        last = self.first if self.last is None else self.last
        end = text.find(last, begin) + len(last)
        if begin < 0 or end < begin + len(self.first):
            raise SystemExit(f"{path} has no line {self.first!r}: is it another version?")
        kept = self.first + "\n" if self.last is None else ""
        path.write_text(text[:begin] + kept + self.new + text[end:], encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebase:
    """How one codebase is changed and run."""

    changes: tuple[Change, ...]
    repairs: tuple[Change, ...] = ()
    """What the codebase itself needs with today's torch."""
    options: str = ""
    """Command line options that are part of the change."""
    command: Callable[["Run"], list[str]]
    """Its script and arguments."""
    resumes_at: int
    """The batch after which the checkpoint is written that the second run resumes from."""

    @property
    def lines(self) -> int:
        """Lines and options that are changed."""
        lines = sum(len(change.new.strip("\n").splitlines()) for change in self.changes)
        return lines + len(self.options.split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One of the two runs."""

    checkout: pathlib.Path
    """The changed copy."""
    shards: pathlib.Path
    """A folder, whose folder `train` holds the shards."""
    out: pathlib.Path
    """The folder that the codebase writes to; that of the first run."""
    resumes: bool
    device: str


def moco(run: Run) -> list[str]:
    """MoCo writes a checkpoint at each epoch's end, into the working folder."""
    resume = ["--resume", str(run.out / "checkpoint_0000.pth.tar")] if run.resumes else []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    distributed = [
        *("--multiprocessing-distributed", "--world-size", "1", "--rank", "0"),
        *("--dist-url", f"tcp://127.0.0.1:{port}"),
        *("--dist-backend", "gloo" if run.device == "cpu" else "nccl"),
    ]
    small = ["-a", "resnet18", "-b", f"{BATCH}", "--epochs", f"{EPOCHS}", "--moco-k", "16"]
    return ["main_moco.py", *small, *distributed, *resume, str(run.shards)]


def dino(run: Run) -> list[str]:
    """DINO resumes from checkpoint.pth, here the one of the first epoch."""
    if run.resumes:
        shutil.copy(run.out / "checkpoint0000.pth", run.out / "checkpoint.pth")
    return [
        *("main_dino.py", "--arch", "vit_tiny", "--out_dim", "64", "--use_fp16", "false"),
        *("--epochs", f"{EPOCHS}", "--warmup_epochs", "0", "--warmup_teacher_temp_epochs", "0"),
        *("--batch_size_per_gpu", f"{BATCH}", "--saveckp_freq", "1"),
        *("--data_path", str(run.shards / "train"), "--output_dir", str(run.out)),
    ]


def solo(run: Run) -> list[str]:
    """Its Trainer; `dropin_child` saves a checkpoint after the third step."""
    accelerator = "cpu" if run.device == "cpu" else "gpu"
    resume = [f"++resume_from_checkpoint={run.out / 'step.ckpt'}"] if run.resumes else []
    return [
        "main_pretrain.py",
        *("--config-path", "scripts/pretrain/custom", "--config-name", "byol.yaml"),
        *("data.dataset=imagenet100", "data.val_path=null", "data.format=image_folder"),
        *(f"data.train_path={run.shards / 'train'}", f"optimizer.batch_size={BATCH}"),
        *(f"max_epochs={EPOCHS}", "devices=[0]", "strategy=auto", "precision=32"),
        *(f"accelerator={accelerator}", "sync_batchnorm=False", "wandb.enabled=False"),
        *("checkpoint.enabled=False", "auto_resume.enabled=False"),
        *resume,
    ]


def mmselfsup(run: Run) -> list[str]:
    """Checkpoints by iteration, which mmengine resumes at the beginning of the epoch."""
    resume = ["--resume", str(run.out / "iter_3.pth")] if run.resumes else []
    return [
        *(
            "tools/train.py",
            str(run.checkout / MMSELFSUP_CONFIG),
            "--work-dir",
            str(run.out),
            *resume,
        ),
        *("--cfg-options", f"train_dataloader.shards={run.shards / 'train'}"),
        *(f"train_dataloader.batch_size={BATCH}", f"train_cfg.max_epochs={EPOCHS}"),
        *("model.queue_len=16", "default_hooks.checkpoint.by_epoch=False"),
        *("default_hooks.checkpoint.interval=3", "default_hooks.checkpoint.max_keep_ckpts=-1"),
    ]


def vissl(run: Run) -> list[str]:
    """Checkpoints by iteration; VISSL resumes from the one that its folder links to."""
    link = run.out / "checkpoint.torch"
    if run.resumes:
        link.unlink()
        for later in run.out.glob("model_*.torch"):
            if later.name != "model_iteration3.torch":
                later.unlink()
        link.symlink_to(run.out / "model_iteration3.torch")
    backend = "gloo" if run.device == "cpu" else "nccl"
    return [
        *("tools/run_distributed_engines.py", "config=test/integration_test/quick_simclr"),
        *VISSL_OPTIONS.split(),
        f"config.DATA.TRAIN.DATA_PATHS=[{run.shards / 'train'}]",
        f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={BATCH}",
        f"config.OPTIMIZER.num_epochs={EPOCHS}",
        f"config.MACHINE.DEVICE={'cpu' if run.device == 'cpu' else 'gpu'}",
        f"config.DISTRIBUTED.BACKEND={backend}",
        "config.OPTIMIZER.use_larc=False",  # it needs apex
        "config.MODEL.SYNC_BN_CONFIG.CONVERT_BN_TO_SYNC_BN=False",
        "config.HOOKS.PERF_STATS.MONITOR_PERF_STATS=False",
        f"config.CHECKPOINT.DIR={run.out}",
        "config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=3",
    ]


MMSELFSUP_CONFIG = "configs/selfsup/mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py"
VISSL_OPTIONS = "config.TRAINER.TASK_NAME=maskco_fast_task +config.DATA.TRAIN.LOADER.views=simclr"

CODEBASES = {
    "moco": Codebase(
        changes=(
            Change(
                file="main_moco.py",
                first="import moco.loader",
                new="from maskco_fast import make_loader",
            ),
            Change(
                file="main_moco.py",
                first="    train_dataset = datasets.ImageFolder(",
                last="        drop_last=True,\n    )",
                new="    train_loader = train_sampler = make_loader("
                'traindir, args.batch_size, views="moco_v2", form="moco")',
            ),
        ),
        repairs=(
            Change(
                file="main_moco.py",
                first="correct[:k].view",
                last="view",
                new="correct[:k].reshape",
            ),
        ),
        command=moco,
        resumes_at=BATCHES,
    ),
    "dino": Codebase(
        changes=(
            Change(
                file="main_dino.py",
                first="from vision_transformer import DINOHead",
                new="from maskco_fast import make_loader",
            ),
            Change(
                file="main_dino.py",
                first="    transform = DataAugmentationDINO(",
                last="        drop_last=True,\n    )",
                new="    data_loader = make_loader("
                'args.data_path, args.batch_size_per_gpu, views="dino", form="moco")\n'
                "    dataset = data_loader.dataset",
            ),
        ),
        repairs=(
            Change(
                file="utils.py",
                first="device='cuda'",
                last="'cuda'",
                new="device='cuda' if torch.cuda.is_available() else 'cpu'",
            ),
        ),
        command=dino,
        resumes_at=BATCHES,
    ),
    "solo": Codebase(
        changes=(
            Change(
                file="main_pretrain.py",
                first="from solo.utils.misc import make_contiguous, omegaconf_select",
                new="from maskco_fast.loaders.adapters.lightning import KeepPosition, make_loader",
            ),
            Change(
                file="main_pretrain.py",
                first="        train_dataset = prepare_datasets(",
                last="num_workers=cfg.data.num_workers\n        )",
                new="        train_loader = make_loader("
                'cfg.data.train_path, cfg.optimizer.batch_size, views="byol", form="solo")',
            ),
            Change(
                file="main_pretrain.py",
                first="    callbacks = []",
                last="    callbacks = []",
                new="    callbacks = [KeepPosition()]",
            ),
        ),
        command=solo,
        resumes_at=3,
    ),
    "vissl": Codebase(
        changes=(
            Change(
                file="tools/run_distributed_engines.py",
                first="import sys",
                new="import maskco_fast.loaders.adapters.vissl",
            ),
        ),
        options=VISSL_OPTIONS,
        command=vissl,
        resumes_at=3,
    ),
    "mmselfsup": Codebase(
        changes=(
            Change(
                file=MMSELFSUP_CONFIG,
                first="# only keeps the latest 3 checkpoints",
                new='custom_imports = dict(imports="maskco_fast.loaders.adapters.mmengine")\n'
                "train_dataloader = dict("
                '_delete_=True, shards="data/train", batch_size=32, views="moco_v2")\n'
                'train_cfg = dict(type="LoaderTrainLoop", max_epochs=200)',
            ),
        ),
        command=mmselfsup,
        resumes_at=3,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train inside other codebases' own scripts."""

    moco: pathlib.Path | None = None
    """A checkout of facebookresearch/moco, at 7397dfe."""
    dino: pathlib.Path | None = None
    """A checkout of facebookresearch/dino."""
    solo: pathlib.Path | None = None
    """A checkout of vturrisi/solo-learn."""
    vissl: pathlib.Path | None = None
    """A checkout of facebookresearch/vissl."""
    mmselfsup: pathlib.Path | None = None
    """A checkout of open-mmlab/mmselfsup, 1.0."""
    device: str = "cpu"
    """cpu or cuda."""
    timeout: float = 600.0
    """Seconds that one run may take."""


def train(codebase: Codebase, run: Run, timeout: float) -> list[list[int]]:
    """Run the codebase's script; returns the samples of each batch. RuntimeError if it fails."""
    record = run.out / "batches.jsonl"
    record.unlink(missing_ok=True)
    script, *arguments = codebase.command(run)
    script = str(run.checkout / script)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(run.checkout), os.environ.get("PYTHONPATH", "")]),
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # mmengine needs it to resume
    }
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(record), run.device, script, *arguments],
        cwd=run.out,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if result.returncode:
        raise RuntimeError((result.stdout + result.stderr)[-3000:])
    return [json.loads(line) for line in record.read_text().splitlines()]


def check(name: str, original: pathlib.Path, options: Options, shards: pathlib.Path) -> bool:
    """Change a copy, run it twice, and print a line; returns whether both saw the right samples."""
    codebase = CODEBASES[name]
    with make_loader(shards / "train", BATCH, views="evaluation") as loader:
        expected = [batch.index.tolist() for _ in range(EPOCHS) for batch in loader]
    with tempfile.TemporaryDirectory() as folder:
        checkout = pathlib.Path(folder, "checkout")
        shutil.copytree(original, checkout, ignore=shutil.ignore_patterns(".git"))
        for change in (*codebase.changes, *codebase.repairs):
            change.apply(checkout)
        out = pathlib.Path(folder, "out")
        out.mkdir()
        runs = [
            Run(checkout=checkout, shards=shards, out=out, resumes=resumes, device=options.device)
            for resumes in (False, True)
        ]
        try:
            seen, rest = (train(codebase, run, options.timeout) for run in runs)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            say(f"{name} failed: {error}")
            return False
    trained, resumed = seen == expected, rest == expected[codebase.resumes_at :]
    print(
        f"{name:10} {codebase.lines} lines, {len(seen)} steps "
        f"{'on the right samples' if trained else f'on wrong samples: {seen}, not {expected}'}; "
        f"resumed after {codebase.resumes_at}: {'exact' if resumed else f'wrong: {rest}'}",
        flush=True,
    )
    return trained and resumed


def main(options: Options) -> int:
    """Check all checkouts that are given; returns 1 if one fails."""
    chosen = {name: getattr(options, name) for name in CODEBASES}
    chosen = {name: path for name, path in chosen.items() if path is not None}
    if not chosen:
        raise SystemExit("No checkout is given: pass --moco PATH, --solo PATH, …; see --help.")
    with tempfile.TemporaryDirectory() as folder:
        shards = pathlib.Path(folder)
        drawn = demo_shards(shards, samples=BATCH * BATCHES, shards=2, size=(64, 80))
        drawn[0].parent.rename(shards / "train")
        results = [check(name, path.resolve(), options, shards) for name, path in chosen.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
