"""Checkpoints that survive a crash at any moment: written whole or not at all, and known by their
checksum.

A folder holds `step-000000300.pt` and beside it `step-000000300.pt.sha256`, which `sha256sum -c`
reads.
"""

import hashlib
import pathlib
import warnings
from typing import Any

import torch

from maskco_fast.kernels.errors import MaskCoError
from maskco_fast.loaders.system.files import staged, write_atomically

VERSION = 1
"""Of the state's layout; a checkpoint of another one is refused."""


class CheckpointError(MaskCoError, RuntimeError):
    """There are checkpoints, but none that a run can go on from."""


def save(folder: pathlib.Path, step: int, state: dict[str, Any], *, keep: int) -> pathlib.Path:
    """Write `state` as the checkpoint of `step` and remove all but the newest `keep`; returns its
    path.

    `state`: tensors, numbers, strings, and dicts, lists and tuples of them. The file gets its name
    only when it and its checksum are on the disk; OSError (a full disk) leaves the older
    checkpoints as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*"):  # of a process that was killed while it wrote
        leftover.unlink()
    path = folder / f"step-{step:09d}.pt"
    with staged(path) as temporary:
        # By name, not to an open file: torch then writes without the GIL, which the training steps
        # need.
        torch.save({"version": VERSION, "step": step, **state}, str(temporary))
        # The checksum appears first: whatever is called a checkpoint has one.
        with write_atomically(_checksum_path(path), "w") as checksum:
            checksum.write(f"{_digest(temporary)}  {path.name}\n")
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
        _checksum_path(old).unlink(missing_ok=True)
    return path


def checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder's checkpoints, oldest first; whether they are intact, `load` says."""
    return sorted(folder.glob("step-*.pt"))


def load(path: pathlib.Path) -> dict[str, Any]:
    """The state that `save` wrote, on the CPU. CheckpointError where the file is damaged or of
    another version.

    Unpickles tensors and plain values only, so a checkpoint from elsewhere can run no code.
    """
    try:
        expected = _checksum_path(path).read_text().split()[0]
    except (OSError, IndexError) as error:
        raise CheckpointError(
            f"{path} has no readable checksum beside it ({error}); it may be damaged"
        ) from error
    found = _digest(path)
    if found != expected:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, not {expected[:12]}…"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["version"] != VERSION:
        raise CheckpointError(
            f"{path} has layout version {state['version']}; this maskco-fast reads {VERSION}"
        )
    return state


def load_newest(folder: pathlib.Path) -> dict[str, Any] | None:
    """The newest intact state, None where the folder has no checkpoint; warns of the damaged ones
    that it passes over.

    CheckpointError where all are damaged: starting anew would overwrite a run.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", RuntimeWarning, stacklevel=2)
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {folder} is intact; restore one, or start in another run folder"
        )
    return None


def _checksum_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: pathlib.Path) -> str:
    digest, chunk = (
        hashlib.sha256(),
        memoryview(bytearray(1 << 24)),
    )  # large, so that it seldom asks for the GIL
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
    return digest.hexdigest()
