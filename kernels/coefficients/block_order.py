"""Where the blocks of a JPEG's components lie in an array of all its blocks: component after
component, each row by row, the padding of whole MCUs included."""

import numpy as np

from ..compiler.jit import inline_jit
from .jpeg_file import JpegFile, Scan

FIRST_BLOCK, ACROSS, H, V, DC_CODE, AC_CODE = range(6)
"""Columns of a block order, which has a row for each component: its first block, its blocks across,
its blocks in an MCU across and down; for a scan also the numbers of its Huffman tables."""


def block_order(file: JpegFile) -> np.ndarray:
    """The order of all components, (components, 4) int64: columns FIRST_BLOCK to V."""
    rows, first = [], 0
    for c in range(len(file.components)):
        down, across = file.blocks(c)
        rows.append((first, across, *file.sampling(c)))
        first += down * across
    return np.array(rows, np.int64)


def count_blocks(file: JpegFile) -> int:
    """The blocks of all components."""
    sizes = (file.blocks(c) for c in range(len(file.components)))
    return sum(down * across for down, across in sizes)


def scan_order(file: JpegFile, scan: Scan) -> tuple[np.ndarray, int, int]:
    """The order of a scan's components, (c, 6) int64, and the scan's MCUs down and across.

    An MCU of a scan of one component is one block, whatever its sampling factors.
    """
    rows = block_order(file).tolist()
    order = np.array(
        [(*rows[c], dc, ac) for c, dc, ac in zip(scan.components, scan.dc, scan.ac)], np.int64
    )
    if len(order) > 1:
        return order, *file.mcus
    order[0, H] = order[0, V] = 1
    return order, *file.scan_blocks(scan.components[0])


@inline_jit()
def count_mcu_blocks(order):
    """The blocks of an MCU."""
    count = 0
    for c in range(len(order)):
        count += order[c, H] * order[c, V]
    return count


@inline_jit(forceinline=True)
def block_at(order, c, mcu_y, mcu_x, b):
    """Place of the first coefficient of block `b` of component `c` in an MCU, of 64 a block."""
    h = order[c, H]
    row, column = mcu_y * order[c, V] + b // h, mcu_x * h + b % h
    return 64 * (order[c, FIRST_BLOCK] + row * order[c, ACROSS] + column)
