"""Detection of single-scan JPEGs. The tests of the shard index cover the rest of the headers."""

import numpy as np
import pytest

from maskco_fast.kernels.headers import is_one_whole_scan
from tests.support.images import encode, picture

WHOLE = encode(picture(200, 310, 0), quality=95)


def verdict(data: bytes, height: int = 200, width: int = 310) -> bool:
    return bool(is_one_whole_scan(np.frombuffer(data, np.uint8), height, width))


@pytest.mark.parametrize(
    "options", [{}, {"restart_marker_blocks": 3}, {"exif": b"Exif\0\0" + bytes(500)}]
)
def test_baseline_files_are(options):
    data = encode(picture(61, 45, 1), **options)
    assert verdict(data, 61, 45)
    assert verdict(encode(picture(61, 45, 1)[..., 0], **options) + b"behind the end", 61, 45)
    assert not verdict(data, 45, 61)


def test_progressive_files_are_not():
    assert not verdict(encode(picture(61, 45, 1), progressive=True), 61, 45)


def test_a_marker_anywhere_in_the_scan_is_found():
    begin = WHOLE.rindex(b"\xff\xda") + 14
    for at in range(begin, len(WHOLE) - 2, 97):
        assert not verdict(WHOLE[:at] + b"\xff\x05" + WHOLE[at:])


def test_cut_files_are_not():
    for length in (
        4,
        20,
        WHOLE.rindex(b"\xff\xda"),
        len(WHOLE) // 2,
        len(WHOLE) - 2,
        len(WHOLE) - 1,
    ):
        assert not verdict(WHOLE[:length])
