"""Model of the augmentation kernels' time, from their bytes and their machine code.

    python -m benchmarks.estimates.instructions --before fce6e04

Without a GPU. The bytes of a kernel take their share of the memory's rate, its instructions their
share of the multiprocessors' rate to issue them; the model is the longer of the two, in multiples
of the first. Each SASS instruction counts as often as the source line that it comes from is
executed (`nvdisasm -gi` names it): loops by their iterations, branches by the share of the views
that take them in `ViewConfig.maskco()`. Waits for memory, and for another thread, are not modelled.
"""

import ast
import functools
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass

import tyro

from benchmarks.estimates.compile import KERNELS, Variant, compile_variant, nvidia_tool
from maskco_fast.loaders import ViewConfig

MEMORY = 3.35e12
"""Bytes/s of an H100 SXM (datasheet)."""
SCHEDULERS = 132 * 4
"""Of an H100; each issues one instruction of a warp a clock."""
CLOCK = 1.7e9
"""Hz under load (assumed)."""
PIPES = {
    "comparisons, bits": (2, "FMNMX FSETP FSEL SEL ISETP LOP3 PRMT SHF IADD3 LEA PLOP3 I2FP F2FP"),
    "functions, conversions": (8, "MUFU F2I I2F F2F FRND"),
    "tensor cores": (4, "HMMA"),
}
"""Clocks that an instruction of a warp is assumed to occupy a pipe of its scheduler, where not one,
on compute capability 9.0."""
OPERATIONS = ("BRIGHTNESS", "CONTRAST", "SATURATION")
PACKAGE = "maskco_fast.kernels.augment"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print instructions, bytes and modelled time of each augmentation kernel."""

    before: str | None = None
    """A commit whose kernels are counted too; needs git."""
    architecture: int = 90
    """Compute capability, 10 · major + minor."""
    batch: int = 256
    """Images of two views."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One kernel, for a view that it works on."""

    kernel: str
    views: float
    """Share of the views that it works on."""
    bytes: float
    """Read and written, a view."""
    pixels: int
    """Of a view."""
    instructions: float
    """Issued by all warps, a view."""
    pipes: dict[str, float]
    """Clocks that they occupy each pipe of `PIPES`, a view."""

    @property
    def floor(self) -> float:
        """Seconds of the bytes."""
        return self.bytes / MEMORY

    @property
    def issue(self) -> float:
        """Seconds to issue the instructions."""
        return self.instructions / (SCHEDULERS * CLOCK)

    @property
    def pipe(self) -> tuple[str, float]:
        """The busiest pipe and its seconds."""
        name = max(self.pipes, key=lambda one: self.pipes[one])
        return name, self.pipes[name] / (SCHEDULERS * CLOCK)

    @property
    def multiple(self) -> float:
        """Modelled time over the floor."""
        return max(self.floor, self.issue, self.pipe[1]) / self.floor


def shares(kernel: str, config: ViewConfig) -> dict[str, float]:
    """Condition of a branch, as its source has it, to the share of a kernel's views that take it.

    Views that a kernel leaves at once are not its views. `gray_sums` stops before contrast, whose
    place in the order is random.
    """
    count = len(config.views)
    found = {
        "tl.load(row + JITTER * stride_pc) == 0": 0.0,
        "tl.load(row + JITTER * stride_pc) != 0": sum(v.jitter_probability for v in config.views),
        "tl.load(row + GRAY * stride_pc) != 0": sum(v.gray_probability for v in config.views),
        "tl.load(row + BLUR_SIGMA * stride_pc) > 0": sum(v.blur_probability for v in config.views),
        "tl.load(row + SOLARIZE * stride_pc) != 0": sum(
            v.solarize_probability for v in config.views
        ),
    }
    found = {condition: share / count for condition, share in found.items()}
    found |= {"sigma <= 0": 0.0, "channel == 2": 1 / 3}
    found["edge"] = 2 / -(-config.size // 32)  # columns of tiles
    found["solarize"] = found["tl.load(row + SOLARIZE * stride_pc) != 0"]
    found["reached == 0"] = 1.5 / 4
    before_contrast = kernel == "gray_sums"
    for name in OPERATIONS:
        found[f"operation == {name}"] = 1 / 3 if before_contrast else 1 / 4
    if before_contrast:
        found["operation == CONTRAST"] = 0.0
    return found


class Lines:
    """How often the lines of a kernel's modules are executed for each execution of their
    function."""

    def __init__(self, package: str, shares: dict[str, float], tiles: float) -> None:
        self._shares = shares
        self._tiles = tiles
        self._trees = {
            f"{name}.py": ast.parse(inspect.getsource(importlib.import_module(f"{package}.{name}")))
            for name in ("triton_kernels", "triton_colour", "triton_pixels")
        }
        self.weight = functools.cache(self._weight)

    def _weight(self, file: str, line: int) -> tuple[float, float]:
        """Executions: iterations of the loops around the line, and the share of its branches."""
        iterations, share = 1.0, 1.0
        node = self._trees.get(file)
        body: list[ast.stmt] = node.body if node else []
        while body:
            inside = [s for s in body if s.lineno <= line <= (s.end_lineno or 0)]
            if not inside:
                break
            statement = inside[0]
            body = getattr(statement, "body", [])
            if isinstance(statement, ast.For):
                iterations *= self._iterations(ast.unparse(statement.iter))
            elif isinstance(statement, ast.If):
                of_branch, body = self._branch(statement, line)
                share *= of_branch
        return iterations, share

    def _iterations(self, values: str) -> float:
        """Of a loop over `values`."""
        if values.startswith("tl.static_range"):
            return 1  # unrolled
        return 4 if values == "range(4)" else 3 * self._tiles

    def _branch(self, statement: ast.If, line: int) -> tuple[float, list[ast.stmt]]:
        """The share and the body of the branch that has the line; no body for a condition."""
        taken = 0.0
        while True:
            share = self._share(ast.unparse(statement.test))
            first = statement.body[0].lineno
            if line < first:
                return 1.0, []
            if line <= (statement.body[-1].end_lineno or 0):
                return share, statement.body
            taken += share
            *_, last = statement.orelse
            chained = len(statement.orelse) == 1 and isinstance(last, ast.If)
            if not chained:
                return (1.0 if share == 1 else 1 - taken), statement.orelse
            statement = last  # type: ignore[assignment]

    def _share(self, condition: str) -> float:
        """Of a branch's condition; 1 for those of compile time, whose names are in capitals."""
        names = re.findall(r"[A-Za-z_][\w.]*", condition.replace("tl.uint8", "U"))
        if all(name.isupper() or name in ("len", "channels") for name in names):
            return 1.0
        if condition not in self._shares:
            raise KeyError(f"State the share of views with `{condition}` in `shares`.")
        return self._shares[condition]


@dataclass(frozen=True)
class Instruction:
    """One instruction of the machine code."""

    text: str
    """Without its predicate."""
    predicate: str
    frames: tuple[tuple[str, int], ...]
    """File and line, innermost first."""
    labels: tuple[str, ...]
    """Branch targets just before it."""

    @property
    def name(self) -> str:
        """Such as `FADD`."""
        return self.text.split()[0].split(".")[0]


def disassemble(cubin: bytes) -> list[Instruction]:
    """Machine code with its source lines, without what follows the kernel's end."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [nvidia_tool("nvdisasm"), "-c", "-gi", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    code: list[Instruction] = []
    frames: list[tuple[str, int]] = []
    labels: list[str] = []
    fresh = True  # the next source line begins a new list of frames
    for text in listing.splitlines():
        if source := re.search(r'//## File "(.*?)", line (\d+)', text):
            frames = [] if fresh else frames
            frames.append((pathlib.Path(source[1]).name, int(source[2])))
            fresh = False
        elif label := re.match(r"(\.L_x_\d+):", text):
            labels.append(label[1])
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?\w+ +)?(.*?)\s*;", text):
            fresh = True
            code.append(
                Instruction(found[2], (found[1] or "").strip(), tuple(frames), tuple(labels))
            )
            labels = []
    ends = [n for n, one in enumerate(code) if one.name == "EXIT" and not one.predicate]
    return code[: max([*ends, *(last for _, last in _loops(code))]) + 1]


def _loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """First and last instruction of each loop: branches backwards, without the guard at the end
    that branches to itself."""
    place = {label: n for n, one in enumerate(code) for label in one.labels}
    found = []
    for last, one in enumerate(code):
        target = re.match(r"BRA.*`\((\.L_x_\d+)\)", one.text)
        if target and place.get(target[1], last) < last:
            found.append((place[target[1]], last))
    return found


def executed(code: list[Instruction], lines: Lines) -> Counter[str]:
    """Instructions that a warp executes in the mean, by name."""
    loops = _loops(code)
    counts: Counter[str] = Counter()
    for number, one in enumerate(code):
        weight = 1.0
        looped = any(first <= number <= last for first, last in loops)
        for frame in one.frames:
            iterations, share = lines.weight(*frame)
            weight *= share * (iterations if looped else 1)
        if one.name != "NOP":
            counts[one.name] += weight  # type: ignore[assignment]
    return counts


def model(
    kernel: str, config: ViewConfig, *, architecture: int = 90, package: str = PACKAGE
) -> Model:
    """Model one kernel of a package, for views of `config.size` and float16 output."""
    launcher = importlib.import_module(f"{package}.triton")
    size = config.size
    of = shares(kernel, config)
    jitter = of["tl.load(row + JITTER * stride_pc) != 0"]
    blurred = of["tl.load(row + BLUR_SIGMA * stride_pc) > 0"]
    view = 3 * size**2
    rows = -(-size // launcher.TILE)
    tiles = getattr(launcher, "BLUR_TILES", rows)
    programs = rows * -(-rows // tiles) if kernel == "blur" else launcher.programs(size)
    compiled = compile_variant(
        Variant(kernel=kernel, architecture=architecture, size=size), package=package
    )
    code = disassemble(compiled.cubin)
    counts = executed(code, Lines(package, of, rows / -(-rows // tiles)))
    warps = programs * compiled.warps
    return Model(
        kernel=kernel,
        views={"gray_sums": jitter, "colour": 1.0, "blur": blurred}[kernel],
        bytes={
            "gray_sums": view,
            "colour": view + blurred * view + (1 - blurred) * 2 * view,
            "blur": 3 * view,
        }[kernel],
        pixels=size**2,
        instructions=warps * counts.total(),
        pipes={
            pipe: warps * clocks * sum(counts[name] for name in names.split())
            for pipe, (clocks, names) in PIPES.items()
        },
    )


def kernels_of(commit: str, folder: pathlib.Path) -> str:
    """Unpack a commit's kernels under `folder`; returns the name of the package of augmentation."""
    archive = folder / "kernels.tar"
    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run(["git", "-C", root, "archive", "-o", archive, commit, "kernels"], check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    name = f"kernels_of_{re.sub(r'[^a-z0-9]', '_', commit.lower())}"
    (folder / "kernels").rename(folder / name)
    sys.path.insert(0, str(folder))
    return f"{name}.augment"


def table(models: list[Model], batch: int) -> str:
    """Each kernel and all of them, for a batch of two views an image."""
    lines = [
        "| kernel | instructions a pixel | µs: bytes | instructions | busiest pipe "
        "| times the bytes |",
        "|---|---|---|---|---|---|",
    ]
    totals = [0.0, 0.0]
    for one in models:
        views = 2 * batch * one.views
        slowest = one.multiple * one.floor
        totals[0] += views * one.floor * 1e6
        totals[1] += views * slowest * 1e6
        name, pipe = one.pipe
        lines.append(
            f"| `{one.kernel}` | {32 * one.instructions / one.pixels:.0f} "
            f"| {views * one.floor * 1e6:.0f} | {views * one.issue * 1e6:.0f} "
            f"| {views * pipe * 1e6:.0f}, {name} | {one.multiple:.1f} |"
        )
    lines.append(
        f"| all | | {totals[0]:.0f} | | {totals[1]:.0f} in all | {totals[1] / totals[0]:.1f} |"
    )
    return "\n".join(lines)


def main(options: Options) -> int:
    """Print the table of this checkout's kernels, and of the commit's."""
    config = ViewConfig.maskco()
    with tempfile.TemporaryDirectory() as folder:
        packages = {"this checkout": PACKAGE}
        if options.before is not None:
            before = kernels_of(options.before, pathlib.Path(folder))
            packages = {options.before: before, **packages}
        for name, package in packages.items():
            models = [
                model(kernel, config, architecture=options.architecture, package=package)
                for kernel in KERNELS
            ]
            print(f"{name}, sm_{options.architecture}, {options.batch} images of two views\n")
            print(table(models, options.batch) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
