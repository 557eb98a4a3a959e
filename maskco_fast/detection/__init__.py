"""Detection: Faster R-CNN and Mask R-CNN R50-C4 on pre-trained weights.

config.py             DetectConfig and the recipes voc, coco and demo
annotations.py        reads VOC's and COCO's annotations
masks.py              masks through pycocotools
batches.py            order, resizing and flips of the images
network.py            the detector, from torchvision's parts, and its training objective
average_precision.py  AP by VOC07's 11 points and by COCO's rule
testing.py            tests a detector, also while it trains
"""
