"""Colour, blur, solarisation, normalisation and mask of views: one module for each implementation.

- `reference`: torchvision's operators, one view at a time. The others are tested against it.
- `numba`: CPU, one view a call, in compiled code. `numba_colour` holds its colour operations.
- `torch`: plain torch, a whole batch on any device, also under `torch.compile`.
- `triton`: CUDA, a whole batch in three passes. It launches the kernels of `triton_kernels`;
  `triton_colour` holds their colour operations, `triton_pixels` their loads and stores.

A new augmentation touches these files: `views.py` (field of `View`, its checks, its place in
`View.parameters`, column in `plan_dtype`), `plan.py` (column constant, draw in `_draw_colour`),
`reference.py`, `numba.py`, `torch.py`, `triton_kernels.py` (`colour`; if it comes after the blur,
`blur` too), and their tests: `tests/kernels/test_plan.py` and
`tests/kernels/augment/test_{numba,torch,triton}.py`. Its arithmetic on colours belongs in
`numba_colour.py` and `triton_colour.py`.
"""
