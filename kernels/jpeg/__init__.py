"""Baseline JPEG decoding in compiled code, bit-equal to libjpeg-turbo: entropy coding, inverse
transform, colour."""
