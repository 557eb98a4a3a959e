"""Budget of one GPU: how many images/s it needs, and how many CPU cores each loader takes for them.

    python -m benchmarks.estimates.budget --shards 'in1k-sample-{0000..0003}.tar'

A written model; each number is printed with its origin. Counted: bytes and floating-point
operations, from the shapes, the view configuration's probabilities and torch's counters. Measured:
each loader's CPU-milliseconds an image up to the seam on this machine, and the rows of
`maskco-fast bench --json`. Datasheet: NVIDIA's figures for the H100 SXM. Assumed: what only a GPU
could show, each with an option.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.transforms.functional as F
import tyro
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from maskco_fast.bench.harness import machine
from maskco_fast.demo.shards import demo_shards
from maskco_fast.kernels.augment import torch as augment_torch
from maskco_fast.kernels.augment.triton import Workspace
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.plan import FACTORS, ORDER, VIEW_FLOATS, plan_columns
from maskco_fast.kernels.views import IMAGENET_MEAN, IMAGENET_STD
from maskco_fast.loaders import LOADERS, Dataset, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.device_stage import SLOTS
from maskco_fast.loaders.system.files import write_json
from maskco_fast.methods.maskco import MaskCoConfig
from maskco_fast.networks.config import ModelConfig
from maskco_fast.networks.encoders import RegionEncoder

SEAM_DEVICE = "meta"
"""On any device but the CPU a loader's host part ends at the seam; "meta" needs no hardware."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print the budget of one GPU."""

    shards: tuple[str, ...] = ()
    """Photographs to time the loaders on. Default: drawn scenes with sides of 375 to 500 pixels,
    which decode faster than photographs."""
    loaders: tuple[str, ...] = tuple(LOADERS)
    """Loaders to time; one whose packages are missing is reported and left out."""
    rounds: int = 5
    """Epochs of each loader that are counted. The median is used."""
    bench: pathlib.Path | None = None
    """A JSON file of `maskco-fast bench`: further loaders' CPU-milliseconds an image."""
    cpu_ms: tuple[str, ...] = ()
    """Further loaders, as NAME=MILLISECONDS."""
    batch: int = 256
    """Images a batch."""
    peak_tflops: float = 989.4
    """Dense bfloat16 peak (datasheet, H100 SXM)."""
    memory_tb_per_s: float = 3.35
    """Device memory bandwidth (datasheet, H100 SXM)."""
    pcie_gb_per_s: float = 50.0
    """Transfers from pinned memory over PCIe 5 x16 (assumed; the bus itself reaches 63)."""
    usage: tuple[float, float] = (0.08, 0.20)
    """Shares of the peak that the step reaches (assumed): a plain channels-last autocast ResNet-50,
    and a fully tuned one."""
    json: pathlib.Path | None = None
    """Write the lines here as JSON."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One number of the budget."""

    name: str
    value: float
    unit: str
    origin: str
    """counted, measured, datasheet, assumed or derived."""


@dataclass(frozen=True)
class Host:
    """One loader's cost on the host."""

    name: str
    cpu_ms: tuple[float, ...]
    """CPU-milliseconds an image, by round."""
    origin: str
    """measured or given."""

    @property
    def median(self) -> float:
        """Median CPU-milliseconds an image."""
        return statistics.median(self.cpu_ms)


class ByteCounter(TorchDispatchMode):
    """Counts the bytes of the tensors that operators read and write. Views of a tensor are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        storages = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        if func._schema.is_mutable or not all(
            out.untyped_storage().data_ptr() in storages for out in outputs
        ):
            self.bytes += sum(map(_bytes, inputs + outputs))
        return result


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [tensor for part in value for tensor in _tensors(part)]
        if isinstance(value, list | tuple)
        else []
    )


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements; of its storage where the tensor is expanded."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def count_bytes(call: Callable[[], object]) -> int:
    """Bytes that the operators of one call read and write."""
    with ByteCounter() as counter:
        call()
    return counter.bytes


def torchvision_bytes(config: ViewConfig) -> float:
    """Bytes a view moved by torchvision's functional operators, one after the other.

    The mean over the configuration's views; each operator counts with its probability.
    """
    image = torch.randint(0, 256, (3, config.size, config.size), dtype=torch.uint8)
    jitter = (
        count_bytes(lambda: F.adjust_brightness(image, 1.2))
        + count_bytes(lambda: F.adjust_contrast(image, 1.2))
        + count_bytes(lambda: F.adjust_saturation(image, 1.2))
        + count_bytes(lambda: F.adjust_hue(image, 0.05))
    )
    gray = count_bytes(lambda: F.rgb_to_grayscale(image, 3).contiguous())
    blur = count_bytes(lambda: F.gaussian_blur(image, [7, 7], [1.0, 1.0]))
    solarize = count_bytes(lambda: F.solarize(image, 128))

    def finish() -> torch.Tensor:
        values = F.normalize(
            F.convert_image_dtype(image, torch.float32), list(IMAGENET_MEAN), list(IMAGENET_STD)
        )
        return values[None].to(torch.float16, memory_format=torch.channels_last)

    total = sum(
        view.jitter_probability * jitter
        + view.gray_probability * gray
        + view.blur_probability * blur
        + view.solarize_probability * solarize
        for view in config.views
    )
    return total / len(config.views) + count_bytes(finish)


def plain_torch_bytes(config: ViewConfig) -> float:
    """Bytes a view moved by `augment_torch`, eager: it computes every operator for every view and
    selects."""
    rows = torch.zeros(4, VIEW_FLOATS)
    rows[:, ORDER : ORDER + 4] = torch.arange(4.0)
    rows[:, FACTORS : FACTORS + 3] = 1.0
    views = torch.zeros(4, config.size, config.size, 3, dtype=torch.uint8)
    return (
        count_bytes(
            lambda: augment_torch.augment(views, rows, max_blur_sigma=config.max_blur_sigma)
        )
        / 4
    )


def fused_bytes(config: ViewConfig) -> tuple[float, float]:
    """Bytes a view moved by the three Triton passes, and the least possible; float16 output."""
    image = 3 * config.size**2
    jitter = sum(view.jitter_probability for view in config.views) / len(config.views)
    blur = sum(view.blur_probability for view in config.views) / len(config.views)
    return image * (jitter + 1 + 2 * blur + 2), image * 3.0


def step_gflops(batch: int = 4) -> float:
    """GFLOP an image of the paper's encoders: query forward and backward, key forward."""
    method = MaskCoConfig()
    with FakeTensorMode():  # shapes alone: no weights, no arithmetic
        encoder = RegionEncoder(
            ModelConfig(group_size=batch),
            mph_blocks=method.mph_blocks,
            roi_sampling_ratio=method.roi_sampling_ratio,
            roi_aligned=method.roi_aligned,
        )
        images = torch.empty(batch, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            encoder(images, torch.empty(batch, 1, 4)).sum().backward()
            with torch.no_grad():
                encoder(images, torch.empty(batch, 17, 4))
    return counter.get_total_flops() / batch / 1e9


def seam_times(options: Options, dataset: Dataset) -> list[Host]:
    """CPU time to the seam of each installed loader, in interleaved epochs; the first is not
    counted."""
    times: dict[str, list[float]] = {name: [] for name in options.loaders}
    for _ in range(1 + options.rounds):
        for name in list(times):
            try:
                times[name].append(seam_cpu_ms(dataset, name))
            except ImportError as error:
                print(f"{name}: {error}", file=sys.stderr)
                del times[name]
    return [
        Host(f"{name}, to the seam", tuple(found[1:]), "measured") for name, found in times.items()
    ]


def seam_cpu_ms(dataset: Dataset, backend: str) -> float:
    """CPU-milliseconds of this process an image, over one epoch to the seam."""
    batch_size = min(50, len(dataset))
    with make_loader(
        dataset, batch_size, backend=backend, device=SEAM_DEVICE, rank=0, world_size=1
    ) as loader:
        # The loader's own iterator would add the device stage, which costs the host time even on a
        # device that computes nothing.
        rendered = loader._run(loader._requests(0, 1, len(loader)))
        began = time.process_time()
        images = sum(len(one.request.indices) for one in rendered)
        return 1000 * (time.process_time() - began) / images


def hosts(options: Options, dataset: Dataset) -> list[Host]:
    """CPU-milliseconds an image of every known loader: timed here, from a bench, and given."""
    found = seam_times(options, dataset)
    if options.bench is not None:
        rows = json.loads(options.bench.read_text())
        found += [
            Host(f"{row['name']}, by the bench", (row["cpu_ms_per_image"],), "measured")
            for row in rows
            if row.get("cpu_ms_per_image")
        ]
    for text in options.cpu_ms:
        name, _, value = text.rpartition("=")
        if not name:
            raise InvalidInput(f"`cpu_ms` must have the form NAME=MILLISECONDS, got {text!r}")
        found.append(Host(name, (float(value),), "given"))
    return found


def budget(options: Options) -> list[Line]:
    """All lines except those of the hosts."""
    config = ViewConfig.maskco()
    views = len(config.views)
    passes, floor = (views * value for value in fused_bytes(config))
    transfer = views * 3 * config.size**2 + 4 * plan_columns(config.plan_dtype)
    workspace = Workspace.allocate(config.size, "meta")
    output = 2 * views * 3 * config.size**2
    held = (
        options.batch * (SLOTS * transfer + output)
        + workspace.sums.nbytes
        + workspace.levels.nbytes
    ) / 1e6
    gflops = step_gflops()
    slow, fast = (options.peak_tflops * 1000 * usage / gflops for usage in options.usage)
    memory = options.memory_tb_per_s * 1e12

    def us(amount: float) -> float:
        return options.batch * amount / memory * 1e6

    def line(name: str, value: float, unit: str, origin: str) -> Line:
        return Line(name=name, value=value, unit=unit, origin=origin)

    return [
        line(
            "host to device, an image: two uint8 views and the plan", transfer, "bytes", "counted"
        ),
        line(
            "augmentation: torchvision's operators one by one, an image",
            views * torchvision_bytes(config),
            "bytes",
            "counted",
        ),
        line(
            "augmentation: plain torch, batched, eager, an image",
            views * plain_torch_bytes(config),
            "bytes",
            "counted",
        ),
        line("augmentation: the Triton passes, an image", passes, "bytes", "counted"),
        line("augmentation: views in, output out, an image", floor, "bytes", "counted"),
        line("device memory held: slots, workspace and one output", held, "MB", "counted"),
        line(
            "two encoders, query forward and backward, key forward, an image",
            gflops,
            "GFLOP",
            "counted",
        ),
        line("device memory", options.memory_tb_per_s, "TB/s", "datasheet"),
        line("dense bfloat16", options.peak_tflops, "TFLOP/s", "datasheet"),
        line("PCIe from pinned memory", options.pcie_gb_per_s, "GB/s", "assumed"),
        line("share of the peak, plain step", 100 * options.usage[0], "%", "assumed"),
        line("share of the peak, tuned step", 100 * options.usage[1], "%", "assumed"),
        line("images that the GPU asks for, plain step", slow, "/s", "derived"),
        line("images that the GPU asks for, tuned step", fast, "/s", "derived"),
        line(f"step of {options.batch} images, tuned", options.batch / fast * 1e6, "µs", "derived"),
        line(
            "the batch over PCIe, beside the step",
            options.batch * transfer / options.pcie_gb_per_s / 1e3,
            "µs",
            "derived",
        ),
        line("augmentation of the batch, at the floor", us(floor), "µs", "derived"),
        line("augmentation of the batch, by the passes' bytes", us(passes), "µs", "derived"),
        line(
            "augmentation at the passes' bytes, of a tuned step",
            1e-4 * us(passes) * fast / options.batch,
            "%",
            "derived",
        ),
    ]


def photographs(options: Options) -> Dataset:
    """The photographs of `--shards`, or scenes of a photograph's size."""
    return open_dataset(options.shards or demo_shards(samples=256, shards=1, size=(375, 500)))


def main(options: Options) -> int:
    """Print the budget and the cores that a GPU needs with each loader."""
    lines = budget(options)
    print(f"One H100 SXM, MaskCo at ResNet-50 and 224 pixels, batch {options.batch}\n")
    for line in lines:
        value = f"{line.value:,.0f}" if line.value >= 1000 else f"{line.value:.3g}"
        print(f"{line.name:66}{value:>14} {line.unit:8} {line.origin}")
    slow, fast = (
        line.value for line in lines if line.name.startswith("images that the GPU asks for")
    )
    dataset = photographs(options)
    samples = dataset.samples
    print(
        f"\n{machine()}\n{len(samples)} images {'of --shards' if options.shards else 'drawn'}, "
        f"in the mean {samples['height'].mean():.0f} by {samples['width'].mean():.0f} pixels and "
        f"{samples['size'].mean():,.0f} bytes; medians of {options.rounds} epochs, fastest-slowest"
    )
    found = hosts(options, dataset)
    print(
        f"\n{'cores that the GPU needs':26}{'CPU-ms/image':>14}{'spread':>14}"
        f"{'plain step':>12}{'tuned step':>12}"
    )
    for host in found:
        spread = (
            f"{min(host.cpu_ms):.2f}-{max(host.cpu_ms):.2f}"
            if len(host.cpu_ms) > 1
            else host.origin
        )
        cores = [f"{speed * host.median / 1000:.1f}" for speed in (slow, fast)]
        print(f"{host.name:26}{host.median:>14.2f}{spread:>14}{cores[0]:>12}{cores[1]:>12}")
    print(
        "\nCores are those of the machine on which the milliseconds were measured. A loader to the "
        "seam leaves the\ncolours to the Triton passes; a row of the bench finishes its views on "
        "the CPU, unless it is a seam row."
    )
    if options.json is not None:
        record = {
            "lines": [vars(line) for line in lines],
            "hosts": [vars(host) for host in found],
            "machine": machine(),
        }
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
