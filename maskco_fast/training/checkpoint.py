"""Checkpoint files: written atomically, verified by their SHA-256.

A folder holds `step-000000300.pt` and beside it `step-000000300.pt.sha256`, which `sha256sum -c`
reads. A crash at any moment leaves the older checkpoints intact.
"""

import hashlib
import pathlib
import warnings
from typing import Any

import torch

from maskco_fast.kernels.errors import MaskCoError
from maskco_fast.loaders.system.files import staged, write_atomically

VERSION = 1
"""Layout version of the state; `load` rejects every other version."""


class CheckpointError(MaskCoError, RuntimeError):
    """A checkpoint is damaged or has another layout version, so that no run can resume from it."""


def save(folder: pathlib.Path, step: int, state: dict[str, Any], *, keep: int) -> pathlib.Path:
    """Write `state` as the checkpoint of `step` and return its path.

    Removes all but the newest `keep` checkpoints. `state`: tensors, numbers, strings, and dicts,
    lists and tuples of them. The file gets its name only after it and its checksum are on the disk.
    An OSError (a full disk) leaves the older checkpoints unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*"):  # of a process that was killed during a write
        leftover.unlink()
    path = folder / f"step-{step:09d}.pt"
    with staged(path) as temporary:
        # Given a path instead of an open file, torch writes without holding the GIL, which the
        # training steps need.
        torch.save({"version": VERSION, "step": step, **state}, str(temporary))
        # The checksum is published first, so that every named checkpoint has one.
        with write_atomically(_checksum_path(path), "w") as checksum:
            checksum.write(f"{_digest(temporary)}  {path.name}\n")
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
        _checksum_path(old).unlink(missing_ok=True)
    return path


def checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """The paths of the folder's checkpoints, oldest first; `load` verifies them."""
    return sorted(folder.glob("step-*.pt"))


def has_checksum(path: pathlib.Path) -> bool:
    """Whether the checksum that `load` verifies lies beside the file."""
    return _checksum_path(path).exists()


def load(path: pathlib.Path) -> dict[str, Any]:
    """Read the state that `save` wrote, onto the CPU.

    Raises CheckpointError if the file is damaged or has another layout version. Only tensors and
    plain values are unpickled, so that a foreign checkpoint cannot run code.
    """
    try:
        expected = _checksum_path(path).read_text().split()[0]
    except (OSError, IndexError) as error:
        raise CheckpointError(
            f"{path} may be damaged: its .sha256 file cannot be read ({error})"
        ) from error
    found = _digest(path)
    if found != expected:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, not {expected[:12]}…"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["version"] != VERSION:
        raise CheckpointError(
            f"{path} has layout version {state['version']}; this maskco-fast reads {VERSION}."
        )
    return state


def load_newest(folder: pathlib.Path) -> dict[str, Any] | None:
    """Read the newest intact checkpoint; None if the folder has no checkpoint.

    Warns about each damaged checkpoint that it skips. Raises CheckpointError if all are damaged,
    since a fresh start would overwrite the run.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the one before it", RuntimeWarning, stacklevel=2)
    if paths:
        raise CheckpointError(
            f"None of the {len(paths)} checkpoints in {folder} is intact. Restore one, "
            "or name another --run-dir."
        )
    return None


def _checksum_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: pathlib.Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    # 16 MiB: hashing releases the GIL, and large chunks request it seldom.
    chunk = memoryview(bytearray(1 << 24))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
    return digest.hexdigest()
