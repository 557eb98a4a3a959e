"""The device half in Triton: colour, blur, solarisation, normalisation and the masked box, in at
most three passes.

`augment` does what `augment_torch.augment` says, for CUDA devices. Triton itself is imported at the
first call, so that this module can be imported without it.

Passes over device memory, and their bytes for a view of side S with float16 output (S = 224 in
brackets):

1. `gray_sums`, for jittered views: reads the view, 3·S² (150 528), and writes a sum for every 2048 pixels.
2. `colour`, for all: reads the view, 3·S²; writes an unblurred view's output, 6·S² (301 056), or a blurred view's
   levels, 3·S².
3. `blur`, for blurred views: reads the levels, 3·S², and writes the output, 6·S².

Nothing is left to fuse without doing the colour operations more than once: contrast needs the mean
of the whole image as the operations before it left it, and a blurred pixel needs its neighbours'
colours. By MoCo v2's probabilities (jitter .8, blur .5) that is 722 534 bytes a view. At least 451
584 must move, the view in and the output out. Two views of 256 images at least: 231 MB, 69 µs of an
H100's 3.35 TB/s; by the three passes 370 MB, 110 µs, were every access to miss the L2 cache. The
launches go `Workspace.views` views at a time, so that what a pass reads again, and the levels
between the passes 2 and 3, can stay in that cache (128 views: 19 MB of views and 22 MB of levels).

Bytes are not all: by the machine code a jittered pixel takes about 125 instructions in pass 2, half
of that in pass 1, and pass 3 about 450 multiply-adds a value on the tensor cores, so that the
passes are expected at about three times the floor, 0.2 ms for 256 images. That is a count, not a
measurement: nothing here has been run on a GPU by its authors; `benchmarks/gpu_check.py` does.
`benchmarks/gpu_budget.py` counts what one operator after the other would move.
"""

import contextlib
import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InvalidInput
from . import torch as augment_torch

MIN_TRITON = (3, 3)
"""The first that compiles the kernels (torch 2.7). 16-byte loads and the compile report's figures
are Triton 3.8's."""
GROUPS = 128
"""Groups of 16 pixels a program in the passes 1 and 2."""
PIXELS = 16
TILE, HALO = 32, 16
"""A blur tile and the border around it, pixels; the kernels' own numbers."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Device memory that `augment` reuses from call to call; `Workspace.allocate` makes it.

    One for each stream that calls `augment`: calls on one stream follow each other, calls on two
    would write the same memory at once.
    """

    size: int
    """Side of the views that it fits, pixels."""
    sums: torch.Tensor
    """(views of a launch, programs a view) int32: gray sums of pass 1."""
    levels: torch.Tensor
    """(views of a launch, 3, size, pitch) uint8: the views between the passes 2 and 3."""

    @classmethod
    def allocate(
        cls, size: int, device: torch.device | str = "cuda", *, views: int = 128
    ) -> "Workspace":
        """Memory for views of side `size`, `views` of them a launch: 172 KB each at 224. More views
        than that take several launches; fewer leave the rest unused. ValueError for a size outside
        32..1024."""
        if not 32 <= size <= 1024:
            raise InvalidInput(f"views of side {size}; 32..1024 pixels are wanted")
        if not 1 <= views <= 65535:
            raise InvalidInput(f"{views} views a launch; 1..65535 are wanted")
        return cls(
            size=size,
            sums=torch.zeros(views, programs(size), dtype=torch.int32, device=device),
            levels=torch.zeros(views, 3, size, pitch(size), dtype=torch.uint8, device=device),
        )

    @property
    def views(self) -> int:
        """Views of a launch."""
        return len(self.sums)


def programs(size: int) -> int:
    """Programs a view in the passes 1 and 2."""
    return math.ceil(size * math.ceil(size / PIXELS) / GROUPS)


def padded_programs(size: int) -> int:
    """The power of two that they fit in."""
    return 1 << (programs(size) - 1).bit_length()


def colour_options(size: int) -> dict[str, Any]:
    """Compiler options of the passes 1 and 2.

    A thread has a group, which it loads and stores in whole vectors. Where pixels are stored byte
    by byte it has half a group and at most 80 registers, so that three programs fit a
    multiprocessor: left to itself, the assembler takes 128 or 64 and spills (at sides of 33 and
    511). Fused multiply-adds would truncate some blends to another level than torchvision does.
    """
    if size % PIXELS == 0:
        return {"num_warps": 4, "enable_fp_fusion": False}
    return {"num_warps": 8, "maxnreg": 80, "enable_fp_fusion": False}


def blur_options(size: int) -> dict[str, Any]:
    """Compiler options of pass 3.

    Two warps: a tile's 32 rows are two rows of tensor-core tiles. At most 192 registers, so that
    five programs fit a multiprocessor; 224 where pixels are stored byte by byte, whose addresses
    would spill otherwise (on sm_100).
    """
    registers = 192 if size % PIXELS == 0 else 224
    return {"num_warps": 2, "num_stages": 1, "maxnreg": registers, "enable_fp_fusion": False}


def pitch(size: int) -> int:
    """Bytes from one row of the workspace's levels to the next: whole tiles and a halo on either
    side."""
    return math.ceil(size / TILE) * TILE + 2 * HALO


def unusable(device: torch.device | str) -> str | None:
    """Why `augment` cannot run on this device, or None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    device = torch.device(device)
    if device.type != "cuda":
        return f"Triton has no code for {device.type} devices"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor}; the kernels are compiled and tested for 8.0 and above"
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < MIN_TRITON:
        return f"Triton {triton.__version__}; the kernels want {'.'.join(map(str, MIN_TRITON))} or later"
    return None


def augmenter(
    size: int,
    device: torch.device | str,
    *,
    views: int = 128,
    max_blur_sigma: float = augment_torch.MAX_BLUR_SIGMA,
) -> Callable[..., torch.Tensor]:
    """The `augment` to use on this device: this module's, with a workspace of its own, or
    `augment_torch`'s.

    Call it as `augment_torch.augment`, without `max_blur_sigma`; one for each stream. `size` and
    `views` as in `Workspace.allocate`; `max_blur_sigma` is for the plain one. `unusable` says why
    where it is that.
    """
    if unusable(device) is not None:
        return functools.partial(augment_torch.augment, max_blur_sigma=max_blur_sigma)
    return functools.partial(augment, workspace=Workspace.allocate(size, device, views=views))


def augment(
    views: torch.Tensor,
    parameters: torch.Tensor,
    *,
    workspace: Workspace,
    masked_box: torch.Tensor | None = None,
    flip: bool = False,
    dtype: torch.dtype = torch.float16,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Augmented views, (N, 3, S, S) or (V, N, 3, S, S), each channels-last: arguments as in
    `augment_torch.augment`.

    `workspace` fits S and lies on the views' device. `out` takes the result: of that shape, dtype
    and layout, as `augment_torch.empty_output` makes it; without it the result is newly allocated.
    Launches on the current stream and returns without waiting; reads no value back, and with `out`
    allocates nothing, so that a CUDA graph can capture it after one call that compiles the kernels
    (a few seconds for each combination of size, dtypes and options).

    16-byte accesses throughout where S is a multiple of 16 and the views lie densely; byte by byte
    otherwise. Raises ValueError where shapes, dtypes or devices do not fit together.
    """
    augment_torch.check(views, parameters, masked_box, dtype)
    size = views.shape[-2]
    if workspace.size != size or workspace.sums.device != views.device:
        raise InvalidInput(
            f"a workspace for side {workspace.size} on {workspace.sums.device} does not fit views of side {size} "
            f"on {views.device}"
        )
    if out is None:
        out = augment_torch.empty_output(views, dtype)
    augment_torch.check_output(out, views, dtype)
    if out.data_ptr() % 16:
        raise InvalidInput(
            "out does not start at a multiple of 16 bytes; augment_torch.empty_output makes one that does"
        )
    if views.ndim == 4:
        views, parameters = views[None], parameters[None]
    guard = torch.cuda.device(views.device) if views.is_cuda else contextlib.nullcontext()
    with guard:
        for first in range(0, views.shape[0] * views.shape[1], workspace.views):
            _launch(views, parameters, masked_box, flip, out, workspace, first)
    return out


def _dense(views: torch.Tensor) -> bool:
    """Whether every view's pixels lie densely from a multiple of 16 bytes, and its rows are
    multiples of 16 pixels."""
    size = views.shape[-2]
    aligned = size % PIXELS == 0 and views.data_ptr() % 16 == 0
    return (
        aligned
        and views.stride()[2:] == (3 * size, 3, 1)
        and not any(s % 16 for s in views.stride()[:2])
    )


def _launch(
    views: torch.Tensor,
    parameters: torch.Tensor,
    masked_box: torch.Tensor | None,
    flip: bool,
    out: torch.Tensor,
    workspace: Workspace,
    first: int,
) -> None:
    """The three passes over the views from number `first` on, as many as the workspace holds; (V,
    N, …) arguments."""
    from . import triton_kernels as kernels

    size, batch = views.shape[-2], views.shape[1]
    count = min(workspace.views, views.shape[0] * batch - first)
    source = (views, *views.stride())
    plan = (parameters, *parameters.stride())
    # Where no box is masked the kernels are compiled without it, and take any pointer in its place.
    box = (parameters, 0, 0, 0) if masked_box is None else (masked_box, *masked_box.stride(), batch)
    shared = {
        "S": size,
        "PITCH": pitch(size),
        "VECTOR_STORES": size % PIXELS == 0,
        "MASKED": masked_box is not None,
    }
    loads = {"GROUPS": GROUPS, "VECTOR_LOADS": _dense(views)}
    grid = (programs(size), count)
    options = colour_options(size)
    kernels.gray_sums[grid](
        *source, *plan, workspace.sums, first, batch, S=size, **loads, **options
    )
    kernels.colour[grid](
        *source, *plan, *box, workspace.sums, workspace.levels, out, first, batch,
        SUMS=padded_programs(size), FLIPPED=flip, **shared, **loads, **options,
    )  # fmt: skip
    kernels.blur[(math.ceil(size / TILE), count)](
        *plan, *box, workspace.levels, out, first, batch, **shared, **blur_options(size)
    )
