"""`read_weights`: every kind of source, and the errors of those that do not fit."""

import pathlib
import pickle

import pytest
import torch
import torchvision

from maskco_fast.evaluation.weights import frozen_mph, frozen_trunk, read_weights
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.training import checkpoint
from tests.support.checkpoints import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, write_run(folder)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18()


def assert_equal(state, network):
    expected = network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_run_folder_gives_its_newest_intact_checkpoint(tmp_path, run):
    write_run(tmp_path, step=5)
    newest = checkpoint.checkpoints(tmp_path / "checkpoints")[-1]
    (tmp_path / "checkpoints" / "step-000000009.pt").write_bytes(newest.read_bytes()[:1000])
    (tmp_path / "checkpoints" / "step-000000009.pt.sha256").write_text("0  step-000000009.pt\n")
    with pytest.warns(RuntimeWarning, match="step-000000009.pt is damaged"):
        weights = read_weights(tmp_path)
    assert_equal(weights.trunk_state, run[1].query.trunk)
    assert_equal(weights.mph_state, run[1].query.mph)
    assert weights.description == {
        "source": "run",
        "trunk": "resnet18",
        "network": "query",
        "method": "maskco",
        "recipe": "demo",
        "step": 5,
        "view_size": 64,
        "group_size": 4,
        "seed": 3,
        "data": "3f00",
    }


def test_a_checkpoint_gives_either_network_with_or_without_its_checksum(tmp_path, run):
    folder, method = run
    (path,) = checkpoint.checkpoints(folder / "checkpoints")
    weights = read_weights(path, network="key")
    assert_equal(weights.trunk_state, method.key.trunk)
    assert weights.description["network"] == "key"
    assert weights.description["source"] == "checkpoint"
    copy = tmp_path / "copied.pt"
    copy.write_bytes(path.read_bytes())
    assert_equal(read_weights(copy).trunk_state, method.query.trunk)


def test_a_method_without_a_key_network_says_so(tmp_path):
    write_run(tmp_path, "simclr")
    with pytest.raises(InvalidInput, match="simclr has no key network"):
        read_weights(tmp_path, network="key")


def test_random_weights_are_those_a_run_starts_from(run):
    weights = read_weights("random", trunk="resnet18", seed=3)
    assert_equal(weights.trunk_state, run[1].query.trunk)
    other = read_weights("random", trunk="resnet18", seed=4)
    assert not torch.equal(other.trunk_state["conv1.weight"], weights.trunk_state["conv1.weight"])
    with pytest.raises(InvalidInput, match="`trunk` must be one of resnet10-small, resnet18"):
        read_weights("random", trunk="resnet34")


@pytest.mark.parametrize("counters", [True, False])
def test_a_torchvision_state_dict_is_recognised_without_fc(tmp_path, resnet18, counters):
    state = resnet18.state_dict()
    if not counters:  # as in torchvision's oldest files
        state = {name: state[name] for name in state if "num_batches" not in name}
    torch.save(state, tmp_path / "resnet18.pth")
    weights = read_weights(tmp_path / "resnet18.pth")
    assert weights.trunk == "resnet18"
    assert not [name for name in weights.trunk_state if name.startswith("fc.")]
    assert weights.description == {
        "source": "torchvision",
        "trunk": "resnet18",
        "network": "query",
    }
    images = torch.randn(2, 3, 64, 64)
    maps = frozen_trunk(weights).maps(images)
    reference = torch.nn.Sequential(*list(resnet18.eval().children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(maps[-1], reference(images), rtol=1e-4, atol=1e-5)


def test_resnet50_is_told_from_resnet18():
    with torch.device("meta"):
        state = torchvision.models.resnet50().state_dict()
    from maskco_fast.evaluation.weights import _recognise

    assert _recognise(pathlib.Path("x"), state) == "resnet50"


def test_exported_files_keep_trunk_mph_and_description(tmp_path, run):
    weights = read_weights(run[0])
    state = {
        **weights.trunk_state,
        **{f"mph.{name}": value for name, value in weights.mph_state.items()},
    }
    torch.save({"state_dict": state, "description": weights.description}, tmp_path / "x.pth")
    again = read_weights(tmp_path / "x.pth")
    assert_equal(again.trunk_state, run[1].query.trunk)
    assert_equal(again.mph_state, run[1].query.mph)
    assert again.description == {**weights.description, "source": "export"}
    with pytest.raises(InvalidInput, match="`network` must be query"):
        read_weights(tmp_path / "x.pth", network="key")
    images = torch.randn(2, 3, 64, 64)
    query = run[1].query.eval()
    with torch.no_grad():
        expected = query.mph(query.trunk(images))
        found = frozen_mph(again)(frozen_trunk(again)(images))
    query.train()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_safetensors_files_are_read(tmp_path, run):
    save_file = pytest.importorskip(
        "safetensors.torch", reason="reading safetensors files needs the package safetensors"
    ).save_file
    weights = read_weights(run[0])
    path = tmp_path / "x.safetensors"
    save_file(weights.trunk_state, path, {"maskco_fast": '{"method": "maskco"}'})
    again = read_weights(path)
    assert_equal(again.trunk_state, run[1].query.trunk)
    assert again.description["method"] == "maskco"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidInput, match="damaged or no safetensors file"):
        read_weights(path)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, 2))])
def test_a_pickle_that_runs_code_is_refused(tmp_path, save):
    marker = tmp_path / "was here"
    save({"conv1.weight": Hostile(marker)}, tmp_path / "x.pth")
    with pytest.raises(InvalidInput, match="can run code"):
        read_weights(tmp_path / "x.pth")
    assert not marker.exists()


def drop(state):
    del state["layer1.0.conv1.weight"]


def add(state):
    state["layer1.0.conv9.weight"] = torch.zeros(1)


def reshape(state):
    state["conv1.weight"] = state["conv1.weight"][:, :, :3]


def spoil(state):
    state["conv1.weight"] = state["conv1.weight"] / 0


def replace(state):
    state["conv1.weight"] = "a string"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"does not fit resnet18: missing: layer1.0.conv1.weight\."),
        (add, r"does not fit resnet18: unexpected: layer1.0.conv9.weight\."),
        (reshape, r"another shape: conv1.weight \(64, 3, 3, 7\) instead of \(64, 3, 7, 7\)\."),
        (spoil, "infinite or NaN values: conv1.weight"),
        (replace, r"another shape: conv1.weight str instead of"),
        (lambda state: state.clear(), "ResNet with torchvision's names .* got nothing"),
    ],
)
def test_a_file_that_does_not_fit_names_its_keys(tmp_path, resnet18, change, message):
    state = dict(resnet18.state_dict())
    change(state)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InvalidInput, match=message):
        read_weights(tmp_path / "x.pth")


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a run folder, a checkpoint"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(InvalidInput, match="holds no checkpoint"):
        read_weights(tmp_path)
    for contents in (b"", b"no weights at all", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "x.pth").write_bytes(contents)
        with pytest.raises(InvalidInput, match=r"x\.pth is"):
            read_weights(tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(InvalidInput, match="must hold a state dict, got a list"):
        read_weights(tmp_path / "x.pth")
    with pytest.raises(InvalidInput, match="`network` must be query or key"):
        read_weights("random", network="teacher")
