"""mmpretrain's MoCo v2 over our loader: every checkpoint resumes at its sample."""

import importlib
import pathlib
import warnings
from typing import Any

import pytest
import torch

from maskco_fast.loaders import ViewConfig, make_loader
from maskco_fast.loaders.factory import VIEWS
from tests.support.recorder import Recorder

for package in ("mmpretrain", "mmcv"):
    pytest.importorskip(
        package, reason="pip install 'maskco-fast[peers]' brings mmpretrain and mmcv-lite"
    )

VIEW = ViewConfig.moco_v2(32)
CONFIG = """
default_scope = "mmpretrain"
data_preprocessor = dict(
    type="SelfSupDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
model = dict(
    type="MoCo",
    queue_len=16,
    feat_dim=8,
    backbone=dict(
        type="ResNet", depth=18, stem_channels=8, base_channels=8, norm_cfg=dict(type="BN")
    ),
    neck=dict(
        type="MoCoV2Neck", in_channels=64, hid_channels=8, out_channels=8, with_avg_pool=True
    ),
    head=dict(type="ContrastiveHead", loss=dict(type="CrossEntropyLoss"), temperature=0.2),
)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01))
default_hooks = dict(
    sampler_seed=dict(type="DistSamplerSeedHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1),
)
custom_hooks = [dict(type="CheckpointHook", interval=1, filename_tmpl="end_{}.pth")]
log_level = "ERROR"

custom_imports = dict(imports="maskco_fast.loaders.adapters.mmengine")
train_dataloader = dict(shards=SHARDS, batch_size=4, views="small", threads=1)
train_cfg = dict(type="LoaderTrainLoop", max_epochs=2)
"""


@pytest.fixture
def make_runner(shards, tmp_path, monkeypatch) -> Any:
    """A function of a folder that makes mmengine's runner, with its training loop."""
    # mmengine 0.10 reads its own checkpoints with torch's former default.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    # mmpretrain 1.2 cannot import its multimodal models beside transformers 5.
    monkeypatch.setattr("mmpretrain.utils.dependency.WITH_MULTIMODAL", False)
    monkeypatch.setitem(VIEWS, "small", lambda: VIEW)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("mmpretrain.models")
        from mmengine.config import Config
        from mmengine.runner import Runner
    path = tmp_path / "config.py"
    path.write_text(CONFIG.replace("SHARDS", repr(shards)))

    def make(
        folder: pathlib.Path,
        checkpoint: pathlib.Path | None = None,
        model: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        config = Config.fromfile(path)
        if model is not None:
            config.model = model
        config.train_dataloader.update(options)
        config.work_dir = str(folder)
        config.experiment_name = f"{folder.name} {checkpoint and checkpoint.name}"
        config.resume, config.load_from = checkpoint is not None, checkpoint and str(checkpoint)
        runner = Runner.from_cfg(config)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        return runner, runner.train_loop.dataloader

    return make


@pytest.fixture
def train(make_runner) -> Any:
    """A function of a folder that trains two epochs of 4 steps, or the rest of them."""

    def train(*place: pathlib.Path) -> list[list[int]]:
        runner, loader = make_runner(*place)
        form = loader._form = Recorder(loader._form)
        runner.train()
        assert runner.iter == 8
        return form.seen

    return train


@pytest.mark.filterwarnings("ignore")
def test_every_checkpoint_resumes_at_its_sample(train, tmp_path):
    seen = train(tmp_path / "whole")
    assert len(seen) == 8
    for step in (3, 4):
        rest = train(tmp_path / "rest", tmp_path / "whole" / f"iter_{step}.pth")
        assert rest == seen[step:], step
    assert train(tmp_path / "rest", tmp_path / "whole" / "end_1.pth") == seen[4:]


@pytest.mark.filterwarnings("ignore")
def test_the_data_preprocessor_makes_our_normalised_views(make_runner, shards, tmp_path):
    runner, loader = make_runner(tmp_path)
    processed = runner.model.data_preprocessor(next(iter(loader)), training=True)
    loader.close()
    with make_loader(shards, 4, views=VIEW, threads=1) as normalised:
        batch = next(iter(normalised))
    half_a_level = 0.51 / 57.12
    for view, expected in zip(processed["inputs"], batch.views):
        torch.testing.assert_close(view, expected, rtol=0, atol=half_a_level, check_stride=False)
    with pytest.raises(ValueError, match=r"`dtype` must be torch\.uint8, got torch\.float32"):
        make_runner(tmp_path, dtype=torch.float32)


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_gets_its_labels(make_runner, shards, tmp_path):
    model = {
        "type": "ImageClassifier",
        "backbone": {"type": "ResNet", "depth": 18, "stem_channels": 8, "base_channels": 8},
        "neck": {"type": "GlobalAveragePooling"},
        "head": {"type": "LinearClsHead", "num_classes": 4, "in_channels": 64},
        "data_preprocessor": {
            "type": "ClsDataPreprocessor",
            "mean": [120.0] * 3,
            "std": [60.0] * 3,
            "to_rgb": True,
        },
    }
    options: dict[str, Any] = {"views": ViewConfig.supervised(32), "labels": "cls"}
    runner, _ = make_runner(tmp_path, model=model, **options)
    seen: list[list[int]] = []

    def noted(inputs: Any, data_samples: list[Any]) -> Any:
        seen.append([int(sample.gt_label) for sample in data_samples])
        return loss(inputs, data_samples)

    loss = runner.model.loss
    runner.model.loss = noted
    runner.train()
    with make_loader(shards, 4, threads=1, **options) as plain:
        assert seen == [batch.target.tolist() for _ in range(2) for batch in plain]
