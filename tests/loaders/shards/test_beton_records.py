"""Records of coefficients in .beton files: original bytes, equal batches, damage, --to-jpeg."""

import io
import tarfile

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from maskco_fast.commands.beton import BetonConfig, beton
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.shards.beton import (
    HEADER_DTYPE,
    RECORDS_VERSION,
    VERSION,
    BetonDataset,
)
from maskco_fast.loaders.shards.beton_encode import BetonOptions, estimate
from maskco_fast.loaders.shards.beton_writer import BetonMismatch, check_beton, write_beton
from tests.support.images import encode, picture, skip_without_packages, write_tar

VIEWS = ViewConfig.maskco(48)
FORM = BetonOptions(form="coefficients")


@pytest.fixture
def mixed(tmp_path):
    """A progressive JPEG, a gray one, one of another sampling, and a PNG with a label."""
    image = picture(50, 70, 1)
    cmyk = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(cmyk, "JPEG")
    members = {
        "a.jpg": encode(image, progressive=True),
        "b.jpg": encode(image[..., 0], restart_marker_blocks=4),
        "c.jpg": simplejpeg.encode_jpeg(image, 90, "RGB", "440"),
        "d.png": encode(image, "png"),
        "e.jpg": cmyk.getvalue(),
        "d.cls": b"7",
    }
    return str(write_tar(tmp_path / "mixed.tar", members)), members


def test_records_give_the_original_bytes_back(make_shards, tmp_path):
    dataset = open_dataset(make_shards(2, 20))
    path = str(tmp_path / "all.beton")
    assert write_beton(dataset, path, FORM, threads=1) == []
    mine = open_dataset(path)
    assert mine.records is not None
    assert mine.records.all()
    assert [mine.read(index) for index in range(40)] == [dataset.read(index) for index in range(40)]
    assert mine.fingerprint == dataset.fingerprint
    for name in ("sample_id", "height", "width", "target", "format"):
        assert np.array_equal(mine.samples[name], dataset.samples[name]), name
    expected = estimate(dataset, FORM, 1)
    assert expected.records == 1
    assert expected.bytes == pytest.approx(int(mine.samples["size"].sum()), rel=0.2)


@pytest.mark.parametrize("backend", ["native", "dali", "ffcv", "reference"])
def test_records_train_as_their_shards_do(make_shards, tmp_path, backend):
    skip_without_packages(backend)
    shards = make_shards(2, 12, bad=(3,))
    path = str(tmp_path / "all.beton")
    write_beton(open_dataset(shards), path, FORM, threads=1)
    with make_loader(shards, 8, views=VIEWS, backend=backend, seed=4) as loader:
        truth = list(loader)
    with make_loader(path, 8, views=VIEWS, backend=backend, seed=4) as loader:
        mine = list(loader)
        assert [entry.key for entry in loader.quarantine.entries] == ["000003"]
    for one, other in zip(mine, truth, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.query, other.query)
        assert torch.equal(one.key, other.key)


def test_what_has_no_pixels_of_its_own_stays_as_it_is(mixed, tmp_path):
    shard, _ = mixed
    dataset = open_dataset(shard)
    path = str(tmp_path / "mixed.beton")
    write_beton(dataset, path, FORM, threads=1)
    mine = BetonDataset([path])
    assert mine.records is not None
    assert mine.records.tolist() == [True, True, False, False, True]
    assert np.fromfile(path, HEADER_DTYPE, 1)[0]["version"] == RECORDS_VERSION
    with (
        make_loader(shard, 5, views=VIEWS, dtype=torch.uint8) as truth,
        make_loader(path, 5, views=VIEWS, dtype=torch.uint8, decode="fast") as loader,
    ):
        (one,), (other,) = loader, truth
    assert torch.equal(one.query, other.query)
    odd = write_tar(tmp_path / "odd.tar", {"c.jpg": mixed[1]["c.jpg"]})
    write_beton(open_dataset(odd), tmp_path / "odd.beton", FORM, threads=1)
    assert np.fromfile(tmp_path / "odd.beton", HEADER_DTYPE, 1)[0]["version"] == VERSION


def test_a_damaged_record_is_replaced_and_named(make_shards, tmp_path):
    dataset = open_dataset(make_shards(1, 8))
    path = str(tmp_path / "all.beton")
    write_beton(dataset, path, FORM, threads=1)
    assert check_beton(dataset, path) == 8
    with open(path, "r+b") as file:
        file.seek(int(BetonDataset([path]).samples["offset"][5]) + 900)
        file.write(b"damage")
    with pytest.raises(BetonMismatch, match="000005"):
        check_beton(dataset, path)
    for backend in ("native", "reference"):
        with make_loader(path, 8, views=VIEWS, backend=backend) as loader:
            (batch,) = loader
            (entry,) = loader.quarantine.entries
        assert (entry.key, entry.reason) == ("000005", "record wrong checksum")
        assert len(set(batch.index.tolist())) == 7


def test_the_command_gives_the_images_back(mixed, tmp_path, capsys):
    shard, members = mixed
    path, folder = tmp_path / "mixed.beton", tmp_path / "back"
    assert beton(BetonConfig(shards=(shard,), out=path, form="coefficients", threads=1)) == 0
    told = capsys.readouterr().out
    assert "60% of the images as coefficients" in told
    assert "3  as coefficients; 2 as the file or pixels that they were" in told
    assert beton(BetonConfig(to_jpeg=(path, folder), threads=1)) == 0
    assert "5 images" in capsys.readouterr().out
    with tarfile.open(folder / "mixed.tar") as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        back = {name: file.read() for name, file in files.items() if file is not None}
    assert sorted(back) == sorted(members)
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.cls", "e.jpg"):
        assert back[name] == members[name]
    pixels = np.asarray(Image.open(io.BytesIO(back["d.png"])))
    assert np.array_equal(pixels, picture(50, 70, 1))
    assert open_dataset(str(folder / "mixed.tar")).fingerprint == open_dataset(shard).fingerprint
    with pytest.raises(InvalidInput, match="is there already"):
        beton(BetonConfig(to_jpeg=(path, folder)))
    for wrong in ({}, {"shards": ("x.tar",)}, {"out": path, "to_jpeg": (path, folder)}):
        with pytest.raises(InvalidInput, match="must be given together"):
            BetonConfig(**wrong)
    with pytest.raises(InvalidInput, match="`form` must be one of"):
        BetonOptions(form="else")  # type: ignore[arg-type]
