"""The kernel that reads parts of files against `os.pread`."""

import os
import pathlib

import numpy as np
import pytest

from maskco_fast.kernels import reading

pytestmark = pytest.mark.skipif(not reading.AVAILABLE, reason="this system has no pread")


def read_parts(descriptors, offsets, sizes):
    """The parts, and the memory that they were read into, filled with 7 before."""
    memory = np.full(sum(sizes), 7, np.uint8)
    got = np.full(len(sizes), -1, np.int64)
    places = [np.array(values, np.int64) for values in (descriptors, offsets, sizes)]
    reading.read_parts(places[0], places[1], places[2], memory, got)
    begins = np.cumsum([0, *sizes])
    return [memory[at : at + size].tobytes() for at, size in zip(begins, got)], memory, got


def test_parts_are_those_of_pread(tmp_path: pathlib.Path) -> None:
    random = np.random.default_rng(0)
    files = []
    for number, size in enumerate((5000, 1, 0, 300_000)):
        path = tmp_path / str(number)
        path.write_bytes(random.bytes(size))
        files.append(os.open(path, os.O_RDONLY))
    try:
        for _ in range(50):
            chosen = random.integers(0, 4, random.integers(1, 9))
            descriptors = [files[n] for n in chosen]
            offsets = random.choice([0, 1, 4096, 4999, 5000, 250_000, 2**40], len(chosen)).tolist()
            sizes = random.choice([0, 1, 32, 5000, 100_000], len(chosen)).tolist()
            parts, _, _ = read_parts(descriptors, offsets, sizes)
            assert parts == [os.pread(*one) for one in zip(descriptors, sizes, offsets)]
    finally:
        for file in files:
            os.close(file)


def test_what_cannot_be_read_is_left_empty(tmp_path: pathlib.Path) -> None:
    """A descriptor that is not open, and one that is a folder's; the others are read."""
    (tmp_path / "a").write_bytes(b"abcdef")
    file, folder = os.open(tmp_path / "a", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
    try:
        parts, memory, got = read_parts([-1, file, folder, file], [0, 2, 0, 0], [3, 3, 2, 6])
    finally:
        os.close(file)
        os.close(folder)
    assert parts == [b"", b"cde", b"", b"abcdef"]
    assert got.tolist() == [0, 3, 0, 6]
    assert memory.tobytes() == b"\7\7\7cde\7\7abcdef"
