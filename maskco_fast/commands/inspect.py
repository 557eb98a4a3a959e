"""The `index` and `views` commands: look at shards before training on them."""

import collections
import json
import pathlib
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from maskco_fast.kernels import headers
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.plan import plan
from maskco_fast.loaders import (
    Dataset,
    Quarantine,
    RemoteConfig,
    ViewConfig,
    make_loader,
    open_dataset,
)
from maskco_fast.loaders.order import SHARDS_PER_BLOCK, mixing, order
from maskco_fast.loaders.shards.decode import decode_pillow
from maskco_fast.pictures.pictures import PlannedImage, views_picture
from maskco_fast.progress import ProgressLines

NAMED = 20
"""Bad samples that `index` prints; `--report` and `--json` have them all."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Index shards: count what is usable, and name what is quarantined and why."""

    shards: tuple[str, ...]
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images."""
    threads: int | None = None
    """Shards read at a time; None for the CPUs that this process may use."""
    index_folder: pathlib.Path | None = None
    """Where the indexes are kept; None for the user's cache folder."""
    batch_size: int = 256
    """For the figure on how well the order mixes shards."""
    report: pathlib.Path | None = None
    """Write every quarantined sample here, as the trainer's quarantine.json."""
    json: bool = False
    """Print one JSON object instead of text."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)


def index(config: IndexConfig) -> int:
    """Index the shards and print the report; returns 0."""
    began = time.monotonic()
    if config.remote.mode == "stream":
        raise InvalidInput("a stream has no index: leave --remote.mode out")
    dataset = open_dataset(
        config.shards,
        index_folder=config.index_folder,
        threads=config.threads,
        progress=ProgressLines(),
        remote=config.remote,
    )
    seconds = time.monotonic() - began
    quarantine = Quarantine(dataset.bad)
    if config.report is not None:
        quarantine.write(config.report)
    formats = collections.Counter(
        headers.FORMAT_NAMES[kind] for kind in dataset.samples["format"].tolist()
    )
    sides = np.percentile(
        np.minimum(dataset.samples["height"], dataset.samples["width"]), [5, 50, 95]
    ).astype(int)
    facts = {
        "shards": len(dataset.shards),
        "samples": len(dataset),
        "bytes": int(dataset.samples["size"].sum()),
        "formats": dict(formats.most_common()),
        "labelled": int((dataset.samples["target"] >= 0).sum()),
        "short_side_p5_p50_p95": sides.tolist(),
        "mixing": _mixing(dataset, config.batch_size),
        "seconds": round(seconds, 3),
        "quarantine": quarantine.report(),
    }
    print(json.dumps(facts, indent=1) if config.json else _as_text(facts))
    return 0


def _mixing(dataset: Dataset, batch_size: int) -> float | None:
    """`order.mixing` of the first epoch, rounded; None where the samples do not fill a batch."""
    if len(dataset) < batch_size:
        return None
    return round(
        mixing(order(dataset.shard_sizes, seed=0, epoch=0), dataset.shard_sizes, batch_size), 3
    )


def _as_text(facts: dict) -> str:
    lines = [
        f"{facts['samples']} usable samples in {facts['shards']} shards, {facts['bytes'] / 1e9:.2f} GB "
        f"({', '.join(f'{count} {name}' for name, count in facts['formats'].items())}); {facts['labelled']} labelled",
        "short side, pixels: {} / {} / {} (5 % / median / 95 %)".format(
            *facts["short_side_p5_p50_p95"]
        ),
    ]
    if facts["mixing"] is not None:
        lines.append(
            f"mixing: a batch sees {facts['mixing']:.0%} of the shards that a uniform shuffle would show it "
            f"({SHARDS_PER_BLOCK} shards are shuffled together)"
        )
    bad = facts["quarantine"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in bad["by_reason"].items())
    lines.append(f"{bad['quarantined']} quarantined" + (f": {reasons}" if reasons else ""))
    for entry in bad["samples"][:NAMED]:
        lines.append(f"  {entry['shard']}  {entry['key'] or '(the shard)'}: {entry['reason']}")
    if bad["quarantined"] > NAMED:
        lines.append(f"  and {bad['quarantined'] - NAMED} more; --report FILE writes them all")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Draw what the plan makes of a few images: both crops, the masked query, the key with its
    boxes."""

    shards: tuple[str, ...]
    """Tar shards: paths, globs, `{0000..0331}` ranges, http(s)://, s3:// and pipe: names, or
    folders of images."""
    out: pathlib.Path = pathlib.Path("views.png")
    """The PNG to write."""
    count: int = 4
    """Images to show, the first of the epoch's order."""
    seed: int = 0
    """Of the order and the plans."""
    epoch: int = 0
    """Of the order and the plans."""
    loader: str = "auto"
    """The loader that renders the views."""
    views: ViewConfig = field(default_factory=ViewConfig.maskco)
    remote: RemoteConfig = field(default_factory=RemoteConfig)


def views(config: ViewsConfig) -> int:
    """Write the picture; returns 0."""
    dataset = open_dataset(config.shards, remote=config.remote)
    draw_views(
        dataset,
        config.views,
        config.out,
        count=config.count,
        seed=config.seed,
        epoch=config.epoch,
        backend=config.loader,
    )
    print(f"{config.out}: {config.count} images")
    return 0


def draw_views(
    dataset: Dataset,
    config: ViewConfig,
    out: pathlib.Path,
    *,
    count: int,
    seed: int,
    epoch: int = 0,
    backend: str = "reference",
) -> None:
    """Write `pictures.views_picture` of the first `count` images of an epoch, as `backend` renders
    them."""
    with make_loader(
        dataset,
        count,
        views=config,
        backend=backend,
        dtype=torch.uint8,
        seed=seed,
        rank=0,
        world_size=1,
    ) as loader:
        loader.set_epoch(epoch)
        batches = iter(loader)  # kept, since a remote dataset is read only as long as there is one
        batch = next(batches)
        images = []
        for n, position in enumerate(batch.index.tolist()):
            sample = dataset.samples[[position]]
            row = plan(config, seed, epoch, sample["sample_id"], sample["height"], sample["width"])
            shard, number = dataset.locate(position)
            images.append(
                PlannedImage(
                    name=shard.key(number),
                    original=decode_pillow(dataset.read(position)),
                    plan=row.view(config.plan_dtype)[0, 0],
                    views=tuple(view[n].permute(1, 2, 0).numpy() for view in batch.views),
                )
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    views_picture(images, config, out)
