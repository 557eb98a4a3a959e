"""How kernels become machine code: Numba's cache, vectors as values, half precision, threads."""
