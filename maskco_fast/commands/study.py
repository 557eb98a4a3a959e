"""The `study` command: data for the study of docs/study.md."""

from dataclasses import dataclass
from typing import Literal

import tyro

from maskco_fast.demo.mosaics import MOSAICS, Mosaics, check_classes, write_mosaics
from maskco_fast.errors import SUCCESS, say
from maskco_fast.loaders import open_dataset
from maskco_fast.progress import ProgressLines


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Mosaics):
    """Write shards of mosaics of one class, and of four classes, from labelled shards."""

    what: tyro.conf.Positional[Literal["mosaics"]] = "mosaics"
    """What to write."""


def study(config: StudyConfig) -> int:
    """Write both sets of mosaics; returns the exit code.

    InvalidInput where a class has too few or too many images, or an image does not decode.
    """
    dataset = open_dataset(config.shards, labels=config.labels, progress=ProgressLines())
    check_classes(dataset)
    for name in MOSAICS:
        paths = write_mosaics(dataset, name, config)
        say(f"{len(dataset)} {name} mosaics in {len(paths)} shards: {paths[0]}")
    return SUCCESS
