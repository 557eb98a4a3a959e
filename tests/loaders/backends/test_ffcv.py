"""The FFCV loader's own parts; the contract is tested in test_conformance."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from maskco_fast.loaders import ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.shards.beton import read_beton, write_directory
from maskco_fast.loaders.shards.beton_writer import write_beton
from maskco_fast.loaders.shards.decode import Decoder
from tests.support.batches import key_boxes
from tests.support.images import encode, picture, write_tar

VIEWS = ViewConfig.maskco(48)

# The module's error says what to install.
ffcv = pytest.importorskip("maskco_fast.loaders.backends.ffcv", exc_type=ImportError)


def run(code):
    """Run code in a Python process that must succeed; return its stderr."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_importing_and_leaving_disturb_nothing(make_shards):
    """With two loaders: thread counts stay, Numba's pool is off, forks work, exits are silent."""
    shards = make_shards(1, 8)
    code = f"""
import os, random, torch, numba, numpy as np
torch.set_num_threads(2)
random.seed(5); np.random.seed(5)
from numba.np.ufunc import parallel
from maskco_fast.loaders import make_loader, ViewConfig
import maskco_fast.loaders.backends.ffcv
assert torch.get_num_threads() == 2
assert not parallel._is_initialized, "Numba's threads were started"
views = ViewConfig.maskco(48)
loaders = [make_loader({shards!r}, 4, views=views, backend="ffcv") for _ in range(2)]
pairs = list(zip(*loaders))
assert len(pairs) == 2 and all(torch.equal(one.query, other.query) for one, other in pairs)
child = os.fork()
if child == 0:
    os._exit(0 if len(list(loaders[0])) == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.get_num_threads() == 2
from ffcv.pipeline import Compiler
assert Compiler.is_enabled
assert random.random() == random.Random(5).random()
assert np.random.rand() == np.random.RandomState(5).rand()
"""
    noise = [
        line
        for line in run(code).splitlines()
        if "Warning" not in line and not line.startswith(" ")
    ]
    assert noise == []


def test_ffcv_reads_our_betons(make_shards, tmp_path):
    dataset = open_dataset(make_shards(2, 8))
    write_beton(dataset, tmp_path / "mine.beton")
    reader = ffcv.Reader(str(tmp_path / "mine.beton"))
    assert list(reader.handlers) == ["image", "label", "sample_id"]
    assert reader.num_samples == 16
    assert np.array_equal(reader.metadata["f2"], dataset.samples["sample_id"])
    assert np.array_equal(reader.metadata["f1"], dataset.samples["target"])
    assert np.array_equal(reader.alloc_table["size"], dataset.samples["size"])
    data = np.fromfile(tmp_path / "mine.beton", np.uint8)
    begin = int(reader.metadata["f0"]["data_ptr"][3])
    assert data[begin : begin + int(reader.alloc_table["size"][3])].tobytes() == dataset.read(3)


def test_we_read_ffcvs_betons(tmp_path):
    """A file in the layout of FFCV's writer: JPEG and raw images, no sample_id."""
    from ffcv.fields import FloatField, IntField, RGBImageField
    from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType, get_metadata_type

    jpeg, raw = np.frombuffer(encode(picture(50, 40, 0)), np.uint8), picture(30, 20, 1)
    fields = {"score": FloatField(), "picture": RGBImageField(), "label": IntField()}
    rows = np.zeros(2, get_metadata_type(list(fields.values())))
    descriptors = np.zeros(3, FieldDescType)
    for descriptor, (name, kind) in zip(descriptors, zip(fields, (0, 2, 1))):
        descriptor["type_id"] = kind
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    begin = HeaderType.itemsize + descriptors.nbytes + rows.nbytes
    rows["f1"][0], rows["f1"][1] = (0, 40, 50, begin), (1, 20, 30, begin + jpeg.size)
    rows["f2"] = 7, 9
    table = np.array([(1, begin + jpeg.size, raw.size), (0, begin, jpeg.size)], ALLOC_TABLE_TYPE)
    header = np.array([(2, 3, 1 << 21, 2, begin + jpeg.size + raw.size)], HeaderType)
    parts = (header, descriptors, rows, jpeg, raw, table)
    (tmp_path / "theirs.beton").write_bytes(b"".join(part.tobytes() for part in parts))
    dataset = open_dataset([str(tmp_path / "theirs.beton")])
    assert dataset.samples["target"].tolist() == [7, 9]
    assert dataset.read(0) == jpeg.tobytes()
    assert np.array_equal(Decoder().decode(dataset.read(1), dataset.samples[1]), raw)
    with make_loader(dataset, 2, views=VIEWS, backend="ffcv") as loader:
        (mine,) = loader
    with make_loader(dataset, 2, views=VIEWS, backend="native") as loader:
        (truth,) = loader
    assert torch.equal(mine.query, truth.query)


def test_training_from_a_beton_is_training_from_its_shards(make_shards, tmp_path):
    shards = make_shards(2, 12, bad=(5,))
    write_beton(open_dataset(shards), tmp_path / "all.beton")
    truth = None
    for backend, source in (
        ("native", shards),
        ("ffcv", shards),
        ("ffcv", str(tmp_path / "all.beton")),
    ):
        with make_loader(source, 6, views=VIEWS, backend=backend, seed=2) as loader:
            batches = list(loader)
            assert [entry.key for entry in loader.quarantine.entries] == ["000005"]
        truth = truth or batches
        for one, other in zip(batches, truth, strict=True):
            assert torch.equal(one.sample_id, other.sample_id)
            assert torch.equal(one.query, other.query)
            assert torch.equal(one.key, other.key)
            assert torch.equal(key_boxes(one), key_boxes(other))


def test_an_error_in_a_thread_reaches_the_consumer(make_shards, monkeypatch):
    loader = make_loader(make_shards(1, 16), 4, views=VIEWS, backend="ffcv")
    real = loader.dataset.read_stored

    def failing(indices, memory):
        if 9 in indices:
            raise RuntimeError("cosmic ray")
        return real(indices, memory)

    monkeypatch.setattr(loader.dataset, "read_stored", failing)
    with pytest.raises(RuntimeError, match="cosmic ray"):
        list(loader)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ffcv")]


def test_status_tells_who_was_replaced(make_shards):
    loader = make_loader(make_shards(1, 8, bad=(2,)), 8, views=VIEWS, backend="ffcv", shuffle=False)
    seen = []
    original = ffcv._Team.execute

    def watching(self, work, status):
        original(self, work, status)
        seen.append(status[:, 0].tolist())

    ffcv._Team.execute = watching
    try:
        list(loader)
    finally:
        ffcv._Team.execute = original
    assert seen == [[0, 0, ffcv.REPLACED, 0, 0, 0, 0, 0]]


def test_memory_of_a_slot_does_not_know_the_largest_image(tmp_path):
    members = {f"{n}.jpg": encode(picture(40, 40, n)) for n in range(7)}
    members["huge.jpg"] = encode(np.zeros((3000, 4000, 3), np.uint8))
    dataset = open_dataset([str(write_tar(tmp_path / "x.tar", members))])
    write_directory(dataset, tmp_path / "x.beton")
    decoder = ffcv.PlanDecoder(lambda work, status: None)
    pipeline = ffcv._Pipeline(ffcv.Reader(str(tmp_path / "x.beton")), 8, 3, decoder)
    buffers = pipeline.graph.allocate_memory(8, 5)
    assert sum(buffer.nbytes for buffer in buffers["operation"].values()) == 5 * 8


def test_a_directory_holds_the_rows(make_shards, tmp_path):
    dataset = open_dataset(make_shards(1, 6))
    write_directory(dataset, tmp_path / "rows.beton")
    reader = ffcv.Reader(str(tmp_path / "rows.beton"))
    assert reader.metadata["f0"]["height"].tolist() == dataset.samples["height"].tolist()
    assert reader.metadata["f0"]["width"].tolist() == dataset.samples["width"].tolist()
    with pytest.raises(ValueError, match="allocation table"):
        read_beton(str(tmp_path / "rows.beton"))
