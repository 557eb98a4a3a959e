"""The cache directory: machine code, shard indexes, demo data. All of it can be regenerated."""

import atexit
import functools
import os
import pathlib
import shutil
import stat
import tempfile
import warnings


@functools.cache
def cache_folder(kind: str) -> pathlib.Path:
    """The subfolder `kind` of the cache directory, created if needed.

    The cache directory is the first writable one of `$MASKCO_FAST_CACHE`, `maskco-fast` in the
    user's cache folder, a folder of this user in the temporary one, and a new folder that ends with
    this process. It holds machine code, so that whoever can write into it runs code as this user:
    except for the first, which the user chose, it must be this user's own. Raises OSError where
    none is writable.
    """
    chosen = os.environ.get("MASKCO_FAST_CACHE")
    if chosen and _is_writable(pathlib.Path(chosen, kind)):
        return pathlib.Path(chosen, kind)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    temporary = f"maskco-fast-{os.getuid()}" if hasattr(os, "getuid") else "maskco-fast"
    roots = {
        pathlib.Path(home, "maskco-fast"): stat.S_IWOTH,
        pathlib.Path(tempfile.gettempdir(), temporary): stat.S_IWOTH | stat.S_IWGRP,
    }
    for root, shared in roots.items():
        if _own(root, shared) and _is_writable(root / kind):
            return root / kind
    folder = _folder_of_this_process() / kind
    folder.mkdir(exist_ok=True)
    return folder


def _own(root: pathlib.Path, shared: int) -> bool:
    """Create the folder for this user alone, if needed; whether it is this user's.

    `shared`: the permissions that an existing one must not have.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        link, folder = os.lstat(root), os.stat(root)
    except OSError:  # read-only, or a file of this name
        return False
    if not hasattr(os, "getuid"):
        return True
    return link.st_uid == folder.st_uid == os.getuid() and not folder.st_mode & shared


def _is_writable(folder: pathlib.Path) -> bool:
    """Whether files can be created in the folder, which is created if needed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@functools.cache
def _folder_of_this_process() -> pathlib.Path:
    try:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="maskco-fast-"))
    except OSError as error:
        raise OSError(
            f"no cache directory is writable ({error}): set MASKCO_FAST_CACHE to a writable folder"
        ) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(
        "no cache directory of this user is writable, so kernels are compiled and shards indexed "
        "again in each process: set MASKCO_FAST_CACHE to a writable folder",
        stacklevel=3,
    )
    return folder
