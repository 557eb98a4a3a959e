"""CRC-32C of files (Castagnoli's polynomial, as in RFC 3720), in compiled code without the GIL."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiler.features import has_features
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


def _make_shift(doublings: int) -> np.ndarray:
    """(4 · 256,) uint32: `[256 j + b]` is the register `b << 8 j` after 2 ** `doublings` zeros."""
    byte = np.arange(256, dtype=np.uint32)
    shift = np.stack([_TABLES[:256], byte, byte << np.uint32(8), byte << np.uint32(16)])
    for _ in range(doublings):
        shift = np.bitwise_xor.reduce(
            [shift[j][shift >> np.uint32(8 * j) & np.uint32(255)] for j in range(4)]
        )
    return shift.reshape(-1)


_TABLES = _make_tables()
_PIECE_BITS = 10
_PIECE = 1 << _PIECE_BITS
"""Bytes of each of three pieces that the instruction takes at once: it needs three cycles, and a
CPU begins one each cycle."""
_ONE_PIECE = _make_shift(_PIECE_BITS)
_TWO_PIECES = _make_shift(_PIECE_BITS + 1)


@inline_jit()
def _by_tables(data, size, register, at):
    """The register after the bytes of `data` from `at` on: eight bytes a step, a table for each."""
    while at + 8 <= size:
        low = np.uint32(0)
        for k in range(4):
            low |= np.uint32(data[at + k]) << np.uint32(8 * k)
        low ^= register
        register = (
            _TABLES[1792 + (low & np.uint32(255))]
            ^ _TABLES[1536 + ((low >> np.uint32(8)) & np.uint32(255))]
            ^ _TABLES[1280 + ((low >> np.uint32(16)) & np.uint32(255))]
            ^ _TABLES[1024 + (low >> np.uint32(24))]
            ^ _TABLES[768 + np.int64(data[at + 4])]
            ^ _TABLES[512 + np.int64(data[at + 5])]
            ^ _TABLES[256 + np.int64(data[at + 6])]
            ^ _TABLES[np.int64(data[at + 7])]
        )
        at += 8
    while at < size:
        register = (register >> np.uint32(8)) ^ _TABLES[(register ^ data[at]) & np.uint32(255)]
        at += 1
    return register


@intrinsic
def _step(typing_context, register, array, at):
    """The register after the 8 bytes of `array` from `at` on, by the CPU's instruction."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        data = context.make_array(array)(context, builder, arguments[1]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[2]]), word.as_pointer())
        kind = ir.FunctionType(word, [word, word])
        step = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse42.crc32.64.64")
        return builder.call(step, [arguments[0], builder.load(pointer, align=1)])

    return types.uint64(types.uint64, array, types.intp), generate


@inline_jit(forceinline=True)
def _shifted(shift, register):
    """The register after the bytes of 0 of a table by `_make_shift`."""
    return np.uint64(
        shift[register & np.uint64(255)]
        ^ shift[256 + ((register >> np.uint64(8)) & np.uint64(255))]
        ^ shift[512 + ((register >> np.uint64(16)) & np.uint64(255))]
        ^ shift[768 + (register >> np.uint64(24))]
    )


@inline_jit()
def _by_instruction(data, size, register, at):
    """`_by_tables` by the CPU's instruction."""
    first = np.uint64(register)
    while at + 3 * _PIECE <= size:
        second, third = np.uint64(0), np.uint64(0)
        for i in range(at, at + _PIECE, 8):
            first = _step(first, data, i)
            second = _step(second, data, i + _PIECE)
            third = _step(third, data, i + 2 * _PIECE)
        first = _shifted(_TWO_PIECES, first) ^ _shifted(_ONE_PIECE, second) ^ third
        at += 3 * _PIECE
    while at + 8 <= size:
        first = _step(first, data, at)
        at += 8
    return _by_tables(data, size, np.uint32(first), at)


_advance = _by_instruction if has_features("sse4.2", "crc32") else _by_tables


@inline_jit()
def crc32c(data, size):
    """CRC-32C of the first `size` bytes of `data` (bytes,) uint8, as int64."""
    return np.int64(_advance(data, size, np.uint32(_ONES), 0) ^ np.uint32(_ONES))


@jit()
def file_checksum(data):
    """CRC-32C of `data` (bytes,) uint8."""
    return crc32c(data, len(data))
