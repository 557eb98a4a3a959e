"""Kernels: pure functions on arrays, each fast one tested against a slow reference.

Settings and randomness:
  views          `View` and `ViewConfig`; layouts of parameters and plan rows
  plan           every random decision about a sample, as one row of numbers
Views of an image:
  resize         crop, antialiased bilinear resize and flip; resize_bicubic with that filter
  augment/       colour jitter, blur, solarisation, normalisation: reference, Numba, torch, Triton
  render         a decoded image to the views of a batch
  render_jpegs   JPEG files to the views of a batch
  jpeg/          the baseline JPEG decoder
  formats        the output dtypes; torch_formats by torch's dtypes
Shards:
  tar            the members of a tar archive
  headers        format, size and completeness of encoded images
Training:
  batch_norm/    BatchNorm of groups fused with the residual sum and ReLU: Numba, Triton
Shared:
  compiler/      Numba with a disk cache, SIMD vectors, half precision, threads
  ahead          which kernels are compiled ahead of their first call
  errors         the base classes of deliberate errors
"""
