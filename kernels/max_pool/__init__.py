"""ResNet's max-pooling, 3 x 3 with stride 2 and padding 1, in training on CUDA.

torch's own operator, which is the reference, reads and writes channels-last tensors at an eighth of
an H200's bandwidth. `triton` launches the kernels of `triton_kernels`.
"""
