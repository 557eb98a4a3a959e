"""Segments of a JPEG, as the libraries that decode it see them."""

import numpy as np

from ...kernels import headers
from ...kernels.jpeg.markers import APP0, APP14, APP15, COM, EOI, PREFIX, SOS

_SIGNATURES = {APP0: (b"JFIF\0", 14), APP14: (b"Adobe", 12)}
"""Application segments that libjpeg reads, since they say how colours are stored: first bytes, and
least bytes."""


def find_ordinary_scan(data: bytes) -> tuple[int, int, int]:
    """(height, width, position of the first scan) of a JPEG; zeros unless every segment before the
    scan is ordinary, see `kernels.headers.is_ordinary`.
    """
    return headers.find_ordinary_scan(np.frombuffer(data, np.uint8))


def without_metadata(data: bytes) -> bytes:
    """A JPEG without the segments that libjpeg skips, such as EXIF, ICC profiles and comments.

    Pillow parses these and refuses images over damage in them; libjpeg does not. Other data, and
    JPEGs with unordinary segments, are returned unchanged.
    """
    if not find_ordinary_scan(data)[2]:
        return data
    kept = [data[:2]]
    at = 2
    while data[at + 1] != SOS:
        if data[at + 1] == PREFIX:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not _is_metadata(data[at + 1], data[at + 4 : end]):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _is_metadata(marker: int, content: bytes) -> bool:
    if marker in _SIGNATURES:
        signature, size = _SIGNATURES[marker]
        return not (content.startswith(signature) and len(content) >= size)
    return APP0 <= marker <= APP15 or marker == COM


def count_scans(data: bytes, begin: int) -> int:
    """Number of scans from `begin` to the end of the image; a byte string that only looks like one
    may be counted too.
    """
    end = data.find(bytes((PREFIX, EOI)), begin)
    return data.count(bytes((PREFIX, SOS)), begin, end if end >= 0 else len(data))
