"""Records of a JPEG's coefficients: the file's bytes back, libjpeg-turbo's pixels, any bytes safe.

`unpack_reference` is the slow, obvious reader; the others are held to it or to libjpeg-turbo.
"""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskco_fast.kernels.coefficients.decode import decode_record, decode_record_avx512
from maskco_fast.kernels.coefficients.jpeg_file import NotTranscodable, parse_jpeg
from maskco_fast.kernels.coefficients.pack import pack
from maskco_fast.kernels.coefficients.read_scan import read_coefficients
from maskco_fast.kernels.coefficients.record import (
    CHECKED,
    ONLY_JPEG,
    BadRecord,
    read_header,
    with_checksum,
)
from maskco_fast.kernels.coefficients.reference import unpack_reference
from maskco_fast.kernels.coefficients.unpack import give_back, unpack
from maskco_fast.kernels.compiler.features import has_vbmi2
from maskco_fast.kernels.jpeg.checkpoints import make_table
from maskco_fast.kernels.jpeg.checksum import checksum_reference
from maskco_fast.kernels.jpeg.decode import (
    DECODED,
    NOT_PLAIN,
    decode_reference,
    make_jpeg_scratch,
)
from maskco_fast.kernels.jpeg.pixels import LANES
from tests.support.images import encode, picture

READERS = {"portable": decode_record}
if has_vbmi2():
    READERS["AVX-512"] = decode_record_avx512
KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"subsampling": 2, "progressive": True, "quality": 95},
    "restarts": {"subsampling": 2, "restart_marker_blocks": 3},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 5},
    "optimised": {"optimize": True, "quality": 30},
    "fine": {"subsampling": 0, "quality": 100},
    "coarse": {"quality": 2},
}
GUARD = 77


@pytest.fixture(scope="module")
def scratch():
    """Working memory that fits every image here."""
    return make_jpeg_scratch(0, 1 << 10)


def decode(reader, record, size, scratch, region=None):
    """Decode a region of a record: (verdict, pixels). Nothing is written beyond the last vector."""
    y, x, rows, columns = region or (0, 0, *size)
    room = 3 * (rows * columns + LANES)
    out = np.full(room + 64, GUARD, np.uint8)
    file = np.frombuffer(record, np.uint8), len(record), *size
    verdict = reader(*file, y, x, rows, columns, scratch, out, make_table(1), 0)
    assert (out[room:] == GUARD).all()
    return verdict, out[: 3 * rows * columns].reshape(rows, columns, 3)


def noise(height, width):
    """Pixels that take the longest codes and the largest coefficients."""
    return np.random.default_rng(0).integers(0, 2, (height, width, 3), np.uint8) * 255


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_gives_the_file_back_and_its_pixels(kind, scratch):
    for number, size in enumerate([(1, 6), (33, 17), (70, 300), (16, 530)]):
        image = noise(*size) if kind == "fine" else picture(*size, number)
        data = encode(image, **KINDS[kind]) + bytes(number)
        record = pack(data)
        assert give_back(record) == data
        if read_header(record)["colours"] == ONLY_JPEG:  # coefficients of more than 14 bits
            assert kind == "fine"
            continue
        truth = decode_reference(data)
        y, x = size[0] // 3 & ~1, size[1] // 2 & ~1
        rows, columns = (size[0] - y + 1) // 2, (size[1] - x + 1) // 2
        for name, reader in READERS.items():
            verdict, pixels = decode(reader, record, size, scratch)
            assert verdict == DECODED, name
            assert np.array_equal(pixels, truth), name
            verdict, pixels = decode(reader, record, size, scratch, (y, x, rows, columns))
            assert verdict == DECODED, name
            assert np.array_equal(pixels, truth[y : y + rows, x : x + columns]), name


def test_gray_and_cmyk(scratch):
    gray = encode(picture(40, 50, 0)[..., 0])
    record = pack(gray)
    assert give_back(record) == gray
    for reader in READERS.values():
        assert np.array_equal(decode(reader, record, (40, 50), scratch)[1], decode_reference(gray))
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 50, 0)).convert("CMYK").save(buffer, "JPEG")
    cmyk = buffer.getvalue()
    record = pack(cmyk)
    assert give_back(record) == cmyk
    assert decode(decode_record, record, (40, 50), scratch)[0] == NOT_PLAIN


@pytest.mark.parametrize("kind", ["4:2:0", "fine", "progressive"])
def test_readers_agree_with_the_reference(kind):
    image = noise(24, 40) if kind == "fine" else picture(24, 40, 3)
    data = encode(image, **KINDS[kind])
    file = parse_jpeg(data)
    record = pack(data)
    blocks = read_coefficients(file, data)
    assert np.array_equal(unpack_reference(record), blocks)
    assert np.array_equal(unpack(record, file), blocks)
    assert read_header(record)["checksum"] == checksum_reference(record[CHECKED:])


def test_damage_is_noticed_or_harmless(scratch):
    """A wrong byte fails the checksum. With a right one, all readers agree on any bytes."""
    random = np.random.default_rng(0)
    size = 40, 56
    data = encode(picture(*size, 1), subsampling=2)
    record = pack(data)
    decoded = 0
    for n in range(300):
        damaged = bytearray(record)
        at = int(random.integers(len(record) if n % 2 else 500))
        damaged[at] ^= 1 << int(random.integers(8))
        for reader in READERS.values():
            assert decode(reader, bytes(damaged), size, scratch)[0] == NOT_PLAIN
        with pytest.raises(BadRecord):
            give_back(bytes(damaged))
        sealed = with_checksum(bytes(damaged))
        found = [decode(reader, sealed, size, scratch) for reader in READERS.values()]
        assert len({verdict for verdict, _ in found}) == 1
        if found[0][0] == DECODED:
            decoded += 1
            assert all(np.array_equal(pixels, found[0][1]) for _, pixels in found)
        try:
            unpack(sealed, parse_jpeg(data))
            give_back(sealed)
        except BadRecord:
            continue
    assert decoded


def test_a_small_file_that_claims_a_large_image_takes_no_memory():
    """2 kB that claim 65 535 pixels a side would be 25 GB of coefficients."""
    data = bytearray(encode(picture(40, 50, 0)))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = b"\xff" * 4
    with pytest.raises(NotTranscodable, match="fewer data than"):
        pack(bytes(data))
    for size in ((1, 1), (1, 4000), (4000, 1)):  # a flat image, whose blocks take the fewest bits
        flat = np.zeros((*size, 3), np.uint8)
        for progressive in (False, True):
            whole = encode(flat, subsampling=2, progressive=progressive, optimize=True)
            assert give_back(pack(whole)) == whole


def test_what_cannot_be_made_again_is_refused():
    data = encode(picture(40, 50, 0))
    for damaged in (data[: len(data) // 2], b"", data[:200], encode(noise(9, 9), "png")):
        with pytest.raises(NotTranscodable):
            pack(damaged)
    refused = 0
    for seed in range(6):  # a scan ends with ones, unless it ends with a whole byte
        data = encode(picture(40, 50, seed))
        end = parse_jpeg(data).scans[0].end
        try:
            pack(data[: end - 1] + bytes([data[end - 1] & 0xFE]) + data[end:])
        except NotTranscodable as reason:
            refused += "another encoder" in str(reason)
    assert refused
