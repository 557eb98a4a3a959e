"""Compare exported weights, the detector and its average precision with the real Detectron2.

    git clone https://github.com/facebookresearch/detectron2
    pip install --no-build-isolation ./detectron2
    python -m benchmarks.correctness.detectron2 --checkout detectron2

The build takes about a minute and uses the installed torch. Three comparisons:

- weights: `export --to detectron2` fills every key of the backbone and of res5, through
  Detectron2's own checkpointer and the configuration files that the export writes;
- detector: the res4 map, and the boxes, scores, classes and masks of Faster and Mask R-CNN with
  the same weights, at most 1e-4 apart, relative to the largest value;
- AP: `voc_precision` and `coco_precision` equal `PascalVOCDetectionEvaluator` and `COCOEvaluator`
  on the same random objects and detections, with difficult objects and crowds.

Prints a line for each; exits 1 at a difference.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import pathlib
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn
from torch.optim.swa_utils import update_bn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from maskco_fast.detection.annotations import VOC_CLASSES, read_coco, read_voc
from maskco_fast.detection.average_precision import (
    Detections,
    Precision,
    coco_precision,
    voc_precision,
)
from maskco_fast.detection.config import DetectorConfig
from maskco_fast.detection.masks import encode
from maskco_fast.detection.network import make_detector
from maskco_fast.errors import say
from maskco_fast.evaluation.weights import Weights, frozen_trunk, read_weights
from maskco_fast.export.detectron2_configs import EXTRA_NORM
from maskco_fast.export.key_maps import detectron2_key
from maskco_fast.export.write import export_weights

TOLERANCE = 1e-4
"""Largest difference of features, boxes and scores, relative to the largest value: float32 sums in
another order."""
MATCHED = 0.9
"""Least share of detections that both find."""
PROPOSALS = 100
"""Regions of the image that are compared; the recipe's 1000 take ten times as long."""
AP_TOLERANCE = 1e-9
"""Largest difference of AP, per cent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compare exported weights, the detector and AP with Detectron2's."""

    checkout: pathlib.Path | None = None
    """Detectron2's repository, if it is built in place. None: the installed package."""
    weights: str = "random"
    """ResNet-50 weights to export: as in `maskco-fast export`."""
    size: tuple[int, int] = (192, 256)
    """Height and width of the test image, pixels."""
    images: int = 60
    """Images of the AP comparison."""
    seed: int = 0


def import_detectron2(checkout: pathlib.Path | None) -> None:
    """Make `import detectron2` work, or end with the commands that install it."""
    if checkout is not None and any(checkout.glob("detectron2/_C*")):
        sys.path.insert(0, str(checkout))
    if importlib.util.find_spec("detectron2") is None:
        where = checkout if checkout is not None else "CHECKOUT"
        raise SystemExit(
            "detectron2 is not installed. Build it in a minute from its repository:\n"
            "  git clone https://github.com/facebookresearch/detectron2 CHECKOUT\n"
            f"  pip install --no-build-isolation {where}"
        )


def uneven_norms(weights: Weights, image: torch.Tensor) -> Weights:
    """The weights with BatchNorm parameters that all differ, and the statistics of an image.

    With the ones and zeros of random weights a mistaken norm would go unnoticed.
    """
    generator = torch.Generator().manual_seed(0)
    trunk = frozen_trunk(weights)
    for name, value in trunk.named_parameters():
        if value.dim() == 1:
            noise = torch.randn(value.shape, generator=generator)
            value.mul_(1 + 0.2 * noise) if name.endswith("weight") else value.add_(0.2 * noise)
    update_bn([image], trunk)
    return dataclasses.replace(weights, trunk_state=dict(trunk.state_dict()))


def blobs(size: tuple[int, int], seed: int) -> torch.Tensor:
    """A smooth random image (3, height, width) in 0..1."""
    coarse = torch.rand(1, 3, 12, 14, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)[0]


def build(folder: pathlib.Path, weights: Weights, name: str) -> nn.Module:
    """Export the weights and build Detectron2's detector from the configuration `name`."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

    if "Res5ROIHeadsExtraNorm" not in ROI_HEADS_REGISTRY:
        # As a module: the class calls super(), and torch looks up where a class is defined.
        module = types.ModuleType("extra_norm")
        sys.modules["extra_norm"] = module
        exec(EXTRA_NORM, module.__dict__)
    exported = folder / "r50.pkl"
    if not exported.exists():
        export_weights(weights, exported, to="detectron2")
    (yaml,) = folder.glob(f"*{name}*.yaml")
    config = get_cfg()
    config.merge_from_file(str(yaml))
    config.MODEL.DEVICE = "cpu"
    config.MODEL.RPN.POST_NMS_TOPK_TEST = PROPOSALS
    config.MODEL.WEIGHTS = str(folder / config.MODEL.WEIGHTS)
    torch.manual_seed(0)
    model = build_model(config)
    DetectionCheckpointer(model).load(config.MODEL.WEIGHTS)
    return model.eval()


def compare_weights(model: nn.Module, weights: Weights) -> bool:
    """Whether every key of the backbone and of res5 has the exported value."""
    theirs = model.state_dict()
    expected = {}
    for name, value in weights.trunk_state.items():
        key = detectron2_key(name)
        place = "roi_heads" if key.startswith("res5") else "backbone"
        expected[f"{place}.{key}"] = value
    # The extra norm after res5 is new, and so in no pre-trained file.
    own = {
        key
        for key in theirs
        if key.startswith(("backbone.", "roi_heads.res5.")) and ".res5.norm." not in key
    }
    counters = {key for key in own | set(expected) if key.endswith("num_batches_tracked")}
    filled = [key for key in own - counters if torch.equal(theirs[key], expected[key])]
    extra = set(expected) - own - counters
    right = len(filled) == len(own - counters) and not extra
    print(
        f"weights: {len(filled)} of {len(own - counters)} keys of the backbone and res5 filled "
        f"through DetectionCheckpointer, {len(extra)} exported keys unused: {_verdict(right)}"
    )
    return right


def copy_heads(detector: nn.Module, model: Any, sizes: int) -> None:
    """Give Detectron2's RPN and heads our weights.

    Its anchors run over sizes and then ratios, ours over ratios and then sizes. Its background is
    the last class, ours the first; it has no box changes for it.
    """
    own = detector.state_dict()
    order = _anchor_order(sizes)
    boxes = (4 * order[:, None] + torch.arange(4)).flatten()
    head = model.proposal_generator.rpn_head
    classes = len(own["roi_heads.box_predictor.cls_score.bias"]) - 1
    last = torch.tensor([*range(1, classes + 1), 0])
    predictor = model.roi_heads.box_predictor
    pairs = [
        (head.conv.weight, own["rpn.head.conv.0.0.weight"]),
        (head.conv.bias, own["rpn.head.conv.0.0.bias"]),
        (head.objectness_logits.weight, own["rpn.head.cls_logits.weight"][order]),
        (head.objectness_logits.bias, own["rpn.head.cls_logits.bias"][order]),
        (head.anchor_deltas.weight, own["rpn.head.bbox_pred.weight"][boxes]),
        (head.anchor_deltas.bias, own["rpn.head.bbox_pred.bias"][boxes]),
        (predictor.cls_score.weight, own["roi_heads.box_predictor.cls_score.weight"][last]),
        (predictor.cls_score.bias, own["roi_heads.box_predictor.cls_score.bias"][last]),
        (predictor.bbox_pred.weight, own["roi_heads.box_predictor.bbox_pred.weight"][4:]),
        (predictor.bbox_pred.bias, own["roi_heads.box_predictor.bbox_pred.bias"][4:]),
    ]
    if hasattr(model.roi_heads, "mask_head"):
        mask = model.roi_heads.mask_head
        prefix = "roi_heads.mask_predictor."
        pairs += [
            (mask.deconv.weight, own[f"{prefix}conv5_mask.weight"]),
            (mask.deconv.bias, own[f"{prefix}conv5_mask.bias"]),
            (mask.predictor.weight, own[f"{prefix}mask_fcn_logits.weight"][1:]),
            (mask.predictor.bias, own[f"{prefix}mask_fcn_logits.bias"][1:]),
        ]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)


@torch.no_grad()
def spread_scores(detector: GeneralizedRCNN, image: torch.Tensor) -> None:
    """Scale the new layers to outputs with a deviation of about 1, and enter eval mode.

    As drawn, they hardly tell one region from another. With large outputs the scores are all 1,
    and their order is arbitrary.
    """
    detector.eval()
    batch, _ = detector.transform([image])
    features = {"0": detector.backbone(batch.tensors)}
    rpn = detector.rpn.head
    for output, layer in zip(rpn([features["0"]]), (rpn.cls_logits, rpn.bbox_pred)):
        layer.weight.div_(2 * output[0].std())
    proposals, _ = detector.rpn(batch, features)
    heads = detector.roi_heads
    outputs = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals)))
    for output, layer in zip(
        outputs, (heads.box_predictor.cls_score, heads.box_predictor.bbox_pred)
    ):
        layer.weight.div_(output.std() / 2)


def compare_detector(model: Any, weights: Weights, options: Options, *, masks: bool) -> bool:
    """Whether the detectors find the same in one image, with the same weights."""
    config = DetectorConfig(masks=masks, score_threshold=0.0, proposals_test=(6000, PROPOSALS))
    classes = 80 if masks else 20
    detector = make_detector(config, weights.trunk_state, classes=classes, seed=options.seed)
    image = blobs(options.size, options.seed)
    spread_scores(detector, image)
    copy_heads(detector, model, len(config.anchor_sizes))
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        differences, matched, count = detection_differences(detector, model, image)
    right = max(differences.values()) <= TOLERANCE and matched >= MATCHED * count
    listed = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(
        f"{'Mask' if masks else 'Faster'} R-CNN: largest relative differences: {listed}; "
        f"{matched} of {count} detections found by both: {_verdict(right)}"
    )
    return right


def detection_differences(
    detector: GeneralizedRCNN, model: Any, image: torch.Tensor
) -> tuple[dict[str, float], int, int]:
    """Compare every stage on the same inputs, and the whole.

    Returns the largest relative difference of each stage's outputs, the number of detections that
    both find, and the number of all. Those can differ: suppression is a comparison, which a
    difference in the last bits decides now and then.
    """
    from detectron2.structures import Boxes, Instances

    height, width = image.shape[1:]
    inputs = [{"image": 255 * image, "height": height, "width": width}]
    batch, _ = detector.transform([image])
    own = detector.backbone(batch.tensors)
    features = model.backbone(model.preprocess_image(inputs).tensor)
    res4 = features["res4"]
    differences = {"res4": _relative(own, res4)}

    scores, changes = detector.rpn.head([res4])
    generator = model.proposal_generator
    their_scores, their_changes = generator.rpn_head([res4])
    anchors = detector.rpn.anchor_generator(batch, [res4])
    boxes = detector.rpn.box_coder.decode(_by_anchor(changes[0], 4), anchors)[:, 0]
    (their_boxes,) = generator._decode_proposals(
        generator.anchor_generator([res4]), [_by_anchor(their_changes[0], 4)[None]]
    )
    count = scores[0].shape[1]
    order = _anchor_order(count // 3)
    differences["objectness"] = _relative(scores[0][:, order], their_scores[0])
    boxes = boxes.view(-1, count, 4)[:, order].flatten(0, 1)
    differences["proposals"] = _relative(boxes, their_boxes[0])

    proposals, _ = detector.rpn(batch, {"0": res4})
    heads, theirs = detector.roi_heads, model.roi_heads
    regions = heads.box_head(heads.box_roi_pool({"0": res4}, proposals))
    their_regions = theirs._shared_roi_transform([res4], [Boxes(proposals[0])])
    differences["res5"] = _relative(regions, their_regions)
    logits, changes = heads.box_predictor(their_regions)
    predictions = theirs.box_predictor(their_regions.mean((2, 3)))
    instances = Instances((height, width), proposal_boxes=Boxes(proposals[0]))
    (probabilities,) = theirs.box_predictor.predict_probs(predictions, [instances])
    differences["scores"] = _relative(logits.softmax(1)[:, 1:], probabilities[:, :-1])
    (their_boxes,) = theirs.box_predictor.predict_boxes(predictions, [instances])
    boxes = heads.box_coder.decode(changes, proposals)[:, 1:].flatten(1)
    differences["boxes"] = _relative(boxes, their_boxes)
    if heads.has_mask():
        masks = heads.mask_predictor(their_regions[:20])[:, 1:]
        differences["masks"] = _relative(masks, theirs.mask_head.layers(their_regions[:20]))

    (found,) = detector([image])
    (result,) = model.inference(inputs, do_postprocess=False)
    pairs = (
        (found["labels"][:, None] - 1 == result.pred_classes[None])
        & ((found["scores"][:, None] - result.scores[None]).abs() < 1e-3)
        & ((found["boxes"][:, None] - result.pred_boxes.tensor[None]).abs().amax(2) < 0.1)
    )
    return differences, int(pairs.any(1).sum()), max(len(found["labels"]), len(result))


def _by_anchor(maps: torch.Tensor, values: int) -> torch.Tensor:
    """Maps (1, A·values, H, W) as rows (H·W·A, values)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, values)


def _anchor_order(sizes: int) -> torch.Tensor:
    """Indices of our anchors, over ratios and then sizes, in Detectron2's order."""
    return torch.arange(3 * sizes).view(3, sizes).T.flatten()


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _verdict(right: bool) -> str:
    return "equal" if right else "DIFFERENT"


@dataclasses.dataclass(frozen=True)
class Scene:
    """The random objects and detections of one image."""

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    found: Detections


def random_scenes(options: Options, classes: int, side: int) -> list[Scene]:
    """Objects in whole pixels; detections near them and elsewhere, with distinct scores.

    Boxes of detections have one decimal place and scores three: VOC's evaluator rounds to that.
    """
    random = np.random.default_rng(options.seed)
    scores = random.permutation(np.arange(1, 1000))
    scenes: list[Scene] = []
    used = 0
    for _ in range(options.images):
        count = int(random.integers(1, 6))
        corner = random.integers(0, side // 2, (count, 2))
        boxes = np.hstack([corner, corner + random.integers(8, side // 2, (count, 2))])
        labels = random.integers(0, classes, count)
        near = np.repeat(boxes, 2, 0) + random.normal(0, 4, (2 * count, 4))
        start = random.uniform(0, side / 2, (2, 2))
        far = np.hstack([start, start + random.uniform(8, side / 2, (2, 2))])
        found = np.vstack([near, far]).clip(0, side)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        score = scores[used : used + len(found)] / 1000
        used += len(found)
        scenes.append(
            Scene(
                boxes.astype(np.float32),
                labels,
                random.random(count) < 0.2,
                Detections(
                    boxes=found.round(1).astype(np.float32),
                    scores=score.astype(np.float32),
                    labels=np.concatenate([np.repeat(labels, 2), random.integers(0, classes, 2)]),
                    masks=tuple(encode(np.stack([_ellipse(box, side) for box in found]))),
                ),
            )
        )
    if used > len(scores):
        raise SystemExit(f"--images must be at most {options.images * len(scores) // used}.")
    return scenes


def _ellipse(box: np.ndarray, side: int) -> np.ndarray:
    """A mask (side, side) uint8: the ellipse that a box encloses."""
    centre = np.arange(side) + 0.5
    y, x = centre[:, None], centre[None]
    x1, y1, x2, y2 = box
    inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
    return inside.astype(np.uint8)


def as_instances(found: Detections, side: int) -> Any:
    """Detections as Detectron2 returns them."""
    from detectron2.structures import Boxes, Instances
    from pycocotools import mask

    instances = Instances((side, side))
    instances.pred_boxes = Boxes(torch.from_numpy(found.boxes))
    instances.scores = torch.from_numpy(found.scores)
    instances.pred_classes = torch.from_numpy(found.labels)
    decoded = mask.decode(list(found.masks))
    instances.pred_masks = torch.from_numpy(decoded.transpose(2, 0, 1).astype(bool))
    return instances


def compare_voc(folder: pathlib.Path, options: Options) -> bool:
    """Whether `voc_precision` equals PascalVOCDetectionEvaluator."""
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets.pascal_voc import register_pascal_voc
    from detectron2.evaluation import PascalVOCDetectionEvaluator

    side = 128
    scenes = random_scenes(options, 4, side)
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(len(scenes))]
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(names) + "\n")
    for name, scene in zip(names, scenes):
        objects = "".join(
            f"<object><name>{VOC_CLASSES[label]}</name><pose>Unspecified</pose>"
            f"<truncated>0</truncated><difficult>{int(ignored)}</difficult><bndbox>"
            f"<xmin>{int(x1) + 1}</xmin><ymin>{int(y1) + 1}</ymin><xmax>{int(x2)}</xmax>"
            f"<ymax>{int(y2)}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), label, ignored in zip(scene.boxes, scene.labels, scene.ignored)
        )
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
            f"{objects}</annotation>"
        )
    data = read_voc(folder, "test")
    present = sorted({int(label) for scene in scenes for label in scene.labels[~scene.ignored]})
    # Detectron2 gives 0 to a class without objects; VOC has none, and here it is left out.
    dataset = f"comparison_voc_{folder.name}"
    register_pascal_voc(dataset, str(folder), "test", 2007, [VOC_CLASSES[n] for n in present])
    evaluator = PascalVOCDetectionEvaluator(dataset)
    evaluator.reset()
    for name, scene in zip(names, scenes):
        instances = as_instances(scene.found, side)
        kept = np.isin(scene.found.labels, present)
        instances = instances[torch.from_numpy(kept)]
        instances.pred_classes = torch.from_numpy(
            np.searchsorted(present, scene.found.labels[kept])
        )
        evaluator.process([{"image_id": name}], [{"instances": instances}])
    with _quiet():
        theirs = evaluator.evaluate()["bbox"]
    MetadataCatalog.remove(dataset)
    ours = voc_precision(data.images, [scene.found for scene in scenes], data.classes)
    return _compare_ap("VOC07, boxes", ours, theirs)


def compare_coco(folder: pathlib.Path, options: Options) -> bool:
    """Whether `coco_precision` equals COCOEvaluator, for boxes and for masks."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.evaluation import COCOEvaluator

    side = 128
    scenes = random_scenes(options, 4, side)
    folder.mkdir()
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        for box, label, ignored in zip(scene.boxes, scene.labels, scene.ignored):
            x1, y1, x2, y2 = box.tolist()
            (runs,) = encode(_ellipse(box, side)[None])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignored),
                    "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
                }
            )
    file = folder / "annotations.json"
    file.write_text(
        json.dumps(
            {
                "images": [
                    {"id": n, "file_name": f"{n}.jpg", "height": side, "width": side}
                    for n in range(len(scenes))
                ],
                "annotations": annotations,
                "categories": [{"id": n, "name": f"class {n}"} for n in range(1, 5)],
            }
        )
    )
    data = read_coco(file, folder, masks=True)
    dataset = f"comparison_coco_{folder.name}"
    with _quiet():
        register_coco_instances(dataset, {}, str(file), str(folder))
        DatasetCatalog.get(dataset)  # only then is the order of the categories known
        evaluator = COCOEvaluator(
            dataset, tasks=("bbox", "segm"), distributed=False, use_fast_impl=False
        )
        evaluator.reset()
        for number, scene in enumerate(scenes):
            instances = as_instances(scene.found, side)
            evaluator.process([{"image_id": number}], [{"instances": instances}])
        theirs = evaluator.evaluate()
    MetadataCatalog.remove(dataset)
    found = [scene.found for scene in scenes]
    results = [
        _compare_ap(
            f"COCO, {name}",
            coco_precision(data.images, found, data.classes, masks=task == "segm"),
            theirs[task],
        )
        for name, task in (("boxes", "bbox"), ("masks", "segm"))
    ]
    return all(results)


def _compare_ap(name: str, ours: Precision, theirs: dict[str, float]) -> bool:
    difference = max(
        abs(getattr(ours, key.lower()) - theirs[key]) for key in ("AP", "AP50", "AP75")
    )
    right = difference <= AP_TOLERANCE
    print(
        f"AP, {name}: ours {ours.ap:.4f} / {ours.ap50:.4f} / {ours.ap75:.4f}, Detectron2's "
        f"{theirs['AP']:.4f} / {theirs['AP50']:.4f} / {theirs['AP75']:.4f}: {_verdict(right)}"
    )
    return right


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def main(options: Options) -> int:
    """Run all comparisons; returns 1 at a difference."""
    import_detectron2(options.checkout)
    weights = read_weights(options.weights, trunk="resnet50")
    if weights.trunk != "resnet50":
        raise SystemExit(f"--weights must be a ResNet-50's, got a {weights.trunk}'s.")
    weights = uneven_norms(weights, 4 * blobs(options.size, options.seed)[None] - 2)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for protocol, masks in (("voc", False), ("coco", True)):
            model = build(folder, weights, protocol)
            results.append(compare_weights(model, weights))
            results.append(compare_detector(model, weights, options, masks=masks))
        results.append(compare_voc(folder / "VOC2007", options))
        results.append(compare_coco(folder / "coco", options))
    say(f"{sum(results)} of {len(results)} comparisons equal")
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
