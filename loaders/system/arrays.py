"""Read the arrays of an .npz file that may be damaged or hostile."""

import io
import math
import os
import threading
import zipfile
from collections.abc import Collection
from typing import IO, Any

import numpy as np

_PARSING = threading.Lock()
"""Serialises NumPy's reading of headers: it parses with `ast`, which in CPython 3.11 may fail when
two threads do so (gh-106905)."""


def read_arrays(
    file: str | os.PathLike[str] | IO[bytes], names: Collection[str]
) -> dict[str, np.ndarray]:
    """Read those of the arrays `names` that the file, written by `np.savez`, holds.

    Raises ValueError where it is damaged, and before memory is allocated where an array claims more
    bytes than the file has; OSError where it cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _read(archive, held[name]) for name in names if name in held}
    except OSError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for damage, and NumPy others
        raise ValueError(f"damaged, {type(error).__name__}: {error}") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("compressed")
    with archive.open(info) as member:
        file = io.BytesIO(member.read())  # which also compares its checksum
    with _PARSING:
        version = np.lib.format.read_magic(file)
        read_header: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(file)
    content = file.read()
    if dtype.hasobject or fortran or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("an array's shape does not fit its bytes")
    return np.frombuffer(bytearray(content), dtype).reshape(shape)
