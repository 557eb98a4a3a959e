"""CRC-32C of files (Castagnoli's polynomial, as in RFC 3720), in compiled code without the GIL."""

import numpy as np

from ..compiler.jit import inline_jit, jit

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, its bits reversed."""
_ONES = 0xFFFFFFFF


def checksum_reference(data: bytes) -> int:
    """CRC-32C bit by bit."""
    register = _ONES
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
    return register ^ _ONES


def _make_tables() -> np.ndarray:
    """(8 · 256,) uint32: `[256 n + b]` is the register after byte b and n bytes of 0."""
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
        tables[0, byte] = register
    for n in range(1, 8):
        tables[n] = tables[n - 1] >> np.uint32(8) ^ tables[0][tables[n - 1] & 255]
    return tables.reshape(-1)


_TABLES = _make_tables()


@inline_jit()
def crc32c(data, size):
    """CRC-32C of the first `size` bytes of `data` (bytes,) uint8, as int64."""
    register = np.uint32(_ONES)
    at = 0
    while at + 8 <= size:  # eight bytes a step, a table for each
        low = np.uint32(0)
        for k in range(4):
            low |= np.uint32(data[at + k]) << np.uint32(8 * k)
        low ^= register
        register = (
            _TABLES[1792 + (low & np.uint32(255))]
            ^ _TABLES[1536 + ((low >> np.uint32(8)) & np.uint32(255))]
            ^ _TABLES[1280 + ((low >> np.uint32(16)) & np.uint32(255))]
            ^ _TABLES[1024 + (low >> np.uint32(24))]
            ^ _TABLES[768 + data[at + 4]]
            ^ _TABLES[512 + data[at + 5]]
            ^ _TABLES[256 + data[at + 6]]
            ^ _TABLES[np.int64(data[at + 7])]
        )
        at += 8
    while at < size:
        register = (register >> np.uint32(8)) ^ _TABLES[(register ^ data[at]) & np.uint32(255)]
        at += 1
    return np.int64(register ^ np.uint32(_ONES))


@jit()
def file_checksum(data):
    """CRC-32C of `data` (bytes,) uint8."""
    return crc32c(data, len(data))
