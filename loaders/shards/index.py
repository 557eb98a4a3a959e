"""The index of a shard: position, size and label of its usable samples; reasons of its bad ones."""

import functools
import os
from dataclasses import dataclass

import numpy as np

from ..quarantine import BadSample
from ..remote.store import RemoteShard
from ..system.text import printable

SAMPLE_DTYPE = np.dtype(
    [
        ("sample_id", np.int64),
        ("offset", np.int64),
        ("size", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("target", np.int64),
        ("format", np.uint8),
    ]
)
"""A usable sample: the hash of its key (`sample_ids.sample_id`); offset and size of the encoded
image, bytes; image height and width, pixels; label, -1 without one; format, one of
`kernels.headers`."""

_LONGEST = 400
"""Characters of a name that is shown in full."""


def readable(name: str) -> str:
    """A member's name for reports: bytes that are not UTF-8 are written as `\\xNN`, characters
    that do not print (a terminal would obey some) as escapes, and a long name is shortened."""
    return printable(name if len(name) <= _LONGEST else f"{name[:200]}…{name[-50:]}")


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into key and suffix by webdataset's rule: at the file name's first dot.

    The suffix is lower-case and has no leading dot.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


@dataclass(frozen=True, kw_only=True)
class ShardLabels:
    """The labels of a shard's usable samples, as text."""

    source: str
    """The option `labels` by which they were read."""
    names: tuple[str, ...]
    """The distinct labels."""
    codes: np.ndarray
    """(n,) int32: position in `names`; -1 - position in `reasons` for a sample without a label."""
    reasons: tuple[str, ...]
    """Why samples have no label, each reason once."""


@dataclass(frozen=True, kw_only=True)
class ShardFields:
    """Where the fields of a tar's usable samples lie."""

    names: tuple[str, ...]
    """The option `fields`."""
    places: np.ndarray
    """(n, fields, 2) int64: offset and size of each member, bytes; -1 for a member that a sample
    lacks."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The index of one shard."""

    path: str
    samples: np.ndarray
    """(n,) SAMPLE_DTYPE, the usable samples in the shard's order."""
    names: np.ndarray
    """(n,) bytes: names of the image members."""
    bad: tuple[BadSample, ...]
    labels: ShardLabels | None = None
    """None where the dataset is opened without `labels`."""
    fields: ShardFields | None = None
    """None where the dataset is opened without `fields`, and of a folder."""
    remote: RemoteShard | None = None
    """The version of the shard that was indexed, where `path` is a URL or a command."""
    lasting: bool = True
    """Whether the index holds until the shard changes: not that of a shard that cannot be read, or
    not now."""

    def key(self, number: int) -> str:
        """The key of usable sample `number`, for reports."""
        return readable(self.exact_key(number))

    def exact_key(self, number: int) -> str:
        """The key of usable sample `number`; bytes that are not UTF-8 are surrogates."""
        return split_name(self.names[number].decode("utf-8", "surrogateescape"))[0]

    def file(self, number: int) -> str:
        """The path of the file that holds usable sample `number`."""
        if self.is_folder:
            return os.path.join(self.path, os.fsdecode(self.names[number]))
        return self.path

    @functools.cached_property
    def is_folder(self) -> bool:
        """Whether the shard is a folder of images."""
        return os.path.isdir(self.path)
