""".beton files: original bytes, plans and order of the tar shards, resuming, quarantine."""

import itertools
import os
import tarfile

import numpy as np
import pytest
import torch

from maskco_fast.commands.beton import BetonConfig, beton
from maskco_fast.kernels import headers
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import RemoteConfig, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.shards.beton import (
    ALLOCATION_DTYPE,
    HEADER_DTYPE,
    BetonDataset,
    read_beton,
)
from maskco_fast.loaders.shards.beton_encode import BetonOptions, estimate
from maskco_fast.loaders.shards.beton_writer import (
    CHUNK,
    BetonMismatch,
    check_beton,
    write_beton,
)
from tests.support.batches import key_boxes
from tests.support.images import encode, picture, skip_without_packages, write_tar

VIEWS = ViewConfig.maskco(48)


@pytest.fixture
def write(tmp_path):
    """A function that writes a .beton file; returns (shards' dataset, path, samples left out)."""

    def writer(shards, options=None, **settings):
        dataset = open_dataset(shards)
        path = str(tmp_path / "all.beton")
        return dataset, path, write_beton(dataset, path, options, **settings)

    return writer


def test_the_original_bytes_are_kept(make_shards, write):
    dataset, path, left_out = write(make_shards(2, 20))
    assert left_out == []
    mine = open_dataset([path])
    assert isinstance(mine, BetonDataset)
    with tarfile.open(dataset.shards[0].path) as archive:
        member = archive.extractfile("000000.jpg")
        assert member is not None
        first = member.read()
    assert mine.read(0) == first
    assert [mine.read(index) for index in range(40)] == [dataset.read(index) for index in range(40)]
    for name in ("sample_id", "size", "height", "width", "target", "format"):
        assert np.array_equal(mine.samples[name], dataset.samples[name]), name
    assert mine.shard_sizes.tolist() == dataset.shard_sizes.tolist()
    assert mine.fingerprint == dataset.fingerprint
    assert mine.locate(25)[0].key(5) == "000025"
    assert mine.locate(25)[0].path == dataset.locate(25)[0].path


@pytest.mark.parametrize("backend", ["native", "dali", "reference"])
def test_a_beton_trains_as_its_shards_do(make_shards, write, backend):
    skip_without_packages(backend)
    shards = make_shards(2, 12, bad=(3,))
    _, path, _ = write(shards)
    with make_loader(shards, 8, views=VIEWS, backend=backend, seed=4) as loader:
        truth = list(loader)
    with make_loader(path, 8, views=VIEWS, backend=backend, seed=4) as loader:
        mine = list(loader)
        assert [entry.key for entry in loader.quarantine.entries] == ["000003"]
        assert loader.quarantine.entries[0].shard == shards[0]
    for one, other in zip(mine, truth, strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.target, other.target)
        assert torch.equal(key_boxes(one), key_boxes(other))
        assert torch.equal(one.query, other.query)
        assert torch.equal(one.key, other.key)


def test_a_state_goes_from_tar_to_beton(make_shards, write):
    shards = make_shards(2, 12)
    _, path, _ = write(shards)
    with make_loader(shards, 4, views=VIEWS, seed=1) as loader:
        order = [batch.sample_id.tolist() for batch in loader]
        loader.set_epoch(0)
        list(itertools.islice(loader, 2))
        state = loader.state_dict()
    with make_loader(path, 4, views=VIEWS, seed=1) as loader:
        loader.load_state_dict(state)
        assert [batch.sample_id.tolist() for batch in loader] == order[2:]


def test_what_ffcv_cannot_decode_becomes_pixels(tmp_path, write):
    image = picture(40, 56, 1)
    members = {
        "a.png": encode(image, "png"),
        "b.jpg": encode(image),
        "c.gif": encode(image, "gif"),
        "d.jpg": encode(image[..., 0]),
    }
    shard = write_tar(tmp_path / "odd.tar", members)
    _, path, _ = write(shard)
    mine = BetonDataset([path])
    assert mine.samples["format"].tolist() == [
        headers.OTHER,
        headers.JPEG,
        headers.OTHER,
        headers.JPEG,
    ]
    pixels = mine.read(0)
    assert np.array_equal(
        np.frombuffer(pixels[-image.size :], np.uint8).reshape(image.shape), image
    )
    with (
        make_loader(shard, 4, views=VIEWS, backend="reference") as truth,
        make_loader(path, 4, views=VIEWS) as loader,
    ):
        (one,), (other,) = loader, truth
    assert torch.equal(one.sample_id, other.sample_id)
    assert (one.query - other.query).abs().mean() < 0.02


def test_what_the_index_refused_stays_named(tmp_path, make_shards, write):
    shards = make_shards(1, 8)
    whole = encode(picture(60, 60, 3))
    shards.append(
        str(write_tar(tmp_path / "bad.tar", {"x.jpg": b"no image", "y.jpg": b"", "z.jpg": whole}))
    )
    dataset, path, left_out = write(shards)
    assert left_out == []
    mine = BetonDataset([path])
    assert list(mine.bad) == list(dataset.bad)
    assert {entry.key: entry.reason for entry in mine.bad} == {"x": "not an image", "y": "empty"}


def test_shrinking_encodes_anew_and_quarantines(make_shards, write):
    dataset, path, left_out = write(
        make_shards(1, 10, bad=(2,), side=100), BetonOptions(max_side=64)
    )
    assert [(entry.key, entry.found) for entry in left_out] == [("000002", "decode")]
    mine = BetonDataset([path])
    assert len(mine) == 9
    assert mine.bad == left_out
    assert np.maximum(mine.samples["height"], mine.samples["width"]).tolist() == [64] * 9
    ratio = dataset.samples["height"][0] / dataset.samples["width"][0]
    assert mine.samples["height"][0] / mine.samples["width"][0] == pytest.approx(ratio, abs=0.02)
    with make_loader(path, 3, views=VIEWS) as loader:
        assert sum(len(batch) for batch in loader) == 9
        assert len(loader.quarantine) == 1


def test_the_file_does_not_depend_on_the_threads(make_shards, tmp_path):
    dataset = open_dataset(make_shards(2, CHUNK + 9, side=24))
    files = []
    for threads in (1, 3):
        write_beton(dataset, tmp_path / f"{threads}.beton", threads=threads)
        files.append((tmp_path / f"{threads}.beton").read_bytes())
    assert files[0] == files[1]


def test_an_interrupted_writer_goes_on(make_shards, tmp_path, monkeypatch):
    dataset = open_dataset(make_shards(2, 2 * CHUNK, side=24))
    write_beton(dataset, tmp_path / "whole.beton", threads=1)
    real, reads = dataset.read, []

    def failing(index):
        reads.append(index)
        if len(reads) == 2 * CHUNK + 5:
            raise OSError("the disk went away")
        return real(index)

    monkeypatch.setattr(dataset, "read", failing)
    with pytest.raises(OSError, match="the disk went away"):
        write_beton(dataset, tmp_path / "parts.beton", threads=1)
    assert not (tmp_path / "parts.beton").exists()
    with open(tmp_path / "parts.beton.journal", "a") as journal:
        journal.write('{"done": 19')  # a kill within a line
    reads.clear()
    reads.extend([0] * 10**6)
    before = len(reads)
    write_beton(dataset, tmp_path / "parts.beton", threads=1, check=False)
    assert reads[before] == 2 * CHUNK
    assert (tmp_path / "parts.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()
    assert sorted(os.listdir(tmp_path))[-2:] == ["shard-0001.tar", "whole.beton"]
    assert not list(tmp_path.glob("*.journal"))
    assert not list(tmp_path.glob("*.partial"))


def test_a_partial_file_of_other_options_is_not_taken_up(make_shards, tmp_path, monkeypatch):
    dataset = open_dataset(make_shards(1, CHUNK + 2, side=40))
    real = dataset.read

    def failing(index):
        if index == CHUNK:
            raise OSError("stop")
        return real(index)

    monkeypatch.setattr(dataset, "read", failing)
    with pytest.raises(OSError, match="stop"):
        write_beton(dataset, tmp_path / "x.beton", BetonOptions(max_side=20), threads=1)
    monkeypatch.undo()
    write_beton(dataset, tmp_path / "x.beton", threads=1)
    assert BetonDataset([str(tmp_path / "x.beton")]).read(0) == dataset.read(0)


def test_the_check_finds_a_changed_byte(make_shards, write):
    dataset, path, _ = write(make_shards(1, 8))
    assert check_beton(dataset, path) == 8
    offset = int(BetonDataset([path]).samples["offset"][5]) + 300
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(BetonMismatch, match="000005"):
        check_beton(dataset, path)


def test_samples_keep_to_a_page(make_shards, write, monkeypatch):
    monkeypatch.setattr("maskco_fast.loaders.shards.beton_writer.MIN_PAGE_SIZE", 1 << 13)
    _, path, _ = write(make_shards(1, 20))
    page = int(np.fromfile(path, HEADER_DTYPE, 1)[0]["page_size"])
    samples = BetonDataset([path]).samples
    assert samples["size"].sum() > 2 * page
    assert (samples["offset"] // page == (samples["offset"] + samples["size"] - 1) // page).all()


def test_files_that_are_no_betons_are_named(tmp_path, make_shards, write):
    _, path, _ = write(make_shards(1, 4))
    (tmp_path / "text.beton").write_text("not a beton at all, but long enough for a header")
    with pytest.raises(ValueError, match=r"text\.beton is not a \.beton"):
        read_beton(str(tmp_path / "text.beton"))
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 2 * ALLOCATION_DTYPE.itemsize - 40)
    with pytest.raises(ValueError, match=r"all\.beton is cut short"):
        open_dataset([path])
    with pytest.raises(ValueError, match="pass only"):
        open_dataset([path, str(tmp_path / "shard-0000.tar")])


def test_betons_on_servers_and_in_streams_are_refused(make_shards, write):
    _, path, _ = write(make_shards(1, 4))
    with pytest.raises(InvalidInput, match=r"must be on this machine, got https://host/a\.beton"):
        open_dataset("https://user:secret@host/a.beton?token=secret")
    with pytest.raises(InvalidInput, match=r"set remote\.mode to 'cache'"):
        open_dataset(path, remote=RemoteConfig(mode="stream", epoch_samples=4))


def test_the_estimate_is_near_the_file(make_shards, write):
    dataset, _, _ = write(make_shards(2, 20))
    wanted = estimate(dataset, BetonOptions(), 2)
    assert wanted.samples == 40
    assert wanted.bytes == sum(len(dataset.read(index)) for index in range(40))
    shrunk = estimate(dataset, BetonOptions(max_side=32), 2)
    assert 0 < shrunk.bytes < wanted.bytes
    assert shrunk.seconds > 0


def test_the_command(make_shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("maskco_fast.progress.LOG_SECONDS", 0.0)
    out = tmp_path / "out" / "set.beton"
    assert beton(BetonConfig(shards=tuple(make_shards(2, 8, bad=(1,))), out=out, threads=2)) == 0
    told = capsys.readouterr()
    assert "16 samples from 2 shards" in told.out
    assert "MB" in told.out
    assert "16/16 checked" in told.err
    # The damaged image keeps its bytes too; loaders replace it as in the shards.
    assert len(BetonDataset([str(out)])) == 16
    with pytest.raises(ValueError, match=r"must end in \.beton"):
        BetonConfig(shards=("x.tar",), out=tmp_path / "set")
    with pytest.raises(ValueError, match="must be in"):
        BetonOptions(max_side=3)
    with pytest.raises(ValueError, match="must be in"):
        BetonOptions(quality=0)


def test_real_images_survive_byte_for_byte(shared_data, tmp_path):
    dataset = open_dataset([str(shared_data / "tiny20-val-0000.tar")])
    write_beton(dataset, tmp_path / "val.beton", check=False)
    assert check_beton(dataset, tmp_path / "val.beton") == len(dataset)


def test_the_hostile_shard_converts(shared_data, tmp_path):
    dataset = open_dataset([str(shared_data / "hostile-0000.tar")])
    write_beton(dataset, tmp_path / "hostile.beton")
    mine = BetonDataset([str(tmp_path / "hostile.beton")])
    assert len(mine) == len(dataset)
    assert list(mine.bad) == list(dataset.bad)
