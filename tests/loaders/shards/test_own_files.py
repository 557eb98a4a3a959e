"""Index files and .beton files that are damaged or hostile: rebuilt, or refused by name."""

import io
import warnings
import zipfile

import numpy as np
import pytest

from maskco_fast.kernels.errors import MaskCoError
from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.shards.beton import HEADER_DTYPE, IMAGE_DTYPE, BetonDataset
from maskco_fast.loaders.shards.beton_writer import write_beton
from maskco_fast.loaders.shards.index_cache import load_or_index
from maskco_fast.loaders.system.arrays import read_arrays


@pytest.fixture
def shard(make_shards):
    return make_shards(1, 6)[0]


def test_a_damaged_index_file_is_rebuilt_wherever_the_damage_is(shard, tmp_path):
    folder = tmp_path / "index"
    truth = load_or_index(shard, folder)
    (file,) = folder.iterdir()
    sound = file.read_bytes()
    random = np.random.default_rng(0)
    rebuilt = 0
    for number in range(150):
        damaged = bytearray(sound)
        if number % 5 == 0:
            del damaged[int(random.integers(len(damaged))) :]
        else:
            damaged[int(random.integers(len(damaged)))] ^= int(random.integers(1, 256))
        file.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            index = load_or_index(shard, folder)
        rebuilt += bool(caught)
        assert index.samples.tobytes() == truth.samples.tobytes()
        assert index.names.tolist() == truth.names.tolist()
    assert rebuilt > 100


def npz(compression: int = zipfile.ZIP_STORED, shape: tuple[int, ...] = (4,)) -> bytes:
    """An .npz file with an array of 4 int64 that claims `shape`."""
    array = io.BytesIO()
    facts = {"descr": "<i8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(array, facts)  # type: ignore[arg-type]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a.npy", array.getvalue() + np.arange(4).tobytes())
    return buffer.getvalue()


def test_arrays_that_claim_more_than_the_file_holds_are_refused():
    assert read_arrays(io.BytesIO(npz()), ("a", "b"))["a"].tolist() == [0, 1, 2, 3]
    for hostile in (npz(shape=(10**15,)), npz(shape=(2**62, 4)), npz(zipfile.ZIP_DEFLATED), b"PK"):
        with pytest.raises(ValueError, match="damaged"):
            read_arrays(io.BytesIO(hostile), ("a",))


@pytest.fixture
def beton(shard, tmp_path):
    write_beton(open_dataset(shard), tmp_path / "s.beton")
    return tmp_path / "s.beton"


def change(path, dtype, at, **values):
    """Set fields of the record at an offset of a file."""
    data = bytearray(path.read_bytes())
    record = np.frombuffer(data, dtype, 1, at)
    for name, value in values.items():
        record[name] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"height": 65535, "width": 65535}, "too many pixels"),
        ({"height": 0}, "empty"),
        ({"mode": 1}, "size differs from the header"),
    ],
)
def test_an_impossible_image_of_a_beton_is_named(beton, values, reason):
    from maskco_fast.loaders.shards.beton import HEAD_SIZE

    change(beton, IMAGE_DTYPE, HEAD_SIZE, **values)
    dataset = BetonDataset([str(beton)])
    assert [(entry.key, entry.reason) for entry in dataset.bad] == [("000000", reason)]
    assert len(dataset) == 5


@pytest.mark.parametrize("field", ["num_samples", "num_fields", "alloc_table_ptr"])
def test_a_beton_that_claims_too_much_is_refused(beton, field):
    largest = np.iinfo(HEADER_DTYPE[field]).max
    change(beton, HEADER_DTYPE, 0, **{field: largest})
    with pytest.raises(MaskCoError, match=r"s\.beton.*write it (again )?with `maskco-fast beton`"):
        BetonDataset([str(beton)])


def test_a_damaged_beton_is_refused_or_its_images_are_within_the_file(beton):
    sound = beton.read_bytes()
    filled = [at for at in range(len(sound)) if sound[at]]
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(sound)
        damaged[int(random.choice(filled))] ^= int(random.integers(1, 256))
        beton.write_bytes(damaged)
        try:
            dataset = BetonDataset([str(beton)])
        except MaskCoError:
            continue
        for index in range(len(dataset)):
            dataset.read(index)
        dataset.close()
