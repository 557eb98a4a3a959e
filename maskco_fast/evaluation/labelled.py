"""Pairs of labelled data sets, for training and validation, with one numbering of the classes."""

from collections.abc import Sequence

from maskco_fast.demo.shards import demo_shards, demo_val_shards
from maskco_fast.errors import say
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Dataset, RemoteConfig, open_dataset
from maskco_fast.loaders.shards.names import redact_url
from maskco_fast.loaders.system.progress import Progress, no_progress


def check_pair(train_shards: Sequence[str], val_shards: Sequence[str]) -> None:
    """Raise InvalidInput where only one of the two is given."""
    if bool(train_shards) != bool(val_shards):
        raise InvalidInput(
            "`train_shards` and `val_shards` must be given together, or neither for the demo "
            f"set; got {len(train_shards)} and {len(val_shards)}."
        )


def open_pair(
    train_shards: Sequence[str],
    val_shards: Sequence[str],
    labels: str,
    *,
    threads: int | None = None,
    remote: RemoteConfig | None = None,
    progress: Progress = no_progress,
    announce: bool = True,
) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """Open both sets; returns them and the names of the classes, which both number alike.

    Without shards, the demo set and its validation part, which are drawn on first use; `announce`
    prints a line about it. Raises InvalidInput for shards without labels, or with a label in the
    second set that the first one lacks, and what `open_dataset` raises.
    """
    if not train_shards:
        if announce:
            say("no labelled shards: using the built-in demo set, which is drawn on first use")
        train_shards = [str(path) for path in demo_shards(progress=progress)]
        val_shards = [str(path) for path in demo_val_shards(progress=progress)]

    def open_labelled(shards: Sequence[str], classes: Sequence[str] | None) -> Dataset:
        return open_dataset(
            shards,
            labels=labels,
            classes=classes,
            threads=threads,
            progress=progress,
            remote=remote,
        )

    train = open_labelled(train_shards, None)
    if train.classes is None:
        raise InvalidInput(
            f"`labels` is {labels!r}, but {redact_url(train.shards[0].path)} has none there. "
            "Choose cls, json:FIELD or folder."
        )
    return train, open_labelled(val_shards, train.classes), train.classes
