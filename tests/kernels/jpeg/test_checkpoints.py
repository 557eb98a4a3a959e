"""Decoding from checkpoints: the pixels of libjpeg-turbo for any region, and no access outside its
memory whatever the checkpoints are."""

import bisect
import copy

import numpy as np
import pytest

from benchmarks.correctness.fuzz.guard import GuardedBytes, guarded
from maskco_fast.kernels.compiler.features import has_avx512
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.jpeg.checkpoints import (
    CHECKPOINT_DTYPE,
    Checkpoints,
    as_rows,
    checksum,
    find_checkpoints,
    make_table,
)
from maskco_fast.kernels.jpeg.checksum import _by_tables, checksum_reference
from maskco_fast.kernels.jpeg.chunks import decode_region_by_lanes, decode_region_by_streams
from maskco_fast.kernels.jpeg.decode import (
    DECODED,
    NOT_PLAIN,
    JpegScratch,
    decode_reference,
    decode_region,
    make_jpeg_scratch,
)
from maskco_fast.kernels.jpeg.pixels import LANES
from maskco_fast.kernels.jpeg.planes import plane_bytes
from maskco_fast.kernels.plan import CROP, VIEW_FLOATS
from maskco_fast.kernels.render.jpegs import JpegRenderer
from maskco_fast.kernels.views import ViewConfig
from tests.support.images import encode, picture, pillow_writes_on_request

KERNELS = {"streams": decode_region_by_streams}
if has_avx512():
    KERNELS["lanes"] = decode_region_by_lanes
SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "gray": None}
SIZES = [(1, 1), (8, 8), (17, 33), (50, 7), (40, 127), (33, 128), (24, 129), (9, 300), (130, 257)]


class Guarded:
    """Decodes regions in memory between closed pages."""

    def __init__(self) -> None:
        plain = make_jpeg_scratch(1 << 17, 1 << 10)
        self.scratch = JpegScratch(
            *(array if array.ndim > 1 else guarded(array.size, array.dtype) for array in plain)
        )
        self.file = GuardedBytes(1 << 17)
        self.pixels = guarded(3 * ((1 << 17) + LANES))

    def __call__(self, kernel, data, size, checkpoints, region=None):
        """(verdict, pixels) of the region (y, x, rows, columns), by default the whole image."""
        y, x, rows, columns = region or (0, 0, *size)
        top, left = y & ~1, x & ~1
        down, right = y + rows - top, x + columns - left
        pixels = self.pixels[-3 * (down * right + LANES) :]
        file = self.file(data), len(data), *size
        memory = self.scratch, pixels, make_table(1, checkpoints), 0
        verdict = kernel(*file, top, left, down, right, *memory)
        assert not self.scratch.coefficients.any()
        return verdict, pixels[: 3 * down * right].reshape(down, right, 3)[y - top :, x - left :]


@pytest.fixture(scope="module")
def decode():
    return Guarded()


def jpeg(height, width, sampling, seed=0, **options):
    image = picture(height, width, seed)
    if SAMPLINGS[sampling] is None:
        return encode(image[..., 0], **options)
    return encode(image, subsampling=SAMPLINGS[sampling], **options)


def checkpoints_of(data, rows=None):
    rows = find_checkpoints(data) if rows is None else rows
    return Checkpoints(
        rows, np.array([0, len(rows)]), np.array([len(data)]), np.array([checksum(data)])
    )


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_whole_images_equal_libjpegs(sampling, decode):
    for size in SIZES:
        for quality in (1, 75, 100):
            data = jpeg(*size, sampling, quality, quality=quality, optimize=quality == 75)
            checkpoints = find_checkpoints(data)
            if size[1] < 6 and sampling in ("4:2:2", "4:2:0"):
                assert checkpoints is None
                continue
            for kernel in KERNELS.values():
                verdict, pixels = decode(kernel, data, size, checkpoints_of(data))
                assert verdict == DECODED
                np.testing.assert_array_equal(pixels, decode_reference(data))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_regions_at_every_edge_equal_their_part_of_the_whole(sampling, decode):
    size = 70, 290
    data = jpeg(*size, sampling, quality=90)
    whole, checkpoints = decode_reference(data), checkpoints_of(data)
    random = np.random.default_rng(0)
    edges = [0, 1, 7, 8, 15, 16, 17, 126, 127, 128, 129, 255, 256, 257, 288]
    for x in edges:
        for end in [*edges[1:], 289, 290]:
            if x < end:
                y = int(random.integers(size[0]))
                region = y, x, int(random.integers(1, size[0] - y + 1)), end - x
                part = whole[y : y + region[2], x:end]
                for kernel in KERNELS.values():
                    verdict, pixels = decode(kernel, data, size, checkpoints, region)
                    assert verdict == DECODED
                    np.testing.assert_array_equal(pixels, part)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("region", [(0, 0, 70, 290), (31, 33, 20, 30), (8, 126, 62, 7)])
def test_nothing_beyond_the_planes_is_touched(region, sampling, decode):
    """`planes` ends at a closed page, at the byte at which the region's layout ends."""
    size, (y, x, rows, columns) = (70, 290), region
    data = jpeg(*size, sampling, quality=90)
    whole, checkpoints = decode_reference(data), checkpoints_of(data)
    small, planes = copy.copy(decode), decode.scratch.planes

    def decodes(room, kernel=decode_region):
        small.scratch = decode.scratch._replace(planes=planes[len(planes) - room :])
        verdict, pixels = small(kernel, data, size, checkpoints, region)
        if verdict == DECODED:
            np.testing.assert_array_equal(pixels, whole[y : y + rows, x : x + columns])
        return verdict == DECODED

    least = bisect.bisect_left(range(plane_bytes(columns + x % 2)), True, key=decodes)
    assert all(decodes(least, kernel) for kernel in (decode_region, *KERNELS.values()))


def test_noise_at_full_quality_and_bands_of_rows(decode):
    """Noise has the longest codes. The image has more coefficients than a band holds."""
    size = 330, 390
    noise = np.random.default_rng(0).integers(0, 2, (*size, 3), np.uint8) * 255
    for subsampling in (0, 1, 2):
        data = encode(noise, quality=100 if subsampling else 60, subsampling=subsampling)
        room = make_jpeg_scratch(len(data), size[1])
        band = room._replace(coefficients=np.zeros(40000, np.int16))
        for kernel in KERNELS.values():
            for scratch in (room, band):
                own = Guarded.__new__(Guarded)
                own.scratch, own.file = scratch, GuardedBytes(len(data))
                own.pixels = np.empty(3 * (1 << 18), np.uint8)
                verdict, pixels = own(kernel, data, size, checkpoints_of(data))
                assert verdict == DECODED
                np.testing.assert_array_equal(pixels, decode_reference(data))


def test_the_decoder_finds_the_checkpoints_in_passing(decode):
    for sampling in SAMPLINGS:
        data, size = jpeg(60, 300, sampling), (60, 300)
        table = make_table(1, find=np.array([size]))
        file = decode.file(data), len(data), *size
        memory = decode.scratch, decode.pixels, table, 0
        assert decode_region(*file, 2, 4, 20, 30, *memory) == DECODED
        rows = as_rows(table.found, table.counts[0])
        np.testing.assert_array_equal(rows, find_checkpoints(data))
        assert rows["bit"][0] == 0
        assert not rows["predictors"][0].any()
        assert (np.diff(rows["bit"].astype(np.int64)) > 0).all()


def test_files_without_checkpoints():
    image = picture(64, 48, 0)
    plain = encode(image)
    for data in (
        encode(image, progressive=True),
        encode(image, "png"),
        plain[:-2],
        b"",
    ):
        assert find_checkpoints(data) is None


@pillow_writes_on_request
def test_files_with_restart_intervals_have_no_checkpoints():
    assert find_checkpoints(encode(picture(64, 48, 0), restart_marker_blocks=3)) is None


def test_checkpoints_of_other_bytes_are_not_used(decode):
    data, size = jpeg(64, 300, "4:2:0"), (64, 300)
    good = checkpoints_of(data)
    for wrong in (
        good._replace(lengths=good.lengths + 1),
        good._replace(checksums=good.checksums ^ 1),
        good._replace(begins=np.array([0, 0])),
        good._replace(begins=np.array([1, len(good.rows)])),
        good._replace(begins=np.array([-1, len(good.rows) - 1])),
        good._replace(begins=np.array([0, len(good.rows) + 1])),
        good._replace(begins=np.array([1 << 62, (1 << 62) + len(good.rows)])),
        good._replace(rows=good.rows[:-1], begins=np.array([0, len(good.rows) - 1])),
    ):
        for kernel in KERNELS.values():
            assert decode(kernel, data, size, good)[0] == DECODED
            assert decode(kernel, data, size, wrong)[0] == NOT_PLAIN
            assert decode(kernel, data, (64, 301), good)[0] == NOT_PLAIN


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_damaged_checkpoints_are_safe(sampling, decode):
    """Whatever the checkpoints and the bytes are, nothing is read or written outside."""
    size = 48, 300
    data = jpeg(*size, sampling, quality=95)
    good = find_checkpoints(data)
    assert good is not None
    random = np.random.default_rng(1)
    verdicts = {DECODED: 0, NOT_PLAIN: 0}
    for trial in range(60):
        rows = good.copy()
        at = random.integers(len(rows), size=1 + trial % 3)
        if trial % 3 == 0:
            rows["predictors"][at] = random.integers(-32768, 32768, (len(at), 3))
        elif trial % 3 == 1:
            rows["bit"][at] = random.integers(0, [8 * len(data), 1 << 32][trial % 2], len(at))
        else:
            rows = np.frombuffer(random.bytes(10 * len(rows)), CHECKPOINT_DTYPE)
        damaged = bytearray(data)
        if trial % 4 == 0:
            damaged[random.integers(len(data) // 2, len(data))] = random.integers(256)
        for kernel in KERNELS.values():
            verdict, _ = decode(kernel, bytes(damaged), size, checkpoints_of(damaged, rows))
            verdicts[verdict] += 1
    assert min(verdicts.values()) > 10


def test_a_renderer_falls_back_to_the_whole_scan():
    config, data = ViewConfig.maskco(32), jpeg(90, 300, "4:2:0")
    renderer, rows = JpegRenderer(config), find_checkpoints(data)
    assert rows is not None
    row = np.zeros(renderer._columns, np.float32)
    for v in range(2):
        row[v * VIEW_FLOATS + CROP : v * VIEW_FLOATS + CROP + 4] = 10, 140, 40, 100
    truth = decode_reference(data)[10:50, 140:240]
    rows["bit"][8] += 1
    for checkpoints in (checkpoints_of(data), checkpoints_of(data, rows), None):
        region = renderer.decode(data, 90, 300, row, checkpoints)
        assert region is not None
        pixels, y, x = region
        assert (y, x) == (10, 140)
        np.testing.assert_array_equal(pixels, truth)
    with pytest.raises(InvalidInput, match="1 files need `begins`"):
        renderer.decode(data, 90, 300, row, checkpoints_of(data)._replace(begins=np.zeros(3, int)))


def test_checksums_equal_the_references():
    assert checksum(b"123456789") == checksum_reference(b"123456789") == 0xE3069283
    random = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 100, 3071, 3072, 3073, 6150):
        data = random.bytes(size)
        assert checksum(data) == checksum_reference(data)
    by_tables = _by_tables.py_func  # type: ignore[attr-defined]
    with np.errstate(over="ignore"):
        register = by_tables(np.frombuffer(data, np.uint8), 100, np.uint32(0xFFFFFFFF), 0)
    assert int(register) ^ 0xFFFFFFFF == checksum_reference(data[:100])
