"""The structure of a Huffman-coded JPEG: frame, tables and scans, of any sampling, progressive too.

The terms are explained in `..jpeg.markers`. Everything that is no 8-bit DCT JPEG with Huffman codes
is refused by `NotTranscodable`: its file is kept as it is.
"""

import re
from typing import NamedTuple

import numpy as np

from ..errors import MaskCoError
from ..jpeg.markers import (
    APP0,
    APP15,
    COM,
    DHT,
    DQT,
    DRI,
    EOI,
    PREFIX,
    RST0,
    RST7,
    SOF0,
    SOF2,
    SOI,
    SOS,
)

MAX_SCANS = 500
"""Most scans of a file, as `loaders.shards.decode.MAX_SCANS`."""
MAX_MCU_BLOCKS = 10
"""Most blocks in an MCU, of T.81."""
MAX_SAMPLING = 4
"""Largest sampling factor."""
TABLES = 8
"""Huffman tables of a file: four of DC codes, then four of AC codes."""
CODE_SIZE = 272
"""Bytes of a Huffman table in a file: counts of codes by length, 1 to 16, then room for symbols."""
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""A marker that ends entropy-coded data: neither a stuffed byte nor a restart marker."""


class NotTranscodable(MaskCoError):
    """The coefficients of a file cannot be read, or the file not be made from them. The message is
    a reason of a few words, equal for equal causes."""


class Component(NamedTuple):
    """A component of the frame."""

    identifier: int
    h: int
    v: int
    quantisation: int
    """Number of its quantisation table, 0..3."""


class Scan(NamedTuple):
    """A scan and the tables in effect for it."""

    begin: int
    """Position of its entropy-coded data."""
    end: int
    """Position of the marker after it."""
    components: tuple[int, ...]
    """Positions of its components in the frame."""
    dc: tuple[int, ...]
    """Number of each component's DC table, 0..3."""
    ac: tuple[int, ...]
    """Number of each component's AC table, 4..7."""
    first: int
    """Ss, its first coefficient in zigzag order."""
    last: int
    """Se, its last."""
    high: int
    """Ah, the bit position of the scan before; 0 for the first scan of a coefficient."""
    low: int
    """Al, its own bit position."""
    interval: int
    """MCUs between restart markers, 0 for none."""
    codes: np.ndarray
    """(TABLES, CODE_SIZE) uint8: the Huffman tables; zeros where there is none."""


class JpegFile(NamedTuple):
    """The structure of a JPEG."""

    height: int
    width: int
    progressive: bool
    components: tuple[Component, ...]
    quantisation: np.ndarray
    """(components, 64) uint16 in zigzag order."""
    scans: tuple[Scan, ...]

    @property
    def mcu_size(self) -> tuple[int, int]:
        """Height and width of an MCU of all components, blocks of the finest one."""
        if len(self.components) == 1:
            return 1, 1
        return max(c.v for c in self.components), max(c.h for c in self.components)

    @property
    def mcus(self) -> tuple[int, int]:
        """MCUs down and across."""
        v, h = self.mcu_size
        return -(-self.height // (8 * v)), -(-self.width // (8 * h))

    def sampling(self, component: int) -> tuple[int, int]:
        """(h, v): blocks of a component in an MCU, across and down."""
        if len(self.components) == 1:
            return 1, 1
        return self.components[component].h, self.components[component].v

    def blocks(self, component: int) -> tuple[int, int]:
        """Blocks of a component down and across, in whole MCUs."""
        (down, across), (h, v) = self.mcus, self.sampling(component)
        return down * v, across * h

    def scan_blocks(self, component: int) -> tuple[int, int]:
        """Blocks of a component down and across in a scan of its own, which has no padding."""
        v, h = self.mcu_size
        own_h, own_v = self.sampling(component)
        return _blocks(self.height * own_v, v), _blocks(self.width * own_h, h)


def _blocks(samples: int, factor: int) -> int:
    """Blocks along an axis of `samples` times the largest sampling factor of it."""
    return (samples + 8 * factor - 1) // (8 * factor)


def parse_jpeg(data: bytes) -> JpegFile:
    """Parse a JPEG up to its EOI; NotTranscodable where it is no such file."""
    if data[:2] != bytes((PREFIX, SOI)):
        raise NotTranscodable("no JPEG")
    codes = np.zeros((TABLES, CODE_SIZE), np.uint8)
    tables: dict[int, np.ndarray] = {}
    frame: tuple[int, int, bool, tuple[Component, ...]] | None = None
    scans: list[Scan] = []
    interval = 0
    at = 2
    while True:
        marker, begin, end = _segment(data, at)
        if marker == EOI:
            break
        content = data[begin:end]
        if marker == DHT:
            codes = _with_codes(codes, content)
        elif marker == DQT:
            if scans:
                raise NotTranscodable("quantisation tables between scans")
            tables.update(_quantisation(content))
        elif SOF0 <= marker <= SOF2:
            if frame is not None:
                raise NotTranscodable("two frames")
            height, width, components = _frame(content)
            frame = height, width, marker == SOF2, components
        elif marker == DRI:
            if len(content) != 2:
                raise NotTranscodable("damaged segment")
            interval = int.from_bytes(content, "big")
        elif marker == SOS:
            if frame is None or len(scans) == MAX_SCANS:
                raise NotTranscodable("scan without a frame, or too many scans")
            found = _SCAN_END.search(data, end)
            if found is None:
                raise NotTranscodable("truncated")
            scans.append(_scan(content, frame[3], frame[2], (end, found.start()), interval, codes))
            end = found.start()
        elif not (APP0 <= marker <= APP15 or marker == COM):
            raise NotTranscodable("unusual segment")
        at = end
    if frame is None or not scans:
        raise NotTranscodable("no scan")
    height, width, progressive, components = frame
    if any(component.quantisation not in tables for component in components):
        raise NotTranscodable("no quantisation table")
    quantisation = np.stack([tables[component.quantisation] for component in components])
    return JpegFile(height, width, progressive, components, quantisation, tuple(scans))


def _segment(data: bytes, at: int) -> tuple[int, int, int]:
    """(marker, begin and end of its content) of the segment at `at`, behind fill bytes."""
    while data[at : at + 2] == b"\xff\xff":
        at += 1
    if at + 2 > len(data) or data[at] != PREFIX:
        raise NotTranscodable("truncated")
    marker = data[at + 1]
    if marker == EOI:
        return marker, at + 2, at + 2
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    end = at + 2 + length
    if length < 2 or end > len(data) or RST0 <= marker <= RST7:
        raise NotTranscodable("damaged segment")
    return marker, at + 4, end


def _with_codes(codes: np.ndarray, content: bytes) -> np.ndarray:
    """A copy of the Huffman tables with those of a DHT segment."""
    codes = codes.copy()
    while content:
        number = (content[0] >> 4) * 4 + (content[0] & 15)
        symbols = sum(content[1:17])
        table = content[1 : 17 + symbols]
        if content[0] & 0xEC or symbols > 256 or len(table) != 16 + symbols:
            raise NotTranscodable("damaged Huffman table")
        codes[number] = 0
        codes[number, : len(table)] = np.frombuffer(table, np.uint8)
        content = content[17 + symbols :]
    return codes


def _quantisation(content: bytes) -> dict[int, np.ndarray]:
    """The tables of a DQT segment by number, (64,) uint16 in zigzag order."""
    tables = {}
    while content:
        dtype = np.dtype(">u2" if content[0] >> 4 else np.uint8)
        size = 64 * dtype.itemsize
        if content[0] >> 4 > 1 or content[0] & 15 > 3 or len(content) < 1 + size:
            raise NotTranscodable("damaged quantisation table")
        table = np.frombuffer(content, dtype, 64, 1).astype(np.uint16)
        if not table.all():
            raise NotTranscodable("damaged quantisation table")
        tables[content[0] & 15] = table
        content = content[1 + size :]
    return tables


def _frame(content: bytes) -> tuple[int, int, tuple[Component, ...]]:
    """(height, width, components) of an SOF segment."""
    if len(content) < 6 or len(content) != 6 + 3 * content[5] or not 1 <= content[5] <= 4:
        raise NotTranscodable("damaged frame")
    height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    if content[0] != 8 or not height or not width:
        raise NotTranscodable("not 8 bits a sample, or no size")
    components = tuple(
        Component(content[at], content[at + 1] >> 4, content[at + 1] & 15, content[at + 2])
        for at in range(6, len(content), 3)
    )
    factors = [factor for component in components for factor in component[1:3]]
    if min(factors) < 1 or max(factors) > MAX_SAMPLING:
        raise NotTranscodable("damaged frame")
    if len({component.identifier for component in components}) != len(components):
        raise NotTranscodable("damaged frame")
    return height, width, components


def _scan(
    content: bytes,
    components: tuple[Component, ...],
    progressive: bool,
    place: tuple[int, int],
    interval: int,
    codes: np.ndarray,
) -> Scan:
    """The scan of an SOS segment, whose entropy-coded data is at `place`."""
    count = content[0] if content else 0
    if not 1 <= count <= len(components) or len(content) != 4 + 2 * count:
        raise NotTranscodable("damaged scan")
    identifiers = [component.identifier for component in components]
    chosen, dc, ac = [], [], []
    for at in range(1, 1 + 2 * count, 2):
        if content[at] not in identifiers or content[at + 1] & 0xCC:
            raise NotTranscodable("damaged scan")
        chosen.append(identifiers.index(content[at]))
        dc.append(content[at + 1] >> 4)
        ac.append(4 + (content[at + 1] & 15))
    first, last, high, low = content[-3], content[-2], content[-1] >> 4, content[-1] & 15
    if chosen != sorted(set(chosen)):
        raise NotTranscodable("damaged scan")
    if count > 1 and sum(components[c].h * components[c].v for c in chosen) > MAX_MCU_BLOCKS:
        raise NotTranscodable("damaged scan")
    if not progressive:
        sound = (first, last, high, low) == (0, 63, 0, 0)
    elif first == 0:
        sound = last == 0
    else:
        sound = first <= last <= 63 and count == 1
    if not sound or low > 13 or (high and high != low + 1):
        raise NotTranscodable("unusual scan")
    return Scan(
        *place, tuple(chosen), tuple(dc), tuple(ac), first, last, high, low, interval, codes
    )
