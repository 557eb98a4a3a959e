"""The detector: its map and regions against a loop, its losses and the statistics of precise BN."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18
from torchvision.ops import roi_align

from maskco_fast.detection.annotations import read_annotations, trainable
from maskco_fast.detection.batches import DetectionBatch, DetectionLoader
from maskco_fast.detection.config import RECIPES, DetectConfig
from maskco_fast.detection.network import DetectionMethod, RegionPool, make_detector
from maskco_fast.evaluation.weights import read_weights
from maskco_fast.kernels.errors import InvalidInput

CLASSES = 12


def first_batch(config: DetectConfig) -> DetectionBatch:
    pytest.importorskip("pycocotools")
    data = read_annotations(config.train, root=config.data or pathlib.Path(), masks=True)
    loader = DetectionLoader(trainable(data), 2, short_sides=(64,), long_side=96, seed=0, threads=1)
    return next(iter(loader))


def method(config: DetectConfig) -> DetectionMethod:
    state = read_weights("random", trunk="resnet18").trunk_state
    return DetectionMethod(make_detector(config.model, state, classes=CLASSES), seed=0)


def test_the_map_is_torchvisions_res4(tiny: DetectConfig) -> None:
    """In eval mode, with the weights of the trunk; res5 is the head."""
    weights = read_weights("random", trunk="resnet18")
    detector = make_detector(tiny.model, weights.trunk_state, classes=CLASSES).eval()
    reference = resnet18()
    reference.load_state_dict(weights.trunk_state, strict=False)
    reference.eval()
    image = torch.rand(3, 64, 80)
    with torch.no_grad():
        batch, _ = detector.transform([image])
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        assert torch.allclose(batch.tensors[0], (image - mean) / std, atol=1e-6)
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(batch.tensors))))
        x = reference.layer3(reference.layer2(reference.layer1(x)))
        found = detector.backbone(batch.tensors)
        assert found.shape == (1, 256, 4, 5)
        assert torch.allclose(found, x, rtol=1e-4, atol=1e-4)
        regions = torch.rand(3, 256, 4, 4)
        assert torch.allclose(
            detector.roi_heads.box_head[0](regions),  # type: ignore[index, operator]
            reference.layer4(regions),
            rtol=1e-4,
            atol=1e-4,
        )


def test_every_parameter_is_trained(tiny: DetectConfig) -> None:
    """Nothing is frozen: each has a gradient. The losses are D2's five, finite and positive."""
    network = method(tiny)
    scalars = network(first_batch(tiny))
    names = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert scalars.keys() == {"loss", *names}
    total = sum(float(scalars[name]) for name in names)
    assert float(scalars["loss"].detach()) == pytest.approx(total, rel=1e-5)
    scalars["loss"].backward()
    without = [name for name, value in network.named_parameters() if value.grad is None]
    assert without == []
    assert "query.roi_heads.box_head.1.weight" in dict(network.named_parameters())  # extra norm


def test_a_batch_has_the_same_losses_whatever_was_drawn_before(tiny: DetectConfig) -> None:
    """And leaves torch's generator as it was."""
    batch = first_batch(tiny)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        losses.append(method(tiny)(batch)["loss"].item())
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1]
    other = dataclasses.replace(batch, number=1)
    assert method(tiny)(other)["loss"].item() != losses[0]


def test_box_losses_are_l1(tiny: DetectConfig) -> None:
    """RPN: one positive anchor of four that are sampled, its box 2 off in one coordinate."""
    detector: Any = method(tiny).query
    rpn = detector.rpn
    labels = [torch.tensor([1.0, 0.0, 0.0, 0.0, -1.0])]
    predicted = torch.zeros(5, 4)
    target = torch.zeros(5, 4)
    target[0, 1] = 2.0
    target[4] = 9.0
    objectness, box = rpn.compute_loss(torch.zeros(5, 1), predicted, labels, [target])
    assert float(objectness) == pytest.approx(np.log(2), rel=1e-6)
    assert float(box) == pytest.approx(2 / 4)


def test_anchors_are_not_rounded(tiny: DetectConfig) -> None:
    """Sides 16 and 32 in ratios 1:2, 1:1, 2:1 of equal area around the origin."""
    detector: Any = method(tiny).query
    (anchors,) = detector.rpn.anchor_generator.cell_anchors
    sides = (anchors[:, 2:] - anchors[:, :2]).double()
    assert sides.prod(1).tolist() == pytest.approx([256, 1024] * 3, rel=1e-6)
    assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 0.5, 1, 1, 2, 2], rel=1e-6)
    assert torch.allclose(anchors[:, :2], -anchors[:, 2:])


def test_regions_are_aligned() -> None:
    """A box over whole cells of a ramp returns the ramp's values at the cells' centres."""
    ramp = torch.arange(8.0).repeat(8, 1)[None, None]
    box = torch.tensor([[32.0, 32.0, 96.0, 96.0]])  # cells 2 to 5
    found = RegionPool(4)({"0": ramp}, [box])
    assert found[0, 0, 0].tolist() == pytest.approx([2, 3, 4, 5])
    shifted = roi_align(ramp, [box], 4, 1 / 16, aligned=False)
    assert shifted[0, 0, 0].tolist() == pytest.approx([2.5, 3.5, 4.5, 5.5])


def test_a_trunk_of_another_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="whose conv4 map has a stride of 16, got resnet10-small"):
        RECIPES["demo"]().run(read_weights("random", trunk="resnet10-small"))


def test_recipes_have_the_published_settings() -> None:
    """docs/method.md, "VOC07+12 detection" and "COCO detection + masks"."""
    weights = read_weights("random", trunk="resnet18")
    voc = RECIPES["voc"]().run(weights)
    assert (voc.max_steps, voc.batch_size) == (24_000, 16)
    assert voc.optimizer.learning_rate * 16 / 256 == pytest.approx(0.02)
    assert [share * 24_000 for share in voc.optimizer.milestones] == pytest.approx([18_000, 22_000])
    assert (voc.optimizer.warmup_steps, voc.optimizer.weight_decay) == (100, 1e-4)
    assert (min(voc.short_sides), max(voc.short_sides), voc.model.masks) == (480, 800, False)
    assert voc.model.trunk == "resnet18"  # the weights'
    coco = RECIPES["coco"]().run(weights)
    assert (coco.max_steps, coco.optimizer.warmup_steps, coco.long_side) == (180_000, 1000, 1200)
    assert (min(coco.short_sides), max(coco.short_sides), coco.model.masks) == (640, 800, True)
    for run in (voc, coco):
        assert run.model.proposals_test == (6000, 1000)
        assert run.model.anchor_sizes == (32, 64, 128, 256, 512)
        assert (run.model.roi_size, run.model.rois_per_image) == (14, 512)


@pytest.mark.parametrize(
    ("name", "value"), [("short_sides", ()), ("eval_every", 0), ("threads", 0), ("batch_size", 0)]
)
def test_settings_are_checked(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"`{name}` must be"):
        dataclasses.replace(RECIPES["demo"](), **{name: value})
