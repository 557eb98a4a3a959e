"""What a network has learned: weights, probes, k-NN and the paper's measures.

weights.py      `--weights`: run folders, checkpoints, exported files, torchvision's, random ones
options.py      options, data sets and loaders that `knn` and `linear` share
labelled.py     training and validation sets with one numbering of the classes
features.py     features of all images
recalibrate.py  BatchNorm statistics of clean images
knn.py          weighted votes of the nearest neighbours
probes.py       pools and linear layers of the five layers
linear.py       training and testing of probes
distance.py     the ResNet distance of Table 1
mask_prediction.py  conv5 and MPH of masked images (Figures 6 and 7)
results.py      the JSON files of results: written, and found again in a run folder
paper.py        the paper's numbers
"""
