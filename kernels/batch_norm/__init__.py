"""BatchNorm of groups in training, fused with the residual sum and ReLU after it.

- `reference`: torch's elementary operators, differentiable, in any floating-point dtype. The others
  are tested against it.
- `numba`: CPU, float32 and bfloat16, on torch's own threads.
- `triton`: CUDA, as operators of torch, in two passes forward and two backward whatever the number
  of groups. It launches the kernels of `triton_kernels`.

The modules and the choice between these are in `maskco_fast/networks/batch_norm.py`.
"""
