"""Checks and times the device half on your GPU, and writes a report to attach to an issue.

    python -m benchmarks.gpu.check --report gpu-report
    python -m benchmarks.gpu.check --only values --json values.json

Needs a CUDA device. It compiles the kernels for the present architectures,
compares their values with torchvision's operators, runs the tests marked `gpu`, and times the
Triton passes beside a copy of as many bytes, the plain torch version, and other libraries on the
same batch. Our times are reported only where the values agree.
"""

import dataclasses
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.estimates.compile import table
from benchmarks.gpu.lines import Lines
from benchmarks.gpu.peers import PEERS
from maskco_fast.bench.harness import machine
from maskco_fast.kernels.augment import torch as augment_torch
from maskco_fast.kernels.augment import triton as augment_triton
from maskco_fast.kernels.augment.reference import augment_reference, finish_reference
from maskco_fast.kernels.plan import BLUR_SIGMA, GRAY, JITTER, SOLARIZE, VIEW_FLOATS, plan
from maskco_fast.kernels.torch_formats import FORMATS
from maskco_fast.kernels.views import IMAGENET_STD, ViewConfig, plan_dtype

VIEW_DTYPE = plan_dtype(1, 0)["views"].base
HALF_UNIT = {dtype: form.half_unit for dtype, form in FORMATS.items() if form.normalised}
ONE_LEVEL = 1.001 / 255 / min(IMAGENET_STD)
"""One level of 255 after normalisation, at most."""
MAX_SHARE = 1e-3
"""Largest share of the levels that may differ from torchvision's by one."""
AFTER_HUE = 6
"""Largest difference in levels: one level's difference at the hue operator grows by MaskCo's later
factors, at most 1.4 each."""
MAX_GROWN_SHARE = 1e-5
"""Largest share of the levels that may differ by more than one."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check and time the device half on this GPU."""

    report: pathlib.Path = pathlib.Path("gpu-report")
    """The report's name, without the endings .json and .md."""
    only: Literal["all", "values", "times"] = "all"
    """values: compare with torchvision; times: also time every row, ours if the values agree; all:
    also compile the kernels for other architectures and run the tests marked `gpu`."""
    json: pathlib.Path | None = None
    """Where the results are written after each one, in place of the report."""
    device: str = "cuda"
    """cuda, or cpu for a dry run, in which Triton's rows say that they cannot run."""
    seconds_a_row: float = 2.0
    """Most for a row's timings, of which there are at least three."""
    batch: int = 256
    """Images a batch, two views each."""
    size: int = 224
    """Side of the views, pixels."""
    checked: int = 64
    """Images whose values are compared with torchvision's, a view at a time on the CPU."""
    repeats: int = 20
    """Timings of each row; the median is reported."""
    calls: int = 10
    """Calls in a timing."""
    memory_tb_per_s: float = 3.35
    """Bandwidth of the device's memory, for the floor (datasheet; 3.35 is the H100 SXM's)."""
    tests: bool = True
    """Also run the tests marked `gpu`."""


@dataclass
class Row:
    """One way to augment the batch."""

    name: str
    ms: float | None = None
    """Median milliseconds a batch, launches included; the device is idle before and after."""
    spread: tuple[float, float] | None = None
    """Fastest and slowest timing, milliseconds."""
    gb_per_s: float | None = None
    """Bytes that must move (views in, float16 out) over the time."""
    of_floor: float | None = None
    """Time of those bytes at the memory's bandwidth, over the row's time."""
    note: str = ""


@dataclass
class Report:
    """The contents of the report."""

    environment: dict[str, str]
    values: dict[str, str] = field(default_factory=dict)
    green: bool = False
    """Whether all values agree."""
    compiled: str = ""
    tests: str = ""
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Problem:
    """The batch, on the device: views (2, N, S, S, 3), plan rows (2, N, VIEW_FLOATS) and the
    query's boxes (N, 4)."""

    views: torch.Tensor
    rows: torch.Tensor
    boxes: torch.Tensor


def make_problem(options: Options, device: str) -> Problem:
    """Smooth pictures with noise, and MaskCo's plans for photographs of 375 x 500 pixels."""
    config = ViewConfig.maskco(options.size)
    count = options.batch
    drawn = plan(config, 0, 0, np.arange(count), np.full(count, 375), np.full(count, 500))
    rows = np.ascontiguousarray(
        drawn[:, : 2 * VIEW_FLOATS].reshape(count, 2, VIEW_FLOATS).swapaxes(0, 1)
    )
    boxes = np.ascontiguousarray(drawn.view(config.plan_dtype)[:, 0]["masked_box"])
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2 * count, 3, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(
        coarse, options.size, mode="bicubic", align_corners=True
    )
    noisy = 255 * smooth + 6 * torch.randn(smooth.shape, generator=generator)
    views = noisy.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    views = views.view(2, count, options.size, options.size, 3)
    return Problem(
        views.to(device), torch.from_numpy(rows).to(device), torch.from_numpy(boxes).to(device)
    )


def environment(device: str) -> dict[str, str]:
    """Machine, versions and, on CUDA, the device."""
    found = {
        "machine": machine(),
        "torch": torch.__version__,
        "cuda of torch": str(torch.version.cuda),
    }
    if importlib.util.find_spec("triton") is not None:
        import triton

        found["triton"] = triton.__version__
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = (
            f"{properties.name}, {properties.multi_processor_count} SMs, "
            f"{properties.total_memory >> 20} MB"
        )
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,power.limit,clocks.max.sm,clocks.max.mem",
            "--format=csv,noheader",
        ]
        try:
            found["nvidia-smi"] = subprocess.run(
                query, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            found["nvidia-smi"] = f"failed: {error}"
    return found


def check_values(
    options: Options, problem: Problem, augment: Callable[..., torch.Tensor]
) -> dict[str, str]:
    """Compare `augment` with torchvision's operators on the first images: "ok, …" or "RED, …" by
    dtype."""
    count = min(options.checked, options.batch)
    part = Problem(
        problem.views[:, :count].contiguous(), problem.rows[:, :count], problem.boxes[:count]
    )
    views, rows, boxes = (tensor.cpu().numpy() for tensor in (part.views, part.rows, part.boxes))
    levels = np.stack(
        [
            np.stack(
                [
                    augment_reference(view, row.view(VIEW_DTYPE)[0])
                    for view, row in zip(views[v], rows[v])
                ]
            )
            for v in range(2)
        ]
    )
    verdicts = {}
    out = augment(part.views, part.rows, dtype=torch.uint8).movedim(-3, -1).cpu().numpy()
    apart = np.abs(out.astype(int) - levels)
    good = (
        apart.max() <= AFTER_HUE
        and (apart > 0).mean() <= MAX_SHARE
        and (apart > 1).mean() <= MAX_GROWN_SHARE
    )
    verdicts["levels"] = (
        f"{'ok' if good else 'RED'}, at most {apart.max()} apart, {(apart > 0).mean():.2e} of them"
    )
    boxed = [[finish_reference(level, box) for level, box in zip(levels[0], boxes)]]
    expected = np.stack([*boxed, [finish_reference(level) for level in levels[1]]])
    for dtype, half_unit in HALF_UNIT.items():
        out = (
            augment(part.views, part.rows, masked_box=part.boxes, dtype=dtype)
            .movedim(-3, -1)
            .float()
            .cpu()
            .numpy()
        )
        apart, rounding = np.abs(out - expected), 1e-6 + 1.001 * half_unit * np.abs(expected)
        wrong = apart > rounding
        good = (
            wrong.mean() <= MAX_SHARE and (apart > rounding + ONE_LEVEL).mean() <= MAX_GROWN_SHARE
        )
        good &= (apart <= rounding + AFTER_HUE * ONE_LEVEL).all() and (
            (out == 0) == (expected == 0)
        ).all()
        verdicts[str(dtype)] = (
            f"{'ok' if good else 'RED'}, {wrong.mean():.2e} of them beyond rounding"
        )
    return verdicts


def synchronize(device: str) -> None:
    """Wait until the device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    name: str, call: Callable[[], Any], options: Options, device: str, floor_bytes: int
) -> Row:
    """Time one row; a failure becomes its note."""
    try:
        for _ in range(3):  # warm-up: compiles and fills caches
            call()
        synchronize(device)
        times: list[float] = []
        ends = time.perf_counter() + options.seconds_a_row
        while len(times) < options.repeats and (len(times) < 3 or time.perf_counter() < ends):
            began = time.perf_counter()
            for _ in range(options.calls):
                call()
            synchronize(device)
            times.append(1000 * (time.perf_counter() - began) / options.calls)
    except Exception as error:  # one library's failure is that row's result, and goes in the report
        return Row(name, note=f"failed: {type(error).__name__}: {error}"[:500])
    ms = statistics.median(times)
    floor_ms = floor_bytes / options.memory_tb_per_s / 1e9
    return Row(name, ms, (min(times), max(times)), floor_bytes / ms / 1e6, floor_ms / ms)


def pinned_copy(options: Options, problem: Problem) -> Row:
    """Copy of the batch's uint8 views from page-locked memory, as for the next batch during a
    step."""
    source, target = problem.views.cpu().pin_memory(), torch.empty_like(problem.views)
    row = measure(
        "copy from pinned memory",
        lambda: target.copy_(source, non_blocking=True),
        options,
        "cuda",
        source.nbytes,
    )
    row.of_floor = None  # the floor holds for the device's memory, not for the bus
    return row


def graphed(call: Callable[[], Any]) -> Callable[[], None]:
    """The call captured in a CUDA graph, which leaves out the launches."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def triton_calls(
    options: Options, problem: Problem, device: str
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Our rows by name; each value makes the row's call."""
    columns = torch.tensor([JITTER, GRAY, BLUR_SIGMA, SOLARIZE], device=device)
    nothing = problem.rows.index_fill(-1, columns, 0)
    everything = problem.rows.index_fill(-1, columns[:1], 1).index_fill(-1, columns[2:3], 1.0)

    def ours(
        views: int, rows: torch.Tensor, dtype: torch.dtype = torch.float16
    ) -> Callable[[], torch.Tensor]:
        workspace = augment_triton.Workspace.allocate(options.size, device, views=views)
        out = augment_torch.empty_output(problem.views, dtype)
        return lambda: augment_triton.augment(
            problem.views, rows, workspace=workspace, masked_box=problem.boxes, dtype=dtype, out=out
        )

    total = 2 * options.batch
    rows = {
        f"triton, {views} views a launch": views
        for views in sorted({64, 128, 256, total})
        if views <= total
    }
    return {
        **{name: (lambda views=views: ours(views, problem.rows)) for name, views in rows.items()},  # type: ignore[misc]
        "triton, CUDA graph": lambda: graphed(ours(min(128, total), problem.rows)),
        "triton, CUDA graph, one launch of all": lambda: graphed(ours(total, problem.rows)),
        "triton, bfloat16": lambda: ours(min(128, total), problem.rows, torch.bfloat16),
        "triton, float32": lambda: ours(min(128, total), problem.rows, torch.float32),
        "triton, CUDA graph, normalisation alone": lambda: graphed(ours(total, nothing)),
        "triton, CUDA graph, all jittered and blurred": lambda: graphed(ours(total, everything)),
    }


def time_rows(options: Options, problem: Problem, device: str, green: bool) -> Iterator[Row]:
    """Time every row, ours only where the values are green."""
    floor = 9 * options.size**2 * 2 * options.batch  # each channel: one byte in, two out
    source = torch.empty(floor // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    out = augment_torch.empty_output(problem.views, torch.float16)
    options_of_plain: dict[str, Any] = {
        "masked_box": problem.boxes,
        "max_blur_sigma": 2.0,
        "out": out,
    }
    yield measure("copy of as many bytes", lambda: target.copy_(source), options, device, floor)
    if device == "cuda":
        yield pinned_copy(options, problem)
    reason = augment_triton.unusable(device)
    if reason is None and green:
        for name, make in triton_calls(options, problem, device).items():
            yield _made(name, make, options, device, floor)
    else:
        yield Row("triton", note=reason or "not timed: its values are red")

    def plain(call: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
        return lambda: call(problem.views, problem.rows, **options_of_plain)

    yield _made("plain torch, eager", lambda: plain(augment_torch.augment), options, device, floor)
    for name, peer in PEERS.items():
        yield _made(name, lambda peer=peer: peer(problem.views), options, device, floor)  # type: ignore[misc]
    if options.only == "all":  # last: Inductor compiles for a minute
        compiled = torch.compile(augment_torch.augment, fullgraph=True)
        yield _made("plain torch, torch.compile", lambda: plain(compiled), options, device, floor)


def _made(
    name: str, make: Callable[[], Callable[[], Any]], options: Options, device: str, floor: int
) -> Row:
    """Make and time a row; where it cannot be made, its note has the reason."""
    try:
        call = make()
    except Exception as error:  # a library that is missing or refuses is that row's result
        return Row(name, note=f"not made: {type(error).__name__}: {error}"[:500])
    return measure(name, call, options, device, floor)


def run_tests() -> str:
    """Run the tests marked `gpu`; returns the exit code and the last line of their output."""
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(root / "tests")]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).strip().splitlines() or ["no output"]
    return f"exit code {result.returncode}: " + (
        lines[-1] if result.returncode == 0 else "\n".join(lines[-60:])
    )


def check(options: Options, device: str) -> Report:
    """Values, timings, compilation and tests on `device`, as far as `options.only` asks for them.

    Where Triton cannot run, the values are those of the plain torch version.
    """
    report = Report(environment(device))
    lines = Lines(options.json)
    lines.note("environment", report.environment)
    problem = make_problem(options, device)
    augment = augment_triton.augmenter(options.size, device)
    report.values = check_values(options, problem, augment)
    report.green = all(verdict.startswith("ok") for verdict in report.values.values())
    lines.note("values", report.values)
    if options.only == "values":
        return report
    for row in time_rows(options, problem, device, report.green):
        report.rows.append(row)
        lines.note(row.name, dataclasses.asdict(row))
    if options.only == "all" and importlib.util.find_spec("triton") is not None and options.tests:
        report.compiled = table()
        report.tests = run_tests()
    return report


def markdown(report: Report, options: Options) -> str:
    """The report as Markdown."""
    lines = [
        "# Device check",
        "",
        *(f"- {name}: {value}" for name, value in report.environment.items()),
    ]
    lines += [
        "",
        f"{options}",
        "",
        "## Values",
        "",
        *(f"- {name}: {text}" for name, text in report.values.items()),
    ]
    lines += [
        "",
        "## Compiled",
        "",
        report.compiled,
        "",
        "## Tests",
        "",
        report.tests,
        "",
        "## Times",
        "",
    ]
    lines += [
        "| row | ms | fastest-slowest | GB/s of what must move | of the floor | note |",
        "|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        numbers = ["", "", "", ""]
        if row.ms is not None and row.spread is not None:
            share = "" if row.of_floor is None else f"{row.of_floor:.3f}"
            numbers = [
                f"{row.ms:.3f}",
                f"{row.spread[0]:.3f}-{row.spread[1]:.3f}",
                f"{row.gb_per_s:.0f}",
                share,
            ]
        lines.append(
            "| "
            + " | ".join([row.name, *numbers, row.note.replace("|", "/").replace("\n", " ")])
            + " |"
        )
    return "\n".join(lines) + "\n"


def main(options: Options) -> int:
    """Check, print and write the report.

    Returns 0 where values and tests are green, 1 where one is not, 2 without a CUDA device.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        built = (
            f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        )
        print(
            f"gpu-check needs a CUDA device; torch {torch.__version__}, {built}, sees none here",
            file=sys.stderr,
        )
        return 2
    report = check(options, options.device)
    if options.json is not None:
        return int(not report.green)
    text = markdown(report, options)
    options.report.with_suffix(".md").write_text(text)
    options.report.with_suffix(".json").write_text(
        json.dumps(dataclasses.asdict(report), indent=1) + "\n"
    )
    print(text)
    print(f"written to {options.report}.md and {options.report}.json")
    return (
        0 if report.green and (report.tests.startswith("exit code 0") or not options.tests) else 1
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
