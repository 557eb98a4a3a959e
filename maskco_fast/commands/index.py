"""The `index` command: count the samples of shards and list the unusable ones with reasons."""

import json
import pathlib
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from maskco_fast.errors import SUCCESS
from maskco_fast.kernels import headers
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import Dataset, EmptyDataset, Quarantine, RemoteConfig, open_dataset
from maskco_fast.loaders.config import SCAN_INDEX_GB
from maskco_fast.loaders.order import ALL, EpochOrder, ShuffleBlock, mixing
from maskco_fast.loaders.scans.scan_dataset import scan_dataset
from maskco_fast.progress import ProgressLines

MAX_PRINTED = 20
"""Quarantined samples that the text report lists; `--report` and `--json` list all of them."""

ROWS = 1 << 20
"""Samples that are counted at a time."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Index shards: count the usable samples and list the quarantined ones with reasons."""

    shards: tuple[str, ...]
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images."""
    labels: str | None = None
    """Read and check labels, too: cls, json:FIELD or folder; the report has their classes."""
    threads: int | None = None
    """Shards read at a time. None: one for each CPU available to this process."""
    index_folder: pathlib.Path | None = None
    """Folder of the indexes. None: the user's cache folder."""
    scan: bool = False
    """Also make the scan indexes, which the first epoch makes otherwise: where each JPEG's data can
    be entered, so that only the parts that the crops need are read."""
    scan_index_gb: float = SCAN_INDEX_GB
    """Most gigabytes of scan indexes in the folder of the indexes, for --scan."""
    batch_size: int = 256
    """Batch size for which the mixing of shards is reported."""
    shuffle_block: int | Literal["all"] | None = None
    """Shards shuffled together, or all, for which the mixing is reported. None: what a loader of
    these shards chooses."""
    report: pathlib.Path | None = None
    """Write every quarantined sample to this file, in the format of a run's quarantine.json."""
    json: bool = False
    """Print one JSON object instead of text."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)


def index(config: IndexConfig) -> int:
    """Index the shards and print the report; returns the exit code.

    Raises InvalidInput for a stream, which has no index, and whatever `open_dataset` raises:
    EmptyDataset after the report.
    """
    began = time.monotonic()
    if config.remote.mode == "stream":
        raise InvalidInput(
            "`--remote.mode` must not be stream: a stream has no index. Omit the option."
        )
    try:
        dataset = open_dataset(
            config.shards,
            labels=config.labels,
            index_folder=config.index_folder,
            threads=config.threads,
            progress=ProgressLines(),
            remote=config.remote,
        )
    except EmptyDataset as empty:
        _report(config, _facts_of_none(empty.shards), Quarantine(empty.bad), began)
        raise
    facts = _facts(dataset, config)
    if config.scan:
        facts["scanned"] = scan_dataset(
            dataset,
            limit=config.scan_index_gb * 1e9,
            threads=config.threads,
            progress=ProgressLines(),
        )
    _report(config, facts, Quarantine(dataset.bad), began)
    return SUCCESS


def _report(
    config: IndexConfig, facts: dict[str, Any], quarantine: Quarantine, began: float
) -> None:
    """Print the facts and the quarantined samples, and write these to `config.report`."""
    if config.report is not None:
        quarantine.write(config.report)
    facts["seconds"] = round(time.monotonic() - began, 3)
    facts["quarantine"] = quarantine.report()
    print(json.dumps(facts, indent=1) if config.json else _as_text(facts))


def _facts(dataset: Dataset, config: IndexConfig) -> dict[str, Any]:
    """What the report says about the usable samples."""
    formats = np.zeros(256, np.int64)
    short_sides = np.zeros(0, np.int64)
    size = labelled = 0
    for begin in range(0, len(dataset), ROWS):
        samples = dataset.samples[begin : begin + ROWS]
        formats += np.bincount(samples["format"], minlength=256)
        sides = np.bincount(np.minimum(samples["height"], samples["width"]))
        short_sides = np.pad(short_sides, (0, max(len(sides) - len(short_sides), 0)))
        short_sides[: len(sides)] += sides
        size += int(samples["size"].sum())
        labelled += int((samples["target"] >= 0).sum())
        dataset.shards.release()
    frequent = sorted(np.flatnonzero(formats).tolist(), key=lambda kind: -formats[kind])
    block = config.shuffle_block or dataset.default_block
    return {
        "shards": len(dataset.shards),
        "samples": len(dataset),
        "bytes": size,
        "formats": {headers.FORMAT_NAMES[kind]: int(formats[kind]) for kind in frequent},
        "labelled": labelled,
        "classes": None if dataset.classes is None else len(dataset.classes),
        "short_side_p5_p50_p95": [_percentile(short_sides, share) for share in (5, 50, 95)],
        "shuffle_block": block,
        "mixing": _mixing(dataset, block, config.batch_size),
        "keys_repeat": dataset.keys_repeat,
    }


def _percentile(counts: np.ndarray, percent: float) -> int:
    """The smallest value up to which `percent` of the values lie; `counts[v]` have the value v."""
    return int(np.searchsorted(np.cumsum(counts), percent / 100 * counts.sum()))


def _facts_of_none(shards: int) -> dict[str, Any]:
    """`_facts` of shards without a usable sample."""
    return {
        "shards": shards,
        "samples": 0,
        "bytes": 0,
        "formats": {},
        "labelled": 0,
        "classes": None,
        "short_side_p5_p50_p95": None,
        "shuffle_block": None,
        "mixing": None,
        "keys_repeat": False,
    }


def _mixing(dataset: Dataset, block: ShuffleBlock, batch_size: int) -> float | None:
    """`order.mixing` of the first epoch, rounded; None if the samples do not fill a batch."""
    if len(dataset) < batch_size:
        return None
    order = EpochOrder(dataset.shard_sizes, seed=0, epoch=0, block=block)
    return round(mixing(order, batch_size), 3)


def _as_text(facts: dict[str, Any]) -> str:
    """The report as text, at most `MAX_PRINTED` quarantined samples."""
    formats = ", ".join(f"{count} {name}" for name, count in facts["formats"].items()) or "none"
    lines = [
        f"{facts['samples']} usable samples in {facts['shards']} shards, "
        f"{facts['bytes'] / 1e9:.2f} GB ({formats}); {facts['labelled']} labelled"
        + ("" if facts["classes"] is None else f" with {facts['classes']} classes"),
    ]
    if facts["short_side_p5_p50_p95"] is not None:
        small, median, large = facts["short_side_p5_p50_p95"]
        lines.append(f"short side, pixels: {small} / {median} / {large} (5 % / median / 95 %)")
    if "scanned" in facts:
        lines.append(
            f"{facts['scanned']} with a scan index: the others are read from their beginning"
        )
    if facts["mixing"] is not None:
        block = facts["shuffle_block"]
        together = "all shards" if block == ALL else f"{block} shards at a time"
        lines.append(
            f"mixing: a batch holds samples of {facts['mixing']:.0%} of the shards that a uniform "
            f"shuffle would put in it ({together} are shuffled together: --shuffle-block)"
        )
    if facts["keys_repeat"]:
        lines.append(
            "keys: the same keys occur in several shards, so that sample ids take in shards' names"
        )
    bad = facts["quarantine"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in bad["by_reason"].items())
    lines.append(f"{bad['quarantined']} quarantined" + (f": {reasons}" if reasons else ""))
    for entry in bad["samples"][:MAX_PRINTED]:
        lines.append(f"  {entry['shard']}  {entry['key'] or '(the shard)'}: {entry['reason']}")
    if bad["quarantined"] > MAX_PRINTED:
        lines.append(f"  and {bad['quarantined'] - MAX_PRINTED} more; --report FILE lists them all")
    return "\n".join(lines)
