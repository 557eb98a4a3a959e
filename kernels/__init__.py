"""Kernels: pure functions on arrays, each fast one tested against a slow reference.

Settings and randomness:
  views          `View` and `ViewConfig`; layouts of parameters and plan rows
  plan           every random decision about a sample, as one row of numbers
Views of an image:
  render/        a decoded image, or a file, to the views of a batch: resize, image, jpegs, records
  augment/       colour jitter, blur, solarisation, normalisation: reference, Numba, torch, Triton
  jpeg/          the baseline JPEG decoder, from the beginning of a file or from checkpoints
  coefficients/  JPEGs as records of coefficients, and back
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
