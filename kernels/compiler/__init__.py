"""Compilation of kernels: Numba with a safe disk cache, SIMD vectors, half precision, threads."""
