"""What a network has learned: weights, probes, k-NN and the paper's measures.

paper.py      the paper's numbers
"""
