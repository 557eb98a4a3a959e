"""Measures and redraws the tables and pictures of docs/performance.md, all from one JSON file.

    python -m benchmarks.figures --shards 'in1k-sample-{0000..0003}.tar' --out docs
    python -m benchmarks.figures --from-json --out docs     # redraw without measuring

Measures rows of `maskco-fast bench`, the native path's stages, decoding, scaling over cores and the
training step: about ten minutes on two idle cores. Writes OUT/performance.json after each part,
then the blocks between `<!-- generated: NAME -->` and `<!-- end -->` in OUT/performance.md, and
bench.png, stages.png and cores.png beside it.
"""

import json
import pathlib
import sys
import time
from dataclasses import dataclass
from typing import Any

import tyro

from benchmarks.figures import measure, pictures, tables
from maskco_fast.errors import FAILURE, SUCCESS, report_user_errors, say
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.files import write_atomically, write_json


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure and draw the performance figures."""

    shards: tuple[str, ...] = ()
    """Tar shards or folders of photographs."""
    out: pathlib.Path = pathlib.Path("docs")
    """Folder of performance.json, performance.md and the pictures."""
    from_json: bool = False
    """Redraw from OUT/performance.json without measuring."""
    parts: tuple[str, ...] = tuple(measure.PARTS)
    """What to measure: bench, stages, decode, cores, step. Other parts' blocks stay unchanged."""
    ffcv_ssl: pathlib.Path | None = None
    """A checkout of FFCV-SSL that has been built in place, for its row."""
    rows: str = ",".join(measure.ROWS)
    """Rows of `maskco-fast bench`, separated by commas."""
    rounds: int = 5
    """Interleaved rounds of the bench and the training step."""
    seconds: float = 3.0
    """Approximate time limit of a bench row's round."""
    images: int | None = None
    """Maximum images a round of the bench; None for all."""
    batch_size: int = 50
    """Images a batch of the bench."""
    size: int = 224
    """Side of the views of the bench, pixels."""
    decode_images: int = 60
    """Images of each kind of the decode table."""
    decode_rounds: int = 3
    """Rounds of the decode table."""
    step_batch: int = 32
    """Images of a training step."""
    product_side: int = 3072
    """Side of the matrix product that the step is compared with."""
    trunk: str = "resnet50"
    """Network of the training step."""

    def __post_init__(self) -> None:
        if not self.from_json and not self.shards:
            raise InvalidInput("`shards` must name at least one shard; or pass --from-json")
        unknown = [part for part in self.parts if part not in measure.PARTS]
        if unknown:
            raise InvalidInput(
                f"`parts` must be among {', '.join(measure.PARTS)}, got {', '.join(unknown)}"
            )


def measure_parts(options: Options, path: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """The figures, written to `path` after each part, and the parts that failed."""
    figures = measure.conditions(options)
    failed = []
    began = time.monotonic()
    for part in options.parts:
        minutes = (time.monotonic() - began) / 60
        say(f"{minutes:.1f} min: measuring {part}")
        try:
            figures[part] = measure.PARTS[part](options)
        except Exception as error:  # the other parts are still worth measuring
            say(f"{part} failed: {type(error).__name__}: {error}")
            failed.append(part)
        write_json(path, figures)
    say(f"{(time.monotonic() - began) / 60:.1f} min: measured; figures in {path}")
    return figures, failed


def write_document(path: pathlib.Path, blocks: dict[str, str]) -> None:
    """Replace the generated blocks of the document, or begin one where there is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else tables.empty_document(blocks)
    for name, block in blocks.items():
        replaced = tables.replace_block(text, name, block)
        if replaced is None:
            say(f"{path} has no block `{tables.begin_mark(name)}`; its table goes to stdout")
            print(f"{block}\n")
        else:
            text = replaced
    with write_atomically(path, "w") as file:
        file.write(text)


def main(options: Options) -> int:
    """Measure unless `from_json`, then write the document and draw the pictures."""
    path = options.out / "performance.json"
    failed: list[str] = []
    if options.from_json:
        figures = json.loads(path.read_text(encoding="utf-8"))
    else:
        figures, failed = measure_parts(options, path)
    write_document(options.out / "performance.md", tables.blocks(figures))
    for name in pictures.draw(figures, options.out):
        say(f"{options.out / name}")
    return FAILURE if failed else SUCCESS


if __name__ == "__main__":
    sys.exit(report_user_errors(lambda: main(tyro.cli(Options, description=__doc__))))
