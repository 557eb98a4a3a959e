"""The cache directory: machine code, shard indexes, demo data. All of it can be regenerated."""

import functools
import os
import pathlib
import tempfile


@functools.cache
def cache_folder(kind: str) -> pathlib.Path:
    """The subfolder `kind` of the cache directory, created if needed.

    The cache directory is the first writable one of `$MASKCO_FAST_CACHE`, `maskco-fast` in the
    user's cache folder, and a folder of this user in the temporary one. Raises OSError where none
    is writable.
    """
    temporary = f"maskco-fast-{os.getuid()}" if hasattr(os, "getuid") else "maskco-fast"
    candidates = [
        os.environ.get("MASKCO_FAST_CACHE"),
        os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "maskco-fast"
        ),
        os.path.join(tempfile.gettempdir(), temporary),
    ]
    for name in filter(None, candidates):
        try:
            folder = pathlib.Path(name, kind)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:  # read-only, or another user's: try the next
            continue
    raise OSError(
        f"no cache directory is writable among {list(filter(None, candidates))}; "
        "set MASKCO_FAST_CACHE to a writable folder."
    )
