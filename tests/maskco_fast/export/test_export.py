"""Export: round trips through the real libraries, names by their rules, the card and its limits."""

import copy
import importlib
import json
import pickle
import re

import pytest
import torch
import torchvision
import yaml

from maskco_fast.commands.export import ExportConfig, export
from maskco_fast.evaluation.weights import Weights, frozen_trunk, read_weights
from maskco_fast.export.detectron2_configs import EXTRA_NORM
from maskco_fast.export.formats import FORMATS
from maskco_fast.export.key_maps import detectron2_key, rename
from maskco_fast.export.write import export_weights
from maskco_fast.kernels.errors import InvalidInput
from tests.support.checkpoints import write_run

TOLERANCE = 1e-5
"""Of features, relative to the largest one: the networks add in another order."""


@pytest.fixture(scope="module")
def trained() -> Weights:
    """A ResNet-18 whose every tensor differs from an untrained network's, as after training."""
    generator = torch.Generator().manual_seed(5)
    weights = read_weights("random", trunk="resnet18")
    state = {
        name: torch.tensor(3)
        if name.endswith("num_batches_tracked")
        else value * (0.8 + 0.4 * torch.rand(value.shape, generator=generator))
        + (0.1 * torch.rand(value.shape, generator=generator) if ".bias" in name else 0)
        for name, value in weights.trunk_state.items()
    }
    description = {"source": "run", "trunk": "resnet18", "network": "query", "method": "maskco"}
    return Weights(trunk="resnet18", trunk_state=state, description=description)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pooled(trained, images):
    """The pooled conv5 features (2, 512) of our own trunk."""
    with torch.no_grad():
        return frozen_trunk(trained)(images).mean((2, 3))


def assert_same_features(model, images, expected):
    with torch.no_grad():
        found = model.eval()(images).flatten(1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def without_classifier(resnet):
    resnet.fc = torch.nn.Identity()
    return resnet


def test_torchvision_lacks_the_classifier_alone(tmp_path, trained, images, pooled):
    export_weights(trained, tmp_path / "trunk.pth", to="torchvision")
    state = torch.load(tmp_path / "trunk.pth", weights_only=True)
    model = torchvision.models.resnet18()
    found = model.load_state_dict(state, strict=False)
    assert found.missing_keys == ["fc.weight", "fc.bias"]
    assert found.unexpected_keys == []
    assert_same_features(without_classifier(model), images, pooled)


def test_timm_loads_every_key(tmp_path, trained, images, pooled):
    timm = pytest.importorskip("timm", reason="pip install timm brings the round trip's other half")
    export_weights(trained, tmp_path / "trunk.pth", to="timm")
    model = timm.create_model("resnet18", num_classes=0)
    model.load_state_dict(torch.load(tmp_path / "trunk.pth", weights_only=True))
    assert_same_features(model, images, pooled)
    with torch.device("meta"):
        names = timm.create_model("resnet50", num_classes=0).state_dict().keys()
    assert names == read_weights("random").trunk_state.keys()


def test_lightly_backbone_loads_every_key(tmp_path, trained, images, pooled):
    models = pytest.importorskip(
        "lightly.models.modules.heads", reason="pip install 'maskco-fast[bench]' brings lightly"
    )
    export_weights(trained, tmp_path / "trunk.pth", to="lightly")

    class SimCLR(torch.nn.Module):
        """As in lightly's examples."""

        def __init__(self) -> None:
            super().__init__()
            resnet = torchvision.models.resnet18()
            self.backbone = torch.nn.Sequential(*list(resnet.children())[:-1])
            self.projection_head = models.SimCLRProjectionHead(512, 512, 128)

    model = SimCLR()
    model.backbone.load_state_dict(torch.load(tmp_path / "trunk.pth", weights_only=True))
    assert_same_features(model.backbone, images, pooled)
    assert model.projection_head(model.backbone(images).flatten(1)).shape == (2, 128)


def test_safetensors_return_through_our_reader(tmp_path, trained):
    pytest.importorskip("safetensors", reason="pip install 'maskco-fast[export]' brings it")
    export_weights(trained, tmp_path / "trunk.safetensors", to="safetensors")
    found = read_weights(tmp_path / "trunk.safetensors")
    assert found.description == {**trained.description, "source": "export"}
    assert found.trunk_state.keys() == trained.trunk_state.keys()
    assert all(
        torch.equal(found.trunk_state[name], trained.trunk_state[name])
        for name in found.trunk_state
    )


def openmmlab_names(layers, convolutions):
    """The state dict of OpenMMLab's ResNet, from its modules: conv1, bn1, layerN.M.…, in order."""
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def norm(name):
        return [f"{name}.{one}" for one in statistics]

    names = ["conv1.weight", *norm("bn1")]
    for stage, blocks in enumerate(layers, 1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                names += [f"{prefix}.conv{number}.weight", *norm(f"{prefix}.bn{number}")]
            if block == 0 and (stage > 1 or convolutions == 3):
                names += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    return [f"backbone.{name}" for name in names]


def detectron2_names(layers):
    """The state dict of Detectron2's R-50: stem, res2 to res5, a norm inside each convolution."""
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def convolution(name):
        return [f"{name}.weight", *(f"{name}.norm.{one}" for one in statistics)]

    names = convolution("stem.conv1")
    for stage, blocks in enumerate(layers, 2):
        for block in range(blocks):
            shortcut = ["shortcut"] if block == 0 else []
            for part in (*shortcut, "conv1", "conv2", "conv3"):
                names += convolution(f"res{stage}.{block}.{part}")
    return names


def test_openmmlab_names(tmp_path, trained):
    export_weights(trained, tmp_path / "trunk.pth", to="openmmlab")
    file = torch.load(tmp_path / "trunk.pth", weights_only=True)
    assert list(file["state_dict"]) == openmmlab_names((2, 2, 2, 2), 2)
    assert json.loads(file["meta"]["maskco_fast"]) == trained.description
    resnet50 = rename(read_weights("random").trunk_state, FORMATS["openmmlab"].key_map)
    assert list(resnet50) == openmmlab_names((3, 4, 6, 3), 3)


@pytest.mark.parametrize("package", ["mmpretrain", "mmdet"])
def test_openmmlab_backbones_have_these_names(package):
    try:
        models = importlib.import_module(f"{package}.models.backbones.resnet")
    except Exception as error:  # mmdet refuses other versions of mmcv by an AssertionError
        pytest.skip(f"{package} is not installed, or does not import here: {error}")
    network = models.ResNet(depth=50, style="pytorch")
    names = [f"backbone.{name}" for name in network.state_dict()]
    assert sorted(names) == sorted(openmmlab_names((3, 4, 6, 3), 3))


def test_detectron2_file_is_its_model_zoo_pickle(tmp_path):
    weights = read_weights("random")
    written = export_weights(weights, tmp_path / "r50.pkl", to="detectron2")
    assert [path.name for path in written] == [
        "r50.pkl",
        "r50_voc_R_50_C4_24k.yaml",
        "r50_coco_R_50_C4_2x.yaml",
        "r50.pkl.md",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    file = pickle.loads(written[0].read_bytes())
    assert file.keys() == {"model", "__author__", "matching_heuristics"}
    assert file["matching_heuristics"] is True
    assert sorted(file["model"]) == sorted(detectron2_names((3, 4, 6, 3)))
    for name, value in weights.trunk_state.items():
        assert (file["model"][detectron2_key(name)] == value.numpy()).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.bn1.bias", "res2.0.conv1.norm.bias"),
        ("layer4.2.conv3.weight", "res5.2.conv3.weight"),
        ("layer3.0.downsample.0.weight", "res4.0.shortcut.weight"),
        ("layer3.0.downsample.1.weight", "res4.0.shortcut.norm.weight"),
    ],
)
def test_detectron2_rule(name, expected):
    assert detectron2_key(name) == expected


def test_detectron2_configurations_hold_the_protocol(tmp_path):
    export_weights(read_weights("random"), tmp_path / "r50.pkl", to="detectron2")
    voc = yaml.safe_load((tmp_path / "r50_voc_R_50_C4_24k.yaml").read_text())
    coco = yaml.safe_load((tmp_path / "r50_coco_R_50_C4_2x.yaml").read_text())
    for config in (voc, coco):
        model = config["MODEL"]
        assert model["WEIGHTS"] == "r50.pkl"
        assert model["BACKBONE"]["FREEZE_AT"] == 0
        assert model["RESNETS"] == {"DEPTH": 50, "NORM": "SyncBN", "STRIDE_IN_1X1": False}
        assert model["RPN"] == {"PRE_NMS_TOPK_TEST": 6000, "POST_NMS_TOPK_TEST": 1000}
        assert model["ROI_HEADS"]["NAME"] in EXTRA_NORM
        assert model["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
        assert model["PIXEL_STD"] == [58.395, 57.12, 57.375]
        assert config["INPUT"]["FORMAT"] == "RGB"
        assert config["INPUT"]["MIN_SIZE_TEST"] == 800
        assert config["TEST"] == {"PRECISE_BN": {"ENABLED": True}}
        assert (config["SOLVER"]["IMS_PER_BATCH"], config["SOLVER"]["BASE_LR"]) == (16, 0.02)

    def schedule(config):
        return [config["SOLVER"][name] for name in ("MAX_ITER", "STEPS", "WARMUP_ITERS")]

    assert schedule(voc) == [24000, "(18000, 22000)", 100]
    assert schedule(coco) == [180000, "(120000, 160000)", 1000]
    assert not voc["MODEL"]["MASK_ON"]
    assert coco["MODEL"]["MASK_ON"]
    assert (
        voc["MODEL"]["ROI_HEADS"]["NUM_CLASSES"],
        coco["MODEL"]["ROI_HEADS"]["NUM_CLASSES"],
    ) == (20, 80)
    assert voc["INPUT"]["MIN_SIZE_TRAIN"].startswith("(480, 512")
    assert coco["INPUT"]["MIN_SIZE_TRAIN"].startswith("(640, 672")
    assert coco["INPUT"]["MAX_SIZE_TRAIN"] == 1200


def test_resnet18_has_no_detectron2_configuration(tmp_path, trained):
    written = export_weights(trained, tmp_path / "r18.pkl", to="detectron2")
    assert [path.name for path in written] == ["r18.pkl", "r18.pkl.md"]
    assert "layer" not in "".join(pickle.loads(written[0].read_bytes())["model"])


def test_the_command_writes_the_run_s_results_and_no_path_into_the_card(tmp_path, capsys):
    run_dir = tmp_path / "secret-folder"
    write_run(run_dir)
    (run_dir / "knn.json").write_text(
        '{"top1": 41.25, "k": 20, "temperature": 0.07, "note": "/secret-folder"}'
    )
    (run_dir / "detect.json").write_text('{"AP": 12.3, "weights": {"network": "query", "step": 6}}')
    (run_dir / "linear.json").write_text('{"conv1": 12, "conv5": 33.3')
    out = tmp_path / "out" / "trunk.pth"
    for network in ("query", "key"):
        config = ExportConfig(weights=str(run_dir), to="torchvision", out=out, network=network)
        assert export(config) == 0
        exported = torch.load(out, weights_only=True)
        expected = read_weights(run_dir, network=network).trunk_state
        assert all(torch.equal(exported[name], value) for name, value in expected.items())
    told = capsys.readouterr()
    assert "linear.json cannot be read" in told.err
    assert "detect.json is of other weights: step 6 instead of 7" in told.err
    assert told.out.splitlines()[-2:] == [str(out), f"{out}.md"]
    card = (tmp_path / "out" / "trunk.pth.md").read_text()
    assert "secret" not in card
    assert "12.3" not in card
    assert str(tmp_path) not in card
    assert "| 41.2 | 20 | 0.07 |" in card
    for fact in ("maskco", "demo", "| training steps | 7 |", "3f00", "its moving average"):
        assert fact in card
    # The code of the card runs, beside the file.
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) == 3
    names: dict = {}
    exec(code[1].replace("trunk.pth", str(out)), names)
    assert torch.equal(names["model"].conv1.weight, expected["conv1.weight"])


def test_a_description_from_a_foreign_file_stays_text(tmp_path, trained):
    weights = copy.replace(trained) if hasattr(copy, "replace") else copy.copy(trained)
    object.__setattr__(
        weights,
        "description",
        {**trained.description, "recipe": "x | <b>`/home/someone`</b>\n# y", "password": "hunter2"},
    )
    export_weights(weights, tmp_path / "trunk.pth", to="timm")
    card = (tmp_path / "trunk.pth.md").read_text()
    assert "| recipe | x bhomesomeoneb y |" in re.sub(" +", " ", card)
    assert "hunter2" not in card


def test_refusals(tmp_path, trained):
    with pytest.raises(InvalidInput, match=r"`out` must end in \.pkl for detectron2, got 'a\.pth'"):
        export_weights(trained, tmp_path / "a.pth", to="detectron2")
    with pytest.raises(InvalidInput, match="`to` must be one of torchvision, timm"):
        export_weights(trained, tmp_path / "a.pth", to="onnx")
    with pytest.raises(InvalidInput, match=r"got 'fc\.weight'"):
        rename({"fc.weight": torch.zeros(1)}, FORMATS["timm"].key_map)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_writing_fails(tmp_path, trained, monkeypatch):
    def full(_, path):
        path.write_text("a part")
        raise OSError("no space left")

    (tmp_path / "trunk.pth").write_text("before")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        export_weights(trained, tmp_path / "trunk.pth", to="timm")
    assert [path.name for path in tmp_path.iterdir()] == ["trunk.pth"]
    assert (tmp_path / "trunk.pth").read_text() == "before"


def test_a_trunk_of_ours_alone_is_written_as_safetensors_alone(tmp_path):
    weights = read_weights("random", trunk="resnet10-small")
    with pytest.raises(InvalidInput, match="must be safetensors for resnet10-small, got 'timm'"):
        export_weights(weights, tmp_path / "trunk.pth", to="timm")
    (path, _) = export_weights(weights, tmp_path / "trunk.safetensors", to="safetensors")
    again = read_weights(path)
    assert again.trunk == "resnet10-small"
    assert again.digest() == weights.digest()
