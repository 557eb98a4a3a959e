"""Open a dataset: the one place that knows the kinds of shard and the class that reads each.

| shards | class |
|---|---|
| tar files and folders of images on this machine | `Dataset` |
| .beton files | `BetonDataset` |
| at least one URL or `pipe:` command | `RemoteDataset` |
| any of the above but .beton, with `remote.mode == "stream"` | `StreamDataset` |
"""

import os
from collections.abc import Iterable, Sequence

from ...kernels.errors import InvalidInput
from ..fields import check_fields
from ..remote.config import RemoteConfig
from ..remote.dataset import RemoteDataset
from ..remote.stream import StreamDataset
from ..system.progress import Progress, no_progress
from .beton import BetonDataset
from .dataset import Dataset
from .index_cache import open_table
from .labels import check_options
from .names import expand, is_beton, is_remote, redact_url


def open_dataset(
    shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    labels: str | None = None,
    classes: Sequence[str] | None = None,
    fields: Iterable[str] | None = None,
    index_folder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    remote: RemoteConfig | None = None,
) -> Dataset:
    """Expand shard patterns, index the shards that have no index yet and number their samples.

    `shards`: see `expand`. `index_folder`: where indexes are stored (default: the cache folder).
    `threads`: shards indexed at once (default: the CPUs that this process may use). `progress` is
    called after each shard. `remote`: how shards on servers are read. .beton files hold their own
    index, and a stream has none.

    `labels`: where labels are read from: "cls", the sample's .cls member (a number or text);
    "json:FIELD", a field of its .json member (dots lead into nested objects); "folder", the first
    folder in its name; None, numbers in .cls members or folders' numbers where there are any, for
    training that needs no label. `classes`: the class list, such as training's; by default "0",
    "1", … up to the largest label where all are numbers, else the labels sorted. `target` is a
    label's position in `dataset.classes`. A stream cannot know its list and needs `classes`.

    `fields`: suffixes of other members, such as ("txt", "json"), whose values batches bring along;
    see `decode_field`. In a folder they are the files beside the images. .beton files have none.

    Raises FileNotFoundError where a pattern matches nothing or a server lacks a shard, RemoteError
    where a server fails, EmptyDataset where no sample is usable, InvalidInput where .beton files
    are mixed with other shards, streamed, remote or opened with fields, and where a sample has no
    label or one that is not in the class list.
    """
    chosen = check_fields(fields)
    shards = shards if isinstance(shards, str | os.PathLike) else list(shards)
    dataset = _open(shards, labels, classes, chosen, index_folder, threads, progress, remote)
    dataset.opened_with = {
        "shards": shards,
        "labels": labels,
        "classes": classes,
        "fields": chosen,
        "index_folder": index_folder,
        "threads": threads,
        "remote": remote,
    }
    return dataset


def _open(
    shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    labels: str | None,
    classes: Sequence[str] | None,
    fields: tuple[str, ...],
    index_folder: str | os.PathLike[str] | None,
    threads: int | None,
    progress: Progress,
    remote: RemoteConfig | None,
) -> Dataset:
    """Choose the class that reads these shards."""
    source, listed = check_options(labels, classes)
    paths = expand(shards)
    remote = remote or RemoteConfig()
    betons = [path for path in paths if is_beton(path)]
    if betons:
        _require_local_betons(betons, len(paths), remote)
        if fields:
            raise InvalidInput(
                f"a .beton file has no fields, got {', '.join(fields)} for {betons[0]}: pass the "
                "tar shards that it was made from, or leave fields out"
            )
        return BetonDataset(betons, labels=source, classes=listed)
    if remote.mode == "stream":
        return StreamDataset(paths, remote, labels=source, classes=listed, fields=fields)
    if any(map(is_remote, paths)):
        return RemoteDataset.index(
            paths,
            remote,
            labels=source,
            classes=listed,
            fields=fields,
            index_folder=index_folder,
            threads=threads,
            progress=progress,
        )
    table = open_table(
        paths,
        labels=source,
        classes=listed,
        fields=fields,
        folder=index_folder,
        threads=threads,
        progress=progress,
    )
    return Dataset(table, labels=source, fields=fields)


def _require_local_betons(betons: list[str], shards: int, remote: RemoteConfig) -> None:
    """InvalidInput unless all shards are .beton files on this machine, read without streaming."""
    if len(betons) != shards:
        raise InvalidInput(
            f"{len(betons)} of {shards} shards are .beton files: pass only .beton files, or none"
        )
    on_servers = [redact_url(path) for path in betons if is_remote(path)]
    if on_servers:
        raise InvalidInput(
            f".beton files must be on this machine, got {on_servers[0]}: download the file, "
            "or pass the tar shards that it was made from"
        )
    if remote.mode == "stream":
        raise InvalidInput(
            f"only tar shards can be streamed, got {betons[0]}: set remote.mode to 'cache', which "
            "reads .beton files directly"
        )
