"""Where what can be made again is kept: machine code, shard indexes, demo data."""

import functools
import os
import pathlib
import tempfile


@functools.cache
def cache_folder(kind: str) -> pathlib.Path:
    """The folder `kind` in the first writable of `$MASKCO_FAST_CACHE`, the user's cache folder and
    the temporary one.

    Made where it does not exist. OSError, with the remedy, where none is writable.
    """
    wanted = [
        os.environ.get("MASKCO_FAST_CACHE"),
        os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "maskco-fast"
        ),
        os.path.join(tempfile.gettempdir(), f"maskco-fast-{os.getuid()}"),
    ]
    for name in filter(None, wanted):
        try:
            folder = pathlib.Path(name, kind)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:  # read-only or not ours: the next one
            continue
    raise OSError(
        f"none of {list(filter(None, wanted))} is writable; set MASKCO_FAST_CACHE to a folder that is"
    )
