"""What kind of file system a path is on."""

import os
from collections.abc import Iterable

_MOUNTS = "/proc/self/mountinfo"
_NETWORK = frozenset(
    (
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre"),
        *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs"),
        *("wekafs",),
    )
)
"""Names that Linux gives to the file systems of other machines; besides them all of FUSE's."""


def on_network(paths: Iterable[str]) -> bool:
    """Whether any of the files lies on a network's file system, as far as the system says so."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:  # not Linux
        return False
    kinds: dict[str, str] = {}
    for line in lines:
        mount, _, kind = line.partition(" - ")
        kinds[mount.split(" ")[2]] = kind.split(" ")[0]
    return any(_is_network(kinds.get(_device(folder), "")) for folder in {*map(_folder, paths)})


def _folder(path: str) -> str:
    return os.path.dirname(path) or "."


def _device(folder: str) -> str:
    """Major and minor number of a folder's file system, as in `mountinfo`."""
    try:
        device = os.stat(folder).st_dev
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}"


def _is_network(kind: str) -> bool:
    return kind in _NETWORK or kind.startswith("fuse.")
