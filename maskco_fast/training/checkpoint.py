"""Checkpoint files: written atomically, verified by their SHA-256.

A folder holds `step-000000300.pt` and beside it `step-000000300.pt.sha256`, which `sha256sum -c`
reads. A crash at any moment leaves the older checkpoints intact.
"""

import hashlib
import pathlib
import re
import warnings
from collections.abc import Collection
from typing import Any

import torch

from maskco_fast.kernels.errors import MaskCoError
from maskco_fast.loaders.system.files import (
    TEMPORARY_SUFFIX,
    bytes_text,
    free_bytes,
    staged,
    write_atomically,
)

VERSION = 1
"""Layout version of the state; `load` rejects every other version."""


class CheckpointError(MaskCoError, RuntimeError):
    """A checkpoint is damaged or has another layout version, so that no run can resume from it."""


class CheckpointNotWritten(MaskCoError, OSError):
    """A checkpoint cannot be written, as on a full disk. The older ones are intact."""


_NAME = re.compile(r"step-(\d{9,})\.pt")
_LEFTOVER = re.compile(r"\.step-\d{9,}\.pt(\.sha256)?\.[0-9a-f]{8}" + re.escape(TEMPORARY_SUFFIX))


def save(
    folder: pathlib.Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int,
    keep_steps: Collection[int] = (),
) -> pathlib.Path:
    """Write `state` as the checkpoint of `step` and return its path.

    Keeps this one and the newest others, `keep` in all, and those of `keep_steps`. Only files that
    `save` wrote count and are removed: copies with another name stay. `state`: tensors, numbers,
    strings, and dicts, lists and tuples of them. The file gets its name only after it and its
    checksum are on the disk. Raises CheckpointNotWritten, which leaves the older checkpoints
    unchanged.
    """
    path = folder / f"step-{step:09d}.pt"
    try:
        _write(path, {"version": VERSION, "step": step, **state})
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        raise CheckpointNotWritten(
            f"the checkpoint {path} cannot be written: {_reason(error, path, state)}. Free some "
            "space, then resume with the same command; the older checkpoints are intact"
        ) from error
    others = [old for old in checkpoints(folder) if old != path and _is_ours(old)]
    others = [old for old in others if _step(old) not in keep_steps]
    for old in others[: max(len(others) + 1 - keep, 0)]:
        old.unlink()
        _checksum_path(old).unlink(missing_ok=True)
    return path


def _write(path: pathlib.Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.iterdir():  # of a process that was killed during a write
        if _LEFTOVER.fullmatch(leftover.name):
            leftover.unlink()
    with staged(path) as temporary:
        # Given a path instead of an open file, torch writes without holding the GIL, which the
        # training steps need.
        torch.save(state, str(temporary))
        # The checksum is published first, so that every named checkpoint has one.
        with write_atomically(_checksum_path(path), "w") as checksum:
            checksum.write(f"{_digest(temporary)}  {path.name}\n")


def _reason(error: OSError | RuntimeError, path: pathlib.Path, state: dict[str, Any]) -> str:
    """Why a file cannot be written. Of a full disk torch reports only that a position is wrong."""
    needed, free = _tensor_bytes(state), free_bytes(path)
    if needed > free:
        return f"it needs {bytes_text(needed)}, and its disk has {bytes_text(free)} free"
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def _step(path: pathlib.Path) -> int:
    """The step in the name of a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def _is_ours(path: pathlib.Path) -> bool:
    """Whether `save` wrote the file: its checksum, which names it, lies beside it."""
    try:
        return _checksum_path(path).read_text().split()[1:] == [path.name]
    except (OSError, ValueError):
        return False


def checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """The paths of the folder's checkpoints, oldest first; `load` verifies them."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_step)


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
    except (OSError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path} may be damaged: its .sha256 file cannot be read ({error})"
        ) from error
    try:
        found = _digest(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if found != expected:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, not {expected[:12]}…"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
    except Exception as error:  # unpickling may raise anything
        raise CheckpointError(
            f"{path} is no checkpoint that torch {torch.__version__} reads: "
            f"{str(error).partition('. ')[0]}"
        ) from error
    if version != VERSION:
        raise CheckpointError(
            f"{path} has layout version {version}; this maskco-fast reads {VERSION}."
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
