"""Colour, blur, solarisation, normalisation and mask of views: one module for each implementation.

- `reference`: torchvision's operators, one view at a time. The others are tested against it.
- `numba`: CPU, one view a call, in compiled code. `numba_colour` holds its colour operations.
- `torch`: plain torch, a whole batch on any device, also under `torch.compile`.
- `triton`: CUDA, a whole batch in three passes. It launches the kernels of `triton_kernels`;
  `triton_colour` holds their colour operations, `triton_pixels` their loads and stores.

docs/extending.md lists what a new augmentation changes.
"""
