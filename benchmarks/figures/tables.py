"""The generated blocks of docs/performance.md, as Markdown, from the figures' JSON."""

import re
from typing import Any

from benchmarks.speed.step import STAGES as STEP_STAGES
from maskco_fast.bench.harness import Spread, ratio_by_round
from maskco_fast.bench.rows import ROWS

LABELS = {
    "native": "native (ours)",
    "native_first_epoch": "native, a first epoch",
    "native_coefficients": "native, .beton of coefficients",
    "dali": "dali (ours, in DALI)",
    "ffcv": "ffcv (ours, in FFCV)",
    "torchvision_pil": "torchvision on Pillow",
    "torchvision_v2": "torchvision v2 on tensors",
    "lightly": "lightly",
    "kornia": "kornia on the batch",
    "spdl": "SPDL and torchvision v2",
    "torchcodec": "torchcodec and torchvision v2",
    "kornia_rs": "kornia-rs and torchvision v2",
    "grain": "Grain and torchvision v2",
    "dali_stock": "DALI's own operators",
    "dali_dynamic": "DALI's dynamic mode",
    "ffcv_ssl": "FFCV-SSL, without blur",
}
"""Rows that finish two views of each image, by their names in the picture."""
BOUNDS = ("decode_only", "cached_batch")
END = "<!-- end -->"


def begin_mark(name: str) -> str:
    """The line that begins a generated block."""
    return f"<!-- generated: {name} -->"


def replace_block(text: str, name: str, block: str) -> str | None:
    """The document with this block's content replaced; None where it has no such block."""
    mark = re.escape(begin_mark(name))
    pattern = re.compile(f"({mark}\n).*?({re.escape(END)})", re.DOTALL)
    if pattern.search(text) is None:
        return None
    return pattern.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text, count=1)


def empty_document(blocks: dict[str, str]) -> str:
    """A document of empty blocks."""
    parts = [f"{begin_mark(name)}\n{END}" for name in blocks]
    return "\n\n".join(["# Performance", *parts]) + "\n"


def blocks(figures: dict[str, Any]) -> dict[str, str]:
    """The blocks whose parts were measured, by name."""
    made = {"machine": machine_block(figures)}
    if "bench" in figures:
        made["bench"] = bench_block(figures)
        made["peers"] = peers_block(figures["bench"])
    for name, make in (
        ("stages", stages_block),
        ("decode", decode_block),
        ("cores", cores_block),
        ("step", step_block),
    ):
        if name in figures:
            made[name] = make(figures)
    return made


def machine_block(figures: dict[str, Any]) -> str:
    """Machine, date, images and versions."""
    images = figures["images"]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    return (
        f"{figures['machine']}; {figures['date']}. {images['count']} images "
        f"({images['kilobytes']:.0f} kB and {images['megapixels']:.2f} megapixels in the mean). "
        f"{versions}.\n\n`{figures['command']}`"
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _speed(row: dict[str, Any]) -> str:
    low, high = row["spread"]
    return f"{row['images_per_s']:.0f} ({low:.0f}-{high:.0f})"


def bench_block(figures: dict[str, Any]) -> str:
    """Rows that finish two views of each image, and the bounds."""
    options = figures["options"]
    rows = {row["name"]: row for row in figures["bench"]}
    native = rows.get("native")
    lines = []
    for name in (*LABELS, *BOUNDS):
        row = rows.get(name)
        if row is None or row["images_per_s"] is None:
            continue
        ratio = ""
        if native is not None and native["rounds"] and name != "native":
            ratio = f"{ratio_by_round(native['rounds'], row['rounds']).median:.2f}"
        what = f"`{name}`: {row['what']}"
        lines.append([what, _speed(row), f"{row['cpu_ms_per_image']:.2f}", ratio])
    header = ["row", "images/s, median (slowest-fastest)", "CPU-ms an image", "native against it"]
    text = (
        f"Two finished {options['size']}-pixel views of each image, float32, batches of "
        f"{options['batch_size']}, {figures['cpus']} threads or worker processes, "
        f"{options['rounds']} interleaved rounds of about {options['seconds']:g} s at most."
    )
    left_out = [f"`{row['name']}` ({row['error']})" for row in rows.values() if row["error"]]
    note = f"\n\nNot measured: {'; '.join(left_out)}." if left_out else ""
    return f"{text}\n\n{_table(header, lines)}{note}"


def peers_block(rows: list[dict[str, Any]]) -> str:
    """Each peer beside the row of ours that does the same work."""
    timed = {row["name"]: row for row in rows if row["rounds"]}
    lines = []
    for name, peer in timed.items():
        mine = timed.get(ROWS[name].beside)
        if mine is None:
            continue
        speed = ratio_by_round(mine["rounds"], peer["rounds"]).median
        cpu = mine["cpu_ms_per_image"] / max(peer["cpu_ms_per_image"], 1e-9)
        for row, ratios in ((mine, [f"{speed:.2f}", f"{cpu:.2f}"]), (peer, ["", ""])):
            what = f"`{row['name']}`: {row['what']}"
            cpu_ms = f"{row['cpu_ms_per_image']:.2f}"
            lines.append([what, str(row["views"]), _speed(row), cpu_ms, *ratios])
    header = ["row", "views", "images/s, median (slowest-fastest)", "CPU-ms an image"]
    header += ["images/s over the next row", "CPU time over the next row"]
    return "From the same rounds as the table above.\n\n" + _table(header, lines)


def stages_block(figures: dict[str, Any]) -> str:
    """Milliseconds an image by stage."""
    took = {name: value for name, value in figures["stages"].items() if name != "index"}
    total = sum(took.values())
    rows = [[name, f"{value:.3f}", f"{value / total:.0%}"] for name, value in took.items()]
    rows.append(["sum", f"{total:.3f}", ""])
    text = "The native path on one thread, both views, float32."
    return f"{text}\n\n{_table(['stage', 'ms an image', 'share'], rows)}"


def decode_block(figures: dict[str, Any]) -> str:
    """Decoding by kind and size of image."""
    options = figures["options"]
    rows = []
    for line in figures["decode"]:
        times = [
            f"{line['milliseconds'][way]['median']:.2f}" for way in ("libjpeg", "ours", "fast")
        ]
        gains = f"{line['gains']['ours']:.2f} / {line['gains']['fast']:.2f}"
        apart = f"{line['fast_mean']:.2f} / {line['fast_worst']}"
        rows.append([line["name"], *times, gains, f"{line['smaller']:.0%}", apart])
    header = ["images", "libjpeg-turbo, whole", "ours", "`--decode fast`"]
    header += ["decoding and resizing over libjpeg: ours / fast", "scaled down by fast"]
    header += ["levels apart with fast, mean / worst"]
    text = (
        f"`benchmarks.speed.decode`: milliseconds an image on one thread, medians of "
        f"{options['decode_rounds']} rounds over {options['decode_images']} images."
    )
    return f"{text}\n\n{_table(header, rows)}"


def cores_block(figures: dict[str, Any]) -> str:
    """Images/s of one process over cores."""
    found = figures["cores"]
    rows = []
    for cores in sorted({*map(int, found["measured"]), *map(int, found["simulated"])}):
        key = str(cores)
        measured = found["measured"].get(key)
        simulated = found["simulated"].get(key)
        cells = ["", "", ""]
        if measured is not None:
            cells[0] = Spread(**measured).text()
        if simulated is not None:
            cells[1:] = [f"{simulated:.0f}", f"{found['share'][key]:.0%}"]
        rows.append([key, *cells])
    text = (
        f"`benchmarks.speed.scaling`: an image takes the kernels {found['free_ms']:.2f} ms. "
        "Simulated: as many threads, whose kernels sleep for so long, so that this machine's CPUs "
        "have Python and reading to do."
    )
    header = ["cores", "images/s, measured", "simulated", "of ideal"]
    return f"{text}\n\n{_table(header, rows)}"


def step_block(figures: dict[str, Any]) -> str:
    """Seconds of the training step by stage, plain and ours."""
    options = figures["options"]
    rounds = figures["step"]["rounds"]
    ours_name = f"ours, {figures['step']['precision']}"

    def medians(side: str, stage: str) -> float:
        return Spread.of(seconds[stage] for seconds in rounds[side]).median

    rows = []
    for stage in STEP_STAGES:
        plain, ours = medians("plain", stage), medians("ours", stage)
        rows.append([stage, f"{plain:.3f}", f"{ours:.3f}", f"{plain / max(ours, 1e-9):.1f}"])
    totals = {side: [sum(seconds.values()) for seconds in rounds[side]] for side in rounds}
    ratio = ratio_by_round(totals["plain"], totals["ours"])
    step_s = [f"{Spread.of(totals[side]).median:.3f}" for side in ("plain", "ours")]
    rows.append(["step", *step_s, ratio.text(1)])
    speeds = [
        Spread.of(options["step_batch"] / seconds for seconds in totals[side]).text(2)
        for side in ("plain", "ours")
    ]
    rows.append(["images/s", *speeds, ""])
    floor_s = figures["step"]["operations"] / figures["step"]["product_per_s"]
    text = (
        f"`benchmarks.speed.step`: {options['trunk']} at {options['size']} pixels, "
        f"{options['step_batch']} images in one group, {options['rounds']} interleaved rounds, "
        f"medians. The multiplications alone take {floor_s:.2f} s at a large matrix product's "
        "speed."
    )
    return f"{text}\n\n{_table(['seconds', 'plain', ours_name, 'ratio'], rows)}"
