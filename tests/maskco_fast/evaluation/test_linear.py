"""Linear probes: the published optimiser, scikit-learn's optimum, counting, resuming."""

import json
import signal
from typing import Any

import pytest
import torch
from torch.nn import functional

from maskco_fast.commands.knn import KnnConfig, knn
from maskco_fast.commands.linear import LinearConfig, linear
from maskco_fast.evaluation.linear import OWN, PROTOCOLS, LinearProbes, LinearRun, accuracies
from maskco_fast.evaluation.weights import frozen_trunk, read_weights
from maskco_fast.loaders import Batch, ViewConfig, make_loader, open_dataset
from maskco_fast.training.optimizer import learning_rate, make_optimizer
from maskco_fast.training.trainer import Trainer
from tests.support.images import encode, picture, write_tar
from tests.support.runs import metrics

SIZE = 32


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> dict[str, str]:
    """24 training and 10 validation images of 3 classes; the last training image is damaged."""
    folder = tmp_path_factory.mktemp("shards")
    paths = {}
    for name, count in (("train", 24), ("val", 10)):
        members = {}
        for n in range(count):
            data = encode(picture(40, 44, seed=n % 3), quality=90)
            if name == "train" and n == count - 1:
                table = data.index(b"\xff\xc4") + 5
                data = data[:table] + b"\xff" * 16 + data[table + 16 :]
            members[f"{n:03d}.jpg"] = data
            members[f"{n:03d}.cls"] = f"class {n % 3}".encode()
        paths[name] = str(write_tar(folder / f"{name}.tar", members))
    return paths


@pytest.fixture(scope="module")
def trunk():
    return frozen_trunk(read_weights("random", trunk="resnet18"))


def options(shards: dict[str, str], **fields) -> dict:
    return {
        "weights": "random",
        "trunk": "resnet18",
        "train_shards": (shards["train"],),
        "val_shards": (shards["val"],),
        "view_size": SIZE,
        "device": "cpu",
        "precision": "fp32",
        "loader_threads": 1,
        **fields,
    }


def test_protocols_have_the_published_settings():
    multi, last = PROTOCOLS["multi"], PROTOCOLS["last"]
    assert (multi.epochs, last.epochs) == (90, 100)
    steps = 5004
    rates = [
        [
            learning_rate(values.optimizer, 256, epoch * steps, values.epochs * steps)
            for epoch in range(values.epochs)
        ]
        for values in (multi, last)
    ]
    assert rates[0] == pytest.approx([0.01] * 30 + [0.001] * 30 + [0.0001] * 30)
    assert rates[1] == pytest.approx([30] * 60 + [3] * 20 + [0.3] * 20)


def test_biases_have_no_decay_and_the_trunk_is_not_trained(trunk):
    probes = LinearProbes({OWN: trunk}, "multi", size=SIZE, classes=3, seed=0)
    optimizer = make_optimizer(probes.parameters(), PROTOCOLS["multi"].optimizer)
    found = {
        group["weight_decay"]: sorted(parameter.dim() for parameter in group["params"])
        for group in optimizer.param_groups
    }
    assert found == {1e-4: [2] * 5, 0.0: [1] * 5}
    assert all(group["nesterov"] for group in optimizer.param_groups)
    assert not [name for name in probes.state_dict() if "conv1.weight" in name]


def test_the_loss_is_the_sum_over_probes_and_moves_the_probes_alone(trunk):
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    probes = LinearProbes({OWN: trunk}, "multi", size=SIZE, classes=3, seed=0).train()
    images = torch.randn(4, 3, SIZE, SIZE)
    target = torch.tensor([0, 1, 2, 0])
    batch = Batch(views=(images,), sample_id=target, target=target, index=target)
    scalars = probes(batch)
    expected = sum(
        functional.cross_entropy(logits, target) for logits in probes.logits(images).values()
    )
    torch.testing.assert_close(scalars["loss"], expected)
    scalars["loss"].backward()
    for name, parameter in probes.named_parameters():
        assert (parameter.grad is not None) == name.endswith(("linear.weight", "linear.bias"))
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


class FixedMaps:
    """A trunk of fixed features: images are conv5 maps of one pixel."""

    def maps(self, images):
        return (images,) * 5

    def parameters(self):
        return iter([torch.zeros(1)])


def test_the_last_layer_probe_reaches_scikit_learns_optimum():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="compares with scikit-learn")
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(4, (200,), generator=generator)
    values = torch.eye(4, 3)[target] + 0.7 * torch.randn(200, 3, generator=generator)
    decay = 1e-2
    trunk: Any = FixedMaps()
    probes = LinearProbes({OWN: trunk}, "last", size=SIZE, classes=4, seed=0).train()
    config = PROTOCOLS["multi"].optimizer  # with Nesterov's momentum, and no decay of biases
    optimizer = make_optimizer(probes.parameters(), config)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
        group["weight_decay"] = decay if group["weight_decay"] else 0.0
    batch = Batch(views=(values[:, :, None, None],), sample_id=target, target=target, index=target)
    for _ in range(400):
        optimizer.zero_grad()
        probes(batch)["loss"].backward()
        optimizer.step()
    # scikit-learn minimises C · Σ loss + |w|² / 2; here it is the mean loss + decay · |w|² / 2.
    best = linear_model.LogisticRegression(C=1 / (decay * len(target)), tol=1e-10, max_iter=1000)
    best.fit(values.double().numpy(), target.numpy())
    with torch.no_grad():
        found = probes.logits(batch.views[0])["conv5"].softmax(1)
    expected = torch.from_numpy(best.predict_proba(values.double().numpy())).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_accuracy_counts_every_image_once(trunk, shards):
    """A short last batch counts; a damaged image's substitute does not count twice."""
    probes = LinearProbes({OWN: trunk}, "multi", size=SIZE, classes=3, seed=1).train()
    dataset = open_dataset([shards["train"]], labels="cls")
    loader = make_loader(
        dataset,
        9,
        views=ViewConfig.evaluation(SIZE),
        shuffle=False,
        drop_last=False,
        threads=1,
    )
    correct = total = 0
    seen = set()
    with loader, torch.no_grad():
        probes(next(iter(loader)))  # moves BatchNorm's statistics
        loader.set_epoch(1)
        found, images = accuracies(probes, loader, "fp32")
        assert probes.training
        probes.eval()
        for batch in loader:
            logits_N3 = probes.logits(batch.views[0])["conv5"]
            for logits, target, index in zip(logits_N3, batch.target, batch.index.tolist()):
                if index not in seen:
                    seen.add(index)
                    correct += int(logits.argmax() == target)
                    total += 1
    assert images == total == 23
    assert found["conv5"].top1 == pytest.approx(100 * correct / total)
    assert found["conv5"].top5 == 100  # of three classes


def test_the_commands_write_results_that_name_everything(tmp_path, shards, capsys):
    config = LinearConfig(
        **options(shards, run_dir=tmp_path, epochs=4, batch_size=8, recalibrate=8)
    )
    assert linear(config) == 0
    result = json.loads((tmp_path / "linear.json").read_text())
    layers = ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert list(result)[:5] == layers == list(result["top5"])
    assert set(layers) < set(result["recalibrated"])
    assert result["recalibrated"]["over"] == 8
    assert result["images"] == {"train": 24, "val": 10}
    assert result["classes"] == ["class 0", "class 1", "class 2"]
    assert result["weights"] == {
        "source": "random",
        "trunk": "resnet18",
        "network": "query",
        "seed": 0,
    }
    assert result["conv1"] == 100  # three pictures, each with its own class
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 13))
    table = capsys.readouterr().out
    assert "accuracy on 10 images" in table
    assert "paper: maskco, ImageNet, 100 epochs" in table
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")

    assert knn(KnnConfig(**options(shards, k=5, recalibrate=8, json="-"))) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["top1"], result["k"], result["temperature"]) == (100, 5, 0.07)
    assert [row["k"] for row in result["settings"]] == [5, 20]  # 200 are more than there are
    assert result["recalibrated"]["top1"] == 100
    assert result["images"] == {"train": 23, "val": 10}
    assert result["classes"] == ["class 0", "class 1", "class 2"]


def test_an_interrupted_run_resumes_to_the_same_probes(tmp_path, shards, monkeypatch):
    def run(name: str, stop_at: int | None = None) -> dict | None:
        folder = tmp_path / name
        fields = options(shards, run_dir=folder, epochs=2, batch_size=8, protocol="last")
        measure = Trainer._measure

        def stop(trainer, signals):
            if trainer.step == stop_at:
                signal.raise_signal(signal.SIGTERM)
            measure(trainer, signals)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_measure", stop)
            assert linear(LinearConfig(**fields)) == 0
        path = folder / "linear.json"
        return json.loads(path.read_text()) if path.exists() else None

    whole = run("whole")
    assert run("parts", stop_at=2) is None
    assert metrics(tmp_path / "parts")[-1]["step"] == 2
    assert run("parts") == whole
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="other settings: seed: 0 -> 1"):
        linear(
            LinearConfig(
                **options(
                    shards,
                    run_dir=tmp_path / "parts",
                    epochs=2,
                    batch_size=8,
                    protocol="last",
                    seed=1,
                )
            )
        )


def test_a_run_config_of_probes_can_be_compared():
    assert LinearRun().optimizer.learning_rate > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"val_shards": ()}, "must be given together"),
        ({"view_size": 16}, "`view_size` must be at least 32"),
        ({"recalibrate": -1}, "`recalibrate` must be at least 0"),
        ({"epochs": 0}, "`epochs` must be at least 1"),
    ],
)
def test_bad_options_are_refused(shards, fields, message):
    with pytest.raises(ValueError, match=message):
        LinearConfig(**options(shards, **fields))


def test_a_batch_larger_than_the_data_is_refused(tmp_path, shards):
    with pytest.raises(ValueError, match="number of training images, 24, got 256"):
        linear(LinearConfig(**options(shards, run_dir=tmp_path)))
