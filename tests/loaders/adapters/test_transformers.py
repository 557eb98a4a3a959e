"""The Trainer of transformers over our loader: every checkpoint resumes at its sample."""

import pathlib
from typing import Any

import pytest

from maskco_fast.loaders import ViewConfig, make_loader
from tests.support.recorder import Recorder

transformers: Any = pytest.importorskip(
    "transformers", reason="pip install 'maskco-fast[peers]' brings transformers"
)
pytest.importorskip("accelerate", reason="pip install 'maskco-fast[peers]' brings accelerate")


def train(
    shards: list[str], folder: pathlib.Path, accumulate: int, checkpoint: pathlib.Path | None = None
) -> list[list[int]]:
    """Train two epochs of 4 batches, or the rest of them; save after each step."""
    from maskco_fast.loaders.adapters.huggingface import LoaderTrainer

    size = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    model = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=4, **size)
    )
    arguments = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=2,
        gradient_accumulation_steps=accumulate,
        save_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    form = Recorder("huggingface")
    views = ViewConfig.supervised(32)
    with make_loader(shards, 4, labels="cls", views=views, form=form, threads=1) as loader:
        trainer = LoaderTrainer(model, arguments, loader=loader)
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    assert result.global_step == 8 // accumulate
    return form.seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_checkpoint_resumes_at_its_sample(shards, tmp_path, accumulate):
    seen = train(shards, tmp_path / "whole", accumulate)
    assert len(seen) == 8
    checkpoints = sorted((tmp_path / "whole").iterdir())
    assert len(checkpoints) == 8 // accumulate
    for checkpoint in checkpoints:
        batches = int(checkpoint.name.partition("-")[2]) * accumulate
        assert train(shards, tmp_path / "rest", accumulate, checkpoint) == seen[batches:]
