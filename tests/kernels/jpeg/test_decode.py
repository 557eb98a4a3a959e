"""The JPEG decoder against libjpeg-turbo: equal pixels or NOT_PLAIN, for any sampling, size and
damage."""

import numpy as np
import pytest

from maskco_fast.kernels.jpeg.checkpoints import make_table
from maskco_fast.kernels.jpeg.decode import (
    DECODED,
    NOT_PLAIN,
    decode_reference,
    decode_region,
    make_jpeg_scratch,
)
from maskco_fast.kernels.jpeg.pixels import LANES
from tests.support.images import encode, picture

SIZES = [
    (1, 1),
    (1, 50),
    (50, 1),
    (5, 7),
    (8, 8),
    (16, 16),
    (17, 33),
    (33, 6),
    (64, 64),
    (101, 77),
    (203, 187),
]
SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "gray": None}
GUARD = 77


@pytest.fixture(scope="module")
def scratch():
    """Working memory that fits every image here."""
    return make_jpeg_scratch(1 << 18, 1 << 8)


def decode(data, size, scratch, region=None):
    """Decode `region` (y, x, rows, columns), by default the whole image: (verdict, pixels).

    Checks that nothing is written beyond the pixels and the last vector.
    """
    y, x, rows, columns = region or (0, 0, *size)
    room = 3 * (rows * columns + LANES)
    out = np.full(room + 64, GUARD, np.uint8)
    height, width = size
    file = np.frombuffer(data, np.uint8), len(data), height, width
    verdict = decode_region(*file, y, x, rows, columns, scratch, out, make_table(1), 0)
    assert (out[room:] == GUARD).all()
    return verdict, out[: 3 * rows * columns].reshape(rows, columns, 3)


def jpeg(height, width, sampling, seed=0, **options):
    """A JPEG of a generated picture; `options` go to Pillow's encoder."""
    image = picture(height, width, seed)
    if SAMPLINGS[sampling] is None:
        return encode(image[..., 0], **options)
    return encode(image, subsampling=SAMPLINGS[sampling], **options)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", SIZES)
def test_whole_images_equal_libjpegs(size, sampling, scratch):
    for quality in (1, 30, 75, 95, 100):
        for options in ({}, {"optimize": True}, {"restart_marker_blocks": 3}):
            data = jpeg(size[0], size[1], sampling, quality, quality=quality, **options)
            verdict, pixels = decode(data, size, scratch)
            if size[1] < 6 and sampling in ("4:2:2", "4:2:0"):
                assert verdict == NOT_PLAIN  # libjpeg upsamples narrow images by another rule
                continue
            assert verdict == DECODED
            np.testing.assert_array_equal(pixels, decode_reference(data))


def test_noise_at_full_quality_equals_libjpegs(scratch):
    """Noise yields the longest codes, the largest coefficients, and colours outside 0..255."""
    image = np.random.default_rng(0).integers(0, 2, (90, 120, 3), np.uint8) * 255
    for subsampling in (0, 1, 2):
        data = encode(image, quality=100, subsampling=subsampling)
        verdict, pixels = decode(data, (90, 120), scratch)
        assert verdict == DECODED
        np.testing.assert_array_equal(pixels, decode_reference(data))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_regions_equal_their_part_of_the_whole(sampling, scratch):
    random, size = np.random.default_rng(0), (101, 147)
    data = jpeg(*size, sampling, quality=90)
    whole = decode_reference(data)
    for _ in range(100):
        y, x = (2 * random.integers(0, (side + 1) // 2) for side in size)
        rows, columns = random.integers(1, size[0] - y + 1), random.integers(1, size[1] - x + 1)
        verdict, pixels = decode(data, size, scratch, (y, x, rows, columns))
        assert verdict == DECODED
        np.testing.assert_array_equal(pixels, whole[y : y + rows, x : x + columns])


def test_damage_below_a_region_is_seen(scratch):
    data, size = jpeg(160, 96, "4:2:0", quality=90), (160, 96)
    cut = data[: len(data) * 3 // 4] + b"\xff\xd9"
    assert decode(data, size, scratch, (20, 0, 40, 90))[0] == DECODED
    assert decode(cut, size, scratch, (20, 0, 40, 90))[0] == NOT_PLAIN


def test_what_is_not_plain_is_left(scratch):
    image = picture(64, 48, 0)
    plain = encode(image)
    for data in (
        encode(image, progressive=True),
        encode(np.dstack([image, image[..., :1]]).view(np.uint8), "png"),
        encode(image, "png"),
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        plain[:-2],  # no end of image
        plain[: len(plain) // 2],
    ):
        assert decode(data, (64, 48), scratch)[0] == NOT_PLAIN
    assert (
        decode(plain, (48, 64), scratch)[0] == NOT_PLAIN
    )  # not the size that the crops were drawn for
    assert decode(plain + b"trailing", (64, 48), scratch)[0] == DECODED
    small = make_jpeg_scratch(len(plain) - 1, 48)
    assert decode(plain, (64, 48), small)[0] == NOT_PLAIN


def test_every_cut_is_left_to_the_library(scratch):
    data = jpeg(40, 30, "4:2:0", quality=60)
    for length in range(len(data) - 2):
        assert decode(data[:length], (40, 30), scratch)[0] == NOT_PLAIN


def test_damage_is_never_passed_over(scratch):
    """A damaged file that is DECODED here decodes in libjpeg-turbo without a warning, to the same
    pixels."""
    random, decoded = np.random.default_rng(0), 0
    for seed in range(30):
        height, width = random.integers(6, 60, 2).tolist()
        options = {"restart_marker_blocks": 3} if seed % 3 == 0 else {}
        whole = jpeg(
            height, width, list(SAMPLINGS)[seed % 4], seed, quality=10 + 3 * seed, **options
        )
        for trial in range(40):
            data = bytearray(whole)
            for _ in range(1 + trial % 2):
                reach = len(data) if trial % 4 < 2 else min(700, len(data))
                data[random.integers(reach)] = random.integers(256)
            verdict, pixels = decode(bytes(data), (height, width), scratch)
            if verdict == DECODED:
                np.testing.assert_array_equal(pixels, decode_reference(bytes(data)))
                decoded += 1
    assert 100 < decoded < 1100


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("optimize", [False, True])
def test_coefficients_that_no_encoder_writes_equal_libjpegs_or_are_left(
    sampling, optimize, scratch
):
    """Larger quantisers than those of the encoder; beyond 14 bits decoders overflow differently."""
    size, verdicts = (56, 72), set()
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for image in (picture(*size, 0), noise):
        image = image[..., 0] if SAMPLINGS[sampling] is None else image
        subsampling = SAMPLINGS[sampling] or 0  # ignored for gray
        data = encode(image, quality=97, optimize=optimize, subsampling=subsampling)
        for factor in (1, 3, 10, 30, 100, 255):
            changed = bytearray(data)
            at = data.find(b"\xff\xdb")
            while at >= 0:
                for place in range(at + 5, at + 69):
                    changed[place] = min(changed[place] * factor, 255)
                at = data.find(b"\xff\xdb", at + 69)
            verdict, pixels = decode(bytes(changed), size, scratch)
            verdicts.add(verdict)
            if verdict == DECODED:
                np.testing.assert_array_equal(pixels, decode_reference(bytes(changed)))
    assert verdicts == {DECODED, NOT_PLAIN}


def test_quantisers_of_zero_and_odd_markers_are_left(scratch):
    data = jpeg(64, 48, "4:2:0", quality=90)
    table = data.index(b"\xff\xdb")
    assert decode(data, (64, 48), scratch)[0] == DECODED
    zero = data[: table + 9] + b"\0" + data[table + 10 :]
    assert decode(zero, (64, 48), scratch)[0] == NOT_PLAIN
    for marker in (0xC8, 0xCC, 0xDC, 0xDE, 0xDF, *range(0xF0, 0xFE)):
        odd = data[:2] + bytes([0xFF, marker, 0, 4, 0, 0]) + data[2:]
        assert decode(odd, (64, 48), scratch)[0] == NOT_PLAIN, hex(marker)
