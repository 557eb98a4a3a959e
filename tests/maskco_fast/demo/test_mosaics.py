"""The study's mosaics: each image as often in each corner, classes as the set's name says, and
equal bytes from equal seeds."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from maskco_fast.demo import mosaics
from maskco_fast.demo.mosaics import StudyConfig, study
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import open_dataset

SIDE = 16


@pytest.mark.parametrize(
    "counts", [(5, 5, 5, 5), (4, 9, 6, 8, 9), (30,) * 20], ids=["quarters", "uneven", "twenty"]
)
def test_every_image_is_once_in_each_corner(counts):
    target = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    for name, draw in mosaics.MOSAICS.items():
        rows = draw(target, np.random.default_rng(2))
        assert rows.shape == (len(target), 4)
        for corner in rows.T:
            assert np.array_equal(np.sort(corner), np.arange(len(target)))
        assert all(len(set(row)) == 4 for row in rows.tolist())
        assert {len(set(row)) for row in target[rows].tolist()} == {1 if name == "same" else 4}


def test_every_class_meets_every_other_one():
    target = np.repeat(np.arange(8), 40)
    classes = target[mosaics.mixed_classes(target, np.random.default_rng(0))]
    met = np.zeros((8, 8), int)
    for row in classes:
        met[np.ix_(row, row)] += 1
    others = met[~np.eye(8, dtype=bool)]
    expected = 160 * 3 / 7  # of the 160 tiles of a class, with 3 others each, of 7 classes
    assert 0.7 * expected < others.min() < others.max() < 1.3 * expected


@pytest.fixture
def options(make_shards, tmp_path) -> StudyConfig:
    """Two shards of twelve images, of four classes in turn."""
    shards = tuple(make_shards(2, 12))
    return StudyConfig(shards=shards, out=tmp_path / "out", tile=SIDE, shard_samples=16)


def test_the_shards_hold_the_tiles_that_they_name(options):
    assert study(options) == 0
    source = open_dataset(options.shards, labels="cls")
    positions = {source.locate(n)[0].key(source.locate(n)[1]): n for n in range(24)}
    for name in ("same", "mixed"):
        paths = sorted(options.out.glob(f"{name}-*.tar"))
        assert [path.name for path in paths] == [
            f"{name}-{shard:04d}-of-0002.tar" for shard in range(2)
        ]
        found = open_dataset([str(path) for path in paths], fields=("json", "cls"))
        assert len(found) == 24
        used = []
        for n in range(len(found)):
            document, label = found.read_fields(n)
            described = json.loads(document or b"")
            used += described["keys"]
            classes = [str(int(key) % 4) for key in described["keys"]]
            assert described["classes"] == classes
            assert label == (classes[0].encode() if name == "same" else b"-1")
            pixels = np.asarray(Image.open(io.BytesIO(found.read(n))).convert("RGB"), np.int16)
            for corner, key in enumerate(described["keys"]):
                y, x = corner // 2 * SIDE, corner % 2 * SIDE
                tile = np.asarray(mosaics.read_tile(source, positions[key], SIDE), np.int16)
                assert np.abs(pixels[y : y + SIDE, x : x + SIDE] - tile).mean() < 4
        assert {used.count(key) for key in positions} == {4}
    labels = open_dataset([str(options.out / "same-*.tar")], labels="cls").classes
    assert labels is not None
    assert len(labels) == 4


def test_the_bytes_follow_from_the_seed(options):
    def written(**changes: object) -> list[bytes]:
        changed = dataclasses.replace(options, **changes)
        study(changed)
        return [path.read_bytes() for path in sorted(changed.out.glob("*.tar"))]

    first = written()
    again = written(out=options.out.with_name("again"))
    assert first == again
    other = written(out=options.out.with_name("other"), seed=1)
    assert not set(first) & set(other)


def test_images_that_make_no_mosaics_are_named(options, make_shards):
    few = make_shards(1, 12)
    with pytest.raises(InvalidInput, match="all 12, got 3 of class '0'"):
        study(dataclasses.replace(options, shards=tuple(few)))
    with pytest.raises(InvalidInput, match="`quality` must be in"):
        dataclasses.replace(options, quality=0)
    bad = make_shards(1, 20, bad=(7,))
    with pytest.raises(InvalidInput, match=r"000007 in .*shard-0000\.tar must be an image"):
        study(dataclasses.replace(options, shards=tuple(bad)))
