"""Augmentation of a whole batch by Triton kernels on CUDA, in at most three passes.

`augment` does the same as the plain `torch.augment` beside it. Triton is imported at the first
call, so that this module can be imported without it.

Passes over device memory, and their bytes for a view of side S with float16 output (S = 224 in
brackets):

1. `gray_sums`, for jittered views: reads the view, 3·S² (150 528), and writes a sum for every 2048
   pixels.
2. `colour`, for all views: reads the view, 3·S²; writes an unblurred view's output, 6·S²
   (301 056), or a blurred view's levels, 3·S².
3. `blur`, for blurred views: reads the levels, 3·S², and writes the output, 6·S².

Contrast needs the mean of the whole image after the operations before it, and a blurred pixel needs
its neighbours' colours, so that fewer passes would repeat colour operations. A launch covers
`Workspace.views` views: what a pass reads again, and the levels between passes 2 and 3, can then
stay in the L2 cache.

`docs/gpu.md` has the measured times, `python -m benchmarks.estimates.budget` the bytes of one
operator after the other, `python -m benchmarks.gpu.check` measures on a GPU.
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
"""First Triton version that compiles the kernels (with torch 2.7). 16-byte loads and the bounds of
the compile test are those of Triton 3.8."""
GROUPS = 128
"""Groups of pixels a program in passes 1 and 2."""
PIXELS = 16
"""Pixels of such a group."""
TILE, HALO = 32, 16
"""Side of a blur tile and the border around it, in pixels; as in `triton_kernels`."""
SHORTEST = 32
"""Shortest side of a view, pixels."""
BLUR_TILES = 2
"""Tiles a program in pass 3: more share the weights' cost, fewer fill the multiprocessors."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Device memory that `augment` reuses from call to call; see `Workspace.allocate`.

    Each stream that calls `augment` needs its own: calls on two streams would write the same memory
    at once.
    """

    size: int
    """Side of the views, in pixels."""
    sums: torch.Tensor
    """(views a launch, programs a view) int32: gray sums of pass 1."""
    levels: torch.Tensor
    """(views a launch, 3, size, pitch) uint8: the blurred views' levels between passes 2 and 3."""

    @classmethod
    def allocate(
        cls, size: int, device: torch.device | str = "cuda", *, views: int = 128
    ) -> "Workspace":
        """Allocate memory for views of side `size` pixels, `views` a launch: 172 KB each at 224.

        A batch of more views takes several launches; one of fewer leaves memory unused. Raises
        ValueError for a size outside [32, 1024] or views outside [1, 65535].
        """
        if not 32 <= size <= 1024:
            raise InvalidInput(f"`size` must be in [32, 1024] pixels, got {size}.")
        if not 1 <= views <= 65535:  # CUDA's limit of a grid's second axis
            raise InvalidInput(f"`views` must be in [1, 65535] a launch, got {views}.")
        return cls(
            size=size,
            sums=torch.zeros(views, programs(size), dtype=torch.int32, device=device),
            levels=torch.zeros(views, 3, size, pitch(size), dtype=torch.uint8, device=device),
        )

    @property
    def views(self) -> int:
        """Views a launch."""
        return len(self.sums)


def programs(size: int) -> int:
    """Number of programs a view in passes 1 and 2."""
    return math.ceil(size * math.ceil(size / PIXELS) / GROUPS)


def padded_programs(size: int) -> int:
    """`programs` rounded up to a power of two, as Triton's ranges must be."""
    return 1 << (programs(size) - 1).bit_length()


def colour_options(size: int) -> dict[str, Any]:
    """Compiler options of passes 1 and 2.

    Four warps: each thread has a group of 16 pixels, which it loads and stores in 16-byte vectors.
    Where pixels are stored byte by byte a thread has half a group and at most 80 registers, so that
    three programs fit a multiprocessor. Without this bound the assembler takes 128 registers, or 64
    and spills (at sides of 33 and 511). Fused multiply-adds are off: they would truncate some
    blends to another level than torchvision does.
    """
    if size % PIXELS == 0:
        return {"num_warps": 4, "enable_fp_fusion": False}
    return {"num_warps": 8, "maxnreg": 80, "enable_fp_fusion": False}


def blur_options(size: int) -> dict[str, Any]:
    """Compiler options of pass 3.

    Two warps: the 32 rows of a tile are two rows of tensor-core tiles. At most 200 registers a
    thread, so that five programs fit a multiprocessor; 224 where pixels are stored byte by byte,
    whose addresses would otherwise spill (on sm_100).
    """
    registers = 200 if size % PIXELS == 0 else 224
    return {"num_warps": 2, "num_stages": 1, "maxnreg": registers, "enable_fp_fusion": False}


def pitch(size: int) -> int:
    """Bytes of a row of `Workspace.levels`: whole tiles and a halo on either side."""
    return math.ceil(size / TILE) * TILE + 2 * HALO


def unusable(device: torch.device | str) -> str | None:
    """The reason why `augment` cannot run on this device; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    device = torch.device(device)
    if device.type != "cuda":
        return f"Triton has no code for {device.type} devices"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return (
            f"compute capability {major}.{minor}; the kernels are compiled and tested for 8.0 and "
            "above"
        )
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < MIN_TRITON:
        needed = ".".join(map(str, MIN_TRITON))
        return f"Triton {triton.__version__}; the kernels need {needed} or later"
    return None


def on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device the current one, on which Triton launches."""
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def augmenter(
    size: int,
    device: torch.device | str,
    *,
    views: int = 128,
    max_blur_sigma: float = augment_torch.MAX_BLUR_SIGMA,
) -> Callable[..., torch.Tensor]:
    """Choose the `augment` for a device: this module's, with a new workspace, or plain torch's.

    Plain torch is chosen where `unusable` gives a reason. Call the result as
    `augment_torch.augment`, without `max_blur_sigma`; each stream needs its own. `size` and `views`
    as in `Workspace.allocate`; `max_blur_sigma` in pixels, for plain torch only.
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
    """Augment cropped and resized views: (N, 3, S, S) or (V, N, 3, S, S), each channels-last in
    memory. The arguments are those of `augment_torch.augment`.

    `workspace` must be for side S and on the views' device. `out` receives the result; it has the
    layout of `augment_torch.empty_output`, starts at a multiple of 16 bytes, and is allocated if
    None.

    Launches on the current stream and returns without waiting. It reads no value back, and with
    `out` allocates nothing, so that a CUDA graph can capture it after a first call. The first call
    compiles the kernels, for each combination of size, dtypes and options.

    Memory is accessed by 16 bytes where S is a multiple of 16 and the views are dense, byte by byte
    otherwise. Raises ValueError where shapes, dtypes or devices do not fit together.
    """
    augment_torch.check(views, parameters, masked_box, dtype, square=True, shortest=SHORTEST)
    size = views.shape[-2]
    if workspace.size != size or workspace.sums.device != views.device:
        raise InvalidInput(
            f"`workspace` must be for side {size} on {views.device}, "
            f"got one for side {workspace.size} on {workspace.sums.device}."
        )
    if out is None:
        out = augment_torch.empty_output(views, dtype)
    augment_torch.check_output(out, views, dtype)
    if out.data_ptr() % 16:
        raise InvalidInput(
            "`out` must start at a multiple of 16 bytes in memory; allocate it by "
            "`augment_torch.empty_output`."
        )
    if views.ndim == 4:
        views, parameters = views[None], parameters[None]
    with on(views):
        for first in range(0, views.shape[0] * views.shape[1], workspace.views):
            _launch(views, parameters, masked_box, flip, out, workspace, first)
    return out


def _dense(views: torch.Tensor) -> bool:
    """Whether each view is dense in memory, starts at a multiple of 16 bytes, and has rows of a
    multiple of 16 pixels: what 16-byte loads need."""
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
    """Launch the three passes over as many views as the workspace holds, from number `first` on.

    `views` (V, N, S, S, 3), `parameters` (V, N, VIEW_FLOATS); a view's number is v · N + n.
    """
    from . import triton_kernels as kernels

    size, batch = views.shape[-2], views.shape[1]
    count = min(workspace.views, views.shape[0] * batch - first)
    source = (views, *views.stride())
    plan = (parameters, *parameters.stride())
    # Without a masked box the kernels are compiled without it, and any pointer takes its place.
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
    tiles = math.ceil(size / TILE)
    kernels.blur[(tiles, count, math.ceil(tiles / BLUR_TILES))](
        *plan, *box, workspace.levels, out, first, batch,
        TILES=BLUR_TILES, **shared, **blur_options(size),
    )  # fmt: skip
