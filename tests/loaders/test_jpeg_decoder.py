"""`decode_jpeg`: libjpeg-turbo's pixels, whole and by region, reasons for what it refuses, and no
hold on the GIL."""

import io
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskco_fast
from maskco_fast import decode_jpeg
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import jpeg_decoder
from tests.support.images import encode, picture

SIZE = (75, 101)
WAYS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "restart markers": {"restart_marker_blocks": 3},
    "progressive": {"progressive": True},
    "gray": {},
    "CMYK": {},
}
LEFT_TO_A_LIBRARY = ("progressive", "CMYK")


def jpeg(way: str, height: int = SIZE[0], width: int = SIZE[1]) -> bytes:
    """A JPEG of a picture, encoded in one of the `WAYS`."""
    mode = {"gray": "L", "CMYK": "CMYK"}.get(way, "RGB")
    buffer = io.BytesIO()
    image = Image.fromarray(picture(*SIZE, 1)).resize((width, height)).convert(mode)
    image.save(buffer, "JPEG", quality=90, **WAYS[way])
    return buffer.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("way", WAYS)
def test_whole_images_and_regions_equal_pillows(way, monkeypatch):
    by_library = []
    decode = jpeg_decoder._decode_by_library

    def noted(*given):
        by_library.append(given)
        return decode(*given)

    monkeypatch.setattr(jpeg_decoder, "_decode_by_library", noted)
    data = jpeg(way)
    whole = decode_jpeg(data)
    # Libraries convert CMYK to RGB, which libjpeg-turbo does not, with different rounding.
    assert np.abs(whole.astype(int) - pillow(data)).max() <= (way == "CMYK")
    random = np.random.default_rng(0)
    for _ in range(40):
        y, x = (int(random.integers(0, side)) for side in SIZE)
        rows, columns = (int(random.integers(1, s - at + 1)) for s, at in zip(SIZE, (y, x)))
        image = decode_jpeg(data, (y, x, rows, columns))
        np.testing.assert_array_equal(image, whole[y : y + rows, x : x + columns])
        assert image.flags.c_contiguous
        assert image.flags.writeable
    assert len(by_library) == (41 if way in LEFT_TO_A_LIBRARY else 0)


def test_every_object_with_bytes_is_taken_and_large_images_too():
    data = jpeg("4:2:0")
    expected = pillow(data)
    array = np.frombuffer(data, np.uint8)
    for given in (bytearray(data), memoryview(data), array, array.copy()):
        np.testing.assert_array_equal(maskco_fast.decode_jpeg(given), expected)
    large = jpeg("4:2:0", 1400, 3000)  # beyond what a thread keeps memory for
    np.testing.assert_array_equal(
        decode_jpeg(large, (1201, 7, 99, 2900)), pillow(large)[1201:1300, 7:2907]
    )
    narrow = jpeg("4:2:0", 40, 3)
    np.testing.assert_array_equal(decode_jpeg(narrow), pillow(narrow))


def test_the_orientation_is_ignored_and_an_image_is_the_callers_own():
    image = Image.fromarray(picture(*SIZE, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    first, second = decode_jpeg(buffer.getvalue()), decode_jpeg(buffer.getvalue())
    assert first.shape == (*SIZE, 3)
    first[:] = 0
    assert second.any()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes that begin with nothing"),
        (encode(picture(8, 8, 0), "png"), "begin with 89 50 4e"),
        ("photo.jpg", r"got str\. Read a file with"),
        (np.zeros((4, 4), np.uint8), r"one-dimensional uint8 array, got uint8 \(4, 4\)"),
        (np.zeros(8, np.uint8)[::2], "contiguous bytes"),
        (jpeg("4:2:0")[:900], r"truncated \(.*[Pp]remature end"),
        (jpeg("progressive")[:900], "truncated"),
        (b"\xff\xd8\xff\xe0 nothing more", "not an image"),
        (
            jpeg("4:2:0").replace(b"\0\x11\x08\0\x4b\0\x65", b"\0\x11\x08\xff\xff\xff\xff"),
            "too many pixels",
        ),
    ],
)
def test_errors_name_the_reason(data, reason):
    with pytest.raises(InvalidInput, match=reason):
        decode_jpeg(data)


@pytest.mark.parametrize("way", ["4:2:0", "progressive"])
@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((0, 0, 76, 101), r"height 75 and width 101.*\(0, 0, 76, 101\)"),
        ((0, -1, 5, 5), "inside"),
        ((3, 3, 0, 5), "hold a pixel"),
        ((0, 0, 1), "four whole numbers"),
        ((0, 0, 1.5, 1), "four whole numbers"),
        (7, "four whole numbers"),
    ],
)
def test_a_region_outside_the_image_is_refused(way, region, reason):
    with pytest.raises(InvalidInput, match=reason):
        decode_jpeg(jpeg(way), region)


def test_damage_outside_the_region_is_an_error_too():
    data = jpeg("4:2:0")
    with pytest.raises(InvalidInput, match="truncated"):
        decode_jpeg(data[:-200], (0, 0, 16, 16))


def test_other_threads_run_while_an_image_is_decoded():
    """Some tick of the main thread falls into the middle of some call."""
    data = jpeg("4:2:0", 1500, 2000)
    decode_jpeg(data)

    def ticks_meanwhile() -> int:
        span, ticks = [], []

        def decode() -> None:
            span.append(time.perf_counter())
            decode_jpeg(data)
            span.append(time.perf_counter())

        thread = threading.Thread(target=decode)
        thread.start()
        while thread.is_alive():
            time.sleep(0.001)
            ticks.append(time.perf_counter())
        margin = (span[1] - span[0]) / 4
        return sum(span[0] + margin < tick < span[1] - margin for tick in ticks)

    assert any(ticks_meanwhile() for _ in range(20))
