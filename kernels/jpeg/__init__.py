"""Baseline JPEG decoding in compiled code, bit-equal to libjpeg-turbo.

`decode` decodes a region of a file. It reads the `segments` with the codes of `markers`, then the
`entropy`-coded coefficients, and turns these to `pixels`.
"""
