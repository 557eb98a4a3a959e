"""What a network has learned: weights, probes, k-NN and the paper's measures.

weights.py    `--weights`: run folders, checkpoints, exported files, torchvision's, random ones
distance.py   the ResNet distance of Table 1
paper.py      the paper's numbers
"""
