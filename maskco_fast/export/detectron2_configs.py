"""Configuration files for Detectron2: the two protocols of the MoCo repository.

Faster R-CNN R50-C4 on VOC07+12 and Mask R-CNN R50-C4 on COCO, with the settings of docs/method.md.
"""

_HEADER = """\
# {title}
# The settings are those of the MoCo repository (detection/configs) and of the MaskCo paper.
# `Res5ROIHeadsExtraNorm` is defined in MoCo's detection/train_net.py; the model card beside this
# file has its few lines for Detectron2's own tools/train_net.py.
# MODEL.WEIGHTS is a file name: start the training in the folder of that file, or set the path.
"""

_SHARED = """\
VERSION: 2
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  WEIGHTS: "{weights}"
  MASK_ON: {mask}
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  BACKBONE:
    FREEZE_AT: 0
  RESNETS:
    DEPTH: 50
    NORM: "SyncBN"
    STRIDE_IN_1X1: False
  RPN:
    PRE_NMS_TOPK_TEST: 6000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    NAME: "Res5ROIHeadsExtraNorm"
    NUM_CLASSES: {classes}
TEST:
  PRECISE_BN:
    ENABLED: True
"""

_VOC = """\
INPUT:
  FORMAT: "RGB"
  MIN_SIZE_TRAIN: (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
  MIN_SIZE_TEST: 800
DATASETS:
  TRAIN: ("voc_2007_trainval", "voc_2012_trainval")
  TEST: ("voc_2007_test",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  STEPS: (18000, 22000)
  MAX_ITER: 24000
  WARMUP_ITERS: 100
"""

_COCO = """\
INPUT:
  FORMAT: "RGB"
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
  MAX_SIZE_TRAIN: 1200  # the paper's; MoCo keeps Detectron2's default, 1333
  MIN_SIZE_TEST: 800
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  STEPS: (120000, 160000)
  MAX_ITER: 180000
  WARMUP_ITERS: 1000
"""

EXTRA_NORM = """\
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        channels = self.res5[-1].out_channels
        self.res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
"""
"""The extra norm after res5, to paste into a copy of Detectron2's `tools/train_net.py`."""


def detectron2_configs(weights: str) -> dict[str, str]:
    """Name suffix to the YAML text of each configuration; `weights`: the exported file's name."""
    voc = _HEADER.format(title="Faster R-CNN R50-C4 on VOC07+12: 24k steps of 16 images.")
    coco = _HEADER.format(title="Mask R-CNN R50-C4 on COCO: 180k steps of 16 images.")
    return {
        "voc_R_50_C4_24k": voc + _SHARED.format(weights=weights, mask=False, classes=20) + _VOC,
        "coco_R_50_C4_2x": coco + _SHARED.format(weights=weights, mask=True, classes=80) + _COCO,
    }
