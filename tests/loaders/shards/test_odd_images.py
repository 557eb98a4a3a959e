"""Odd and damaged images: each is used or named, no program runs, and all loaders agree."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from maskco_fast.kernels import headers
from maskco_fast.loaders import EmptyDataset, View, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.shards import decode
from maskco_fast.loaders.shards.build_index import index_image
from maskco_fast.loaders.shards.decode import BadImage, Decoder, decode_pillow, image_size
from maskco_fast.loaders.shards.jpeg_segments import without_metadata
from tests.support.images import encode, picture, pillow_writes_on_request, write_tar

PLAIN = encode(picture(61, 83, 0), quality=90)
PLAIN_VIEW = View(jitter_probability=0.0, gray_probability=0.0, blur_probability=0.0)
VIEWS = ViewConfig(views=(PLAIN_VIEW, PLAIN_VIEW), size=48)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def behind_soi(piece: bytes, data: bytes = PLAIN) -> bytes:
    """The JPEG with more bytes before its first segment."""
    return data[:2] + piece + data[2:]


def with_quantisers(factor: int) -> bytes:
    """The JPEG with larger quantisers: coefficients that no encoder writes."""
    data = bytearray(PLAIN)
    at = data.find(b"\xff\xdb")
    while at >= 0:
        for place in range(at + 5, at + 69):
            data[place] = min(data[place] * factor, 255)
        at = data.find(b"\xff\xdb", at + 69)
    return bytes(data)


def png(height: int, width: int) -> bytes:
    """A PNG of little data that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def saved(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 52, 1)).save(buffer, form)
    return buffer.getvalue()


METADATA = {
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "empty APP0": segment(0xE0, b""),
    "short Adobe": segment(0xEE, b"Adobe"),
    "short ICC": segment(0xE2, b"ICC_PROFILE\0"),
    "short MPF": segment(0xE2, b"MPF\0"),
    "odd Exif": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "short Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "Photoshop without a name": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
    "comment": segment(0xFE, b""),
}
"""Segments that say nothing about the pixels."""
MARKERS = {f"marker {marker:02x}": segment(marker, b"abcd") for marker in range(0xF0, 0xFE)}
MARKERS |= {
    f"marker {marker:02x}": segment(marker, content)
    for marker, content in (
        (0xDC, b"\0\x3d"),
        (0xDE, PLAIN[PLAIN.index(b"\xff\xc0") + 4 :][:15]),
        (0xDF, b"\x11"),
        (0xC8, b"ab"),
        (0xCC, b"\0\0"),
        (0x02, b"ab"),
        (0xBF, b"ab"),
    )
}
MARKERS |= {"TEM": b"\xff\x01", "RST": b"\xff\xd3", "fill": b"\xff\xff", "rubbish": b"ab"}
"""Segments that decoders treat differently."""
SCAN = PLAIN.index(b"\xff\xda") + 14
JPEGS = {
    "plain": PLAIN,
    "progressive": encode(picture(61, 83, 0), progressive=True),
    "16-bit quantisers": encode(picture(61, 83, 0), quality=2),
    "no end": PLAIN[:-2],
    "bytes missing at the end": PLAIN[:-32] + b"\xff\xd9",
    "bytes missing in the middle": PLAIN[: SCAN + 400] + PLAIN[SCAN + 440 :],
    "restart marker in the scan": PLAIN[: SCAN + 400] + b"\xff\xd0" + PLAIN[SCAN + 400 :],
    "bad code": PLAIN[: SCAN + 400] + b"\xff\0" * 4 + PLAIN[SCAN + 408 :],
    "bytes behind the end": PLAIN + b"behind",
    "another behind it": PLAIN + PLAIN,
    **{f"quantisers times {factor}": with_quantisers(factor) for factor in (2, 9, 40, 255)},
    **{name: behind_soi(piece) for name, piece in (METADATA | MARKERS).items()},
}


@pytest.fixture(scope="module")
def odd_shard(tmp_path_factory):
    """A shard of all the odd JPEGs, a PNG and formats that are not read."""
    members = {f"{name}.jpg": data for name, data in JPEGS.items()}
    members |= {f"{name}.jpg": saved(name) for name in ("PNG", "WEBP", "DDS", "ICO", "EPS", "SGI")}
    path = tmp_path_factory.mktemp("odd") / "odd.tar"
    return str(write_tar(path, members)), len(members)


@pytest.mark.parametrize("how", ["exact", "fast"])
def test_loaders_use_the_same_images_with_the_same_pixels(backend, how, odd_shard):
    if how == "fast" and backend not in ("native", "ffcv"):
        pytest.skip("this loader has no fast decoding")
    shard, count = odd_shard
    batches = {}
    for name, decoding in (("reference", "exact"), (backend, how)):
        with make_loader(
            shard,
            8,
            views=VIEWS,
            backend=name,
            decode=decoding,
            dtype=torch.uint8,
            shuffle=False,
            drop_last=False,
            max_bad_share=1.0,
        ) as loader:
            batches[name] = list(loader)
            used = sum(len(batch) for batch in batches[name])
            assert used + len(loader.quarantine) == count
            assert used > len(METADATA) + 8
    for mine, truth in zip(batches[backend], batches["reference"], strict=True):
        assert mine.sample_id.tolist() == truth.sample_id.tolist()
        for view, expected in zip(mine.views, truth.views):
            assert (view.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("name", METADATA)
def test_damaged_metadata_does_not_matter(name):
    data = behind_soi(METADATA[name])
    np.testing.assert_array_equal(decode_pillow(data), decode_pillow(PLAIN))
    assert index_image("s", "0.jpg", data, -1).samples["format"][0] == headers.JPEG
    assert len(without_metadata(data)) == len(without_metadata(PLAIN))


@pytest.mark.parametrize("name", MARKERS)
def test_unordinary_segments_are_judged_by_pillow(name):
    data = behind_soi(MARKERS[name])
    index = index_image("s", "0.jpg", data, -1)
    if name != "fill":
        assert without_metadata(data) == data
        assert headers.JPEG not in index.samples["format"]
    if len(index.samples):
        pixels = Decoder().decode(data, index.samples[0])
        np.testing.assert_array_equal(pixels, decode_pillow(data))
    else:
        with pytest.raises(BadImage, match=index.bad[0].reason):
            decode_pillow(data)


@pillow_writes_on_request
def test_colours_stay_those_of_the_segments_that_say_so():
    """An Adobe segment with transform 0 means RGB, and must not be taken for metadata."""
    rgb = encode(picture(61, 83, 0), quality=90, subsampling=0, keep_rgb=True)
    assert b"Adobe" in without_metadata(rgb)
    with Image.open(io.BytesIO(rgb)) as image:
        np.testing.assert_array_equal(decode_pillow(rgb), np.asarray(image.convert("RGB")))


def test_a_cut_jpeg_with_a_whole_thumbnail_is_truncated():
    thumbnail = encode(picture(12, 16, 1))
    whole = behind_soi(segment(0xE1, b"Exif\0\0" + thumbnail))
    assert len(index_image("s", "0.jpg", whole, -1).samples) == 1
    for cut in (len(whole) - 200, len(thumbnail) + 40):
        (entry,) = index_image("s", "0.jpg", whole[:cut], -1).bad
        assert entry.reason in ("truncated", "not an image")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((80_000_000, 1), "side above 65535 pixels"),
        ((1, 80_000_000), "side above 65535 pixels"),
        ((65_536, 1), "side above 65535 pixels"),
        ((30_000, 30_000), "too many pixels"),
        ((2**31 - 1, 2**31 - 1), "too many pixels"),
    ],
)
def test_sizes_that_take_too_much_memory_are_refused(size, reason):
    data = png(*size)
    assert len(data) < 1200
    (entry,) = index_image("s", "0.png", data, -1).bad
    assert entry.reason == reason
    for refuse in (decode_pillow, image_size):
        with pytest.raises(BadImage, match=reason):
            refuse(data)


def test_a_header_that_lies_about_the_size_is_refused():
    sample = index_image("s", "0.jpg", PLAIN, -1).samples[0]
    sample["height"] = sample["width"] = 60_000
    for fast in (False, True):
        with pytest.raises(BadImage, match="size differs"):
            Decoder(fast=fast).decode_scaled(PLAIN, sample, 8)


def test_endless_scans_are_refused():
    progressive = JPEGS["progressive"]
    at = progressive.rindex(b"\xff\xda")
    scan = progressive[at:-2]
    bomb = progressive[:-2] + scan * 600 + b"\xff\xd9"
    sample = index_image("s", "0.jpg", bomb, -1).samples[0]
    for refuse in (decode_pillow, lambda data: Decoder().decode(data, sample)):
        with pytest.raises(BadImage, match="too many scans"):
            refuse(bomb)


@pytest.mark.parametrize(
    "form", ["DDS", "ICO", "EPS", "PCX", "SGI", "TGA", "SPIDER", "PDF", "ICNS"]
)
def test_formats_that_are_not_read_start_nothing(form, monkeypatch):
    try:
        data = saved(form)
    except (KeyError, OSError, ValueError) as error:
        pytest.skip(f"this Pillow does not write {form}: {error}")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program is started"))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("started"))
    (entry,) = index_image("s", "0.jpg", data, -1).bad
    assert entry.reason == "not an image"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_with_a_flipped_bit_decodes_or_is_named():
    whole = saved("AVIF")
    assert decode_pillow(whole).shape == (40, 52, 3)
    for at in range(0, len(whole), 7):
        data = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
        index = index_image("s", "0.jpg", data, -1)
        assert len(index.samples) + len(index.bad) == 1
        for sample in index.samples:
            try:
                Decoder().decode(data, sample)
            except BadImage:
                continue


@pytest.mark.parametrize(
    "error", [RuntimeError, NotImplementedError, AttributeError, ZeroDivisionError, MemoryError]
)
def test_whatever_pillow_raises_is_a_bad_image(error, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise error("damaged")

    gif = saved("GIF")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(BadImage, match="does not decode"):
        decode_pillow(gif)
    monkeypatch.setattr(decode.Image, "open", fail)
    with pytest.raises(BadImage, match="not an image"):
        image_size(gif)


def test_a_shard_without_a_usable_image_says_why(tmp_path):
    shard = write_tar(tmp_path / "s.tar", {"0.jpg": saved("ICO"), "1.png": png(1, 80_000_000)})
    with pytest.raises(EmptyDataset, match="not an image, side above 65535 pixels"):
        open_dataset(str(shard))


def test_fast_decoding_is_exact_where_it_does_not_scale():
    for name in ("progressive", "plain"):
        sample = index_image("s", "0.jpg", JPEGS[name], -1).samples[0]
        fast = Decoder(fast=True).decode_scaled(JPEGS[name], sample, 1)
        np.testing.assert_array_equal(fast.image, decode_pillow(JPEGS[name]))
