"""Damage to files: changes of bytes for any format, and changes of segments for JPEG."""

import struct
from collections.abc import Callable, Sequence

import numpy as np

Random = np.random.Generator

INTERESTING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
SIGNATURES = (
    (0xE0, b"JFIF\0"),
    (0xE0, b"JFXX\0"),
    (0xE1, b"Exif\0\0"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    (0xE2, b"ICC_PROFILE\0"),
    (0xE2, b"MPF\0"),
    (0xE2, b"FPXR\0"),
    (0xED, b"Photoshop 3.0\0" + b"8BIM"),
    (0xEE, b"Adobe"),
    (0xFE, b""),
)
"""Segments with a content of their own: marker and first bytes."""


def pick(random: Random, among: Sequence[bytes]) -> bytes:
    """One of a list of files."""
    return among[int(random.integers(len(among)))]


def damage(random: Random, data: bytes, reach: int | None = None) -> bytes:
    """`data` with one to four changes of bytes, all before `reach` (default: anywhere)."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 5))):
        if not changed:
            break
        end = max(min(reach or len(changed), len(changed)), 1)
        at = int(random.integers(end))
        length = int(random.integers(1, 17))
        match int(random.integers(9)):
            case 0:
                changed[at] ^= 1 << int(random.integers(8))
            case 1:
                changed[at] = int(random.integers(256))
            case 2:
                changed[at] = INTERESTING[int(random.integers(len(INTERESTING)))]
            case 3:
                changed[at : at + length] = random.bytes(length)
            case 4:
                del changed[at : at + length]
            case 5:
                changed[at:at] = random.bytes(length)
            case 6:
                other = int(random.integers(len(changed)))
                changed[at : at + length] = changed[other : other + length]
            case 7:  # a number of two, four or eight bytes, at the ends of its range
                width = 2 << int(random.integers(3))
                largest = 2 ** (8 * width)
                number = (0, 1, largest // 2 - 1, largest - 1)[int(random.integers(4))]
                little = number.to_bytes(width, "little")
                changed[at : at + width] = little if random.integers(2) else little[::-1]
            case 8:
                if random.integers(4) == 0:
                    del changed[at:]
    return bytes(changed)


def segments(data: bytes) -> list[tuple[int, int]]:
    """(begin, end) of each segment of a JPEG up to its first scan, the scan's header last."""
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = min(at + 2 + int.from_bytes(data[at + 2 : at + 4], "big"), len(data))
        found.append((at, end))
        if data[at + 1] == 0xDA:
            break
        at = max(end, at + 2)  # a length below 2
    return found


def segment(marker: int, content: bytes) -> bytes:
    """A segment with its marker and length."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _odd_marker(random: Random, data: bytes) -> bytes:
    """Another marker for a segment."""
    places = segments(data)
    begin, _ = places[int(random.integers(len(places)))]
    return data[: begin + 1] + bytes([int(random.integers(256))]) + data[begin + 2 :]


def _new_segment(random: Random, data: bytes) -> bytes:
    """A segment more, with a known or a random content."""
    places = segments(data)
    begin, _ = places[int(random.integers(len(places)))]
    if random.integers(3):
        marker, content = SIGNATURES[int(random.integers(len(SIGNATURES)))]
        content = (content + random.bytes(20))[: int(random.integers(len(content) + 20))]
    else:
        marker, content = int(random.integers(0xC0, 0xFF)), random.bytes(int(random.integers(20)))
    return data[:begin] + segment(marker, content) + data[begin:]


def _lone_marker(random: Random, data: bytes) -> bytes:
    """A marker without content, fill bytes or rubbish between two segments."""
    places = segments(data)
    begin, _ = places[int(random.integers(len(places)))]
    what = random.choice([0, 1, 2])
    odd = (b"\xff" * int(random.integers(1, 4)), bytes([0xFF, int(random.integers(256))]), b"\n")
    return data[:begin] + odd[what] + data[begin:]


def _odd_length(random: Random, data: bytes) -> bytes:
    """A segment's length, a little off."""
    places = segments(data)
    begin, end = places[int(random.integers(len(places)))]
    length = max(end - begin - 2 + int(random.integers(-4, 5)), 0)
    return data[: begin + 2] + struct.pack(">H", length) + data[begin + 4 :]


def _drop_or_move(random: Random, data: bytes) -> bytes:
    """A segment dropped, repeated or moved."""
    places = segments(data)
    begin, end = places[int(random.integers(len(places)))]
    to, _ = places[int(random.integers(len(places)))]
    match int(random.integers(3)):
        case 0:
            return data[:begin] + data[end:]
        case 1:
            return data[:to] + data[begin:end] + data[to:]
    rest = data[:begin] + data[end:]
    return rest[:to] + data[begin:end] + rest[to:]


def _in_segments(kinds: Sequence[int]) -> Callable[[Random, bytes], bytes]:
    """A change of a few bytes within segments of certain markers."""

    def change(random: Random, data: bytes) -> bytes:
        places = [place for place in segments(data) if data[place[0] + 1] in kinds]
        if not places:
            return data
        begin, end = places[int(random.integers(len(places)))]
        changed = bytearray(data)
        if end <= begin + 4:
            return data
        for _ in range(int(random.integers(1, 9))):
            at = int(random.integers(begin + 4, end))
            changed[at] = (
                int(random.integers(256))
                if random.integers(2)
                else INTERESTING[int(random.integers(len(INTERESTING)))]
            )
        return bytes(changed)

    return change


def _quantisers(random: Random, data: bytes) -> bytes:
    """All quantisers scaled up: coefficients far beyond what an encoder writes."""
    changed = bytearray(data)
    for begin, end in segments(data):
        if data[begin + 1] == 0xDB:
            factor = int(random.integers(2, 80))
            for at in range(begin + 5, end):
                changed[at] = min(max(changed[at] * factor, 1), 255)
    return bytes(changed)


def _in_scan(random: Random, data: bytes) -> bytes:
    """A change in the entropy-coded data: bytes, markers, or a piece that is missing."""
    places = segments(data)
    begin = places[-1][1]
    if begin + 4 >= len(data):
        return data
    at = int(random.integers(begin, len(data) - 2))
    match int(random.integers(5)):
        case 0:
            return data[:at] + bytes([int(random.integers(256))]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([0xFF, int(random.integers(256))]) + data[at:]
        case 2:
            return data[:at] + data[at + int(random.integers(1, 40)) :]
        case 3:
            return data[: -int(random.integers(1, 40))] + b"\xff\xd9"
    return data[:at] + bytes([data[at] ^ 1 << int(random.integers(8))]) + data[at + 1 :]


_JPEG = (
    _odd_marker,
    _new_segment,
    _new_segment,
    _lone_marker,
    _odd_length,
    _drop_or_move,
    _in_segments((0xDB,)),
    _in_segments((0xC4,)),
    _in_segments((0xC0, 0xC1, 0xC2, 0xDA, 0xDD)),
    _in_segments(range(0xE0, 0xF0)),
    _quantisers,
    _in_scan,
    _in_scan,
)


def damage_jpeg(random: Random, data: bytes) -> bytes:
    """A JPEG with one to three changes, most of them to whole segments."""
    for _ in range(int(random.integers(1, 4))):
        if random.integers(6) == 0:
            data = damage(random, data)
        elif len(segments(data)):
            data = _JPEG[int(random.integers(len(_JPEG)))](random, data)
    return data
