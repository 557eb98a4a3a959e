"""The device half in plain torch: colour, blur, solarisation, normalisation and the masked box of a
whole batch.

It says obviously what `augment_triton` says fast, runs on every device and under `torch.compile`,
and is the fallback where Triton is missing. Every operation is torchvision's functional one on a
uint8 tensor, operation for operation and rounding for rounding: on a CPU the levels are
torchvision's own to the bit, but for the blur, which is separable here (at most 1 level off, in
fewer than one value in a thousand).

Suffixes: N views, C = 3 channels, S the side in pixels.
"""

import math

import torch
import torch.nn.functional

from ..errors import InvalidInput
from ..formats import FORMAT_NAMES, FORMATS
from ..plan import BLUR_SIGMA, FACTORS, FLIP, GRAY, JITTER, ORDER, SOLARIZE, VIEW_FLOATS
from ..views import BRIGHTNESS, CONTRAST, HUE, IMAGENET_MEAN, IMAGENET_STD, SOLARIZE_THRESHOLD

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Red, green and blue in a gray level (torchvision's `rgb_to_grayscale`)."""
MAX_BLUR_SIGMA = 5.0
"""The widest Gaussian that a `View` allows, pixels: 31 taps."""


def augment(
    views: torch.Tensor,
    parameters: torch.Tensor,
    *,
    masked_box: torch.Tensor | None = None,
    flip: bool = False,
    dtype: torch.dtype = torch.float16,
    max_blur_sigma: float = MAX_BLUR_SIGMA,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Augmented views, (N, 3, S, S) or (V, N, 3, S, S), each channels-last in memory.

    `views` (N, S, S, 3) or (V, N, S, S, 3) uint8, cropped and resized, of any strides; S at least
    32. `parameters` (N, 17) or (V, N, 17) float32: the plan's columns of these views, on the same
    device. `masked_box` (N, 4) float32 xyxy in pixels of the view as flipped: the pixels
    floor(x1)..ceil(x2) - 1, floor(y1)..ceil(y2) - 1 of the first view are zero after normalisation.
    `flip`: the views came unflipped and are mirrored here where the plan says so; by default they
    came flipped, as our resize leaves them.

    `dtype` float16, bfloat16 or float32: normalised by ImageNet's mean and deviation; uint8: the
    augmented levels, neither normalised nor masked. `max_blur_sigma` is the widest sigma among
    `parameters`, pixels: a wider one is cut to that many taps. The default is right for every
    `View`; the configuration's own maximum is faster. `out` takes the result: of that shape, dtype
    and layout, as `empty_output` makes it.

    Raises ValueError where shapes, dtypes or devices do not fit together.
    """
    check(views, parameters, masked_box, dtype)
    if out is not None:
        check_output(out, views, dtype)
    size = views.shape[-2]
    levels_NCSS = views.reshape(-1, size, size, 3).permute(0, 3, 1, 2).to(torch.float32)
    rows_N = parameters.reshape(-1, VIEW_FLOATS)
    if flip:
        levels_NCSS = torch.where(_flag(rows_N, FLIP), levels_NCSS.flip(-1), levels_NCSS)
    levels_NCSS = torch.where(_flag(rows_N, JITTER), jitter(levels_NCSS, rows_N), levels_NCSS)
    levels_NCSS = torch.where(
        _flag(rows_N, GRAY), gray(levels_NCSS).expand(-1, 3, -1, -1), levels_NCSS
    )
    levels_NCSS = blur(levels_NCSS, rows_N[:, BLUR_SIGMA], max_blur_sigma)
    inverted = _flag(rows_N, SOLARIZE) & (levels_NCSS >= SOLARIZE_THRESHOLD)
    levels_NCSS = torch.where(inverted, 255 - levels_NCSS, levels_NCSS)
    finished = levels_NCSS if dtype == torch.uint8 else _normalize(levels_NCSS, masked_box)
    if out is None:
        out = empty_output(views, dtype)
    return out.copy_(finished.view(out.shape))


def empty_output(views: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised result of `augment` for these views: (…, 3, S, S), each view channels-last
    in memory."""
    return torch.empty(views.shape, dtype=dtype, device=views.device).movedim(-1, -3)


def check_output(out: torch.Tensor, views: torch.Tensor, dtype: torch.dtype) -> None:
    """ValueError where `out` is not such as `empty_output` makes for these views."""
    if out.dtype != dtype or out.device != views.device or out.movedim(-3, -1).shape != views.shape:
        raise InvalidInput(
            f"out is {out.dtype} {tuple(out.shape)} on {out.device}; {dtype} "
            f"{(*views.shape[:-3], 3, *views.shape[-3:-1])} on {views.device} is wanted"
        )
    if not out.movedim(-3, -1).is_contiguous():
        raise InvalidInput("out is not channels-last and dense; empty_output makes one that is")


def check(
    views: torch.Tensor,
    parameters: torch.Tensor,
    masked_box: torch.Tensor | None,
    dtype: torch.dtype,
) -> None:
    """ValueError where the arguments of `augment` do not fit together. Reads shapes only, never a
    value."""
    if views.dtype != torch.uint8 or views.ndim not in (4, 5) or views.shape[-1] != 3:
        raise InvalidInput(
            f"views are {views.dtype} {tuple(views.shape)}; (N, S, S, 3) or (V, N, S, S, 3) uint8 is wanted"
        )
    size = views.shape[-2]
    if views.shape[-3] != size or not 32 <= size <= 1024:
        raise InvalidInput(
            f"views of {views.shape[-3]} by {size} pixels; squares with a side of 32..1024 are wanted"
        )
    if parameters.dtype != torch.float32 or parameters.shape != (*views.shape[:-3], VIEW_FLOATS):
        raise InvalidInput(
            f"parameters are {parameters.dtype} {tuple(parameters.shape)}; "
            f"float32 {(*views.shape[:-3], VIEW_FLOATS)} goes with views of {tuple(views.shape)}"
        )
    if masked_box is not None and (
        masked_box.dtype != torch.float32 or masked_box.shape != (views.shape[-4], 4)
    ):
        raise InvalidInput(
            f"masked_box is {masked_box.dtype} {tuple(masked_box.shape)}; float32 {(views.shape[-4], 4)} is wanted"
        )
    devices = {tensor.device for tensor in (views, parameters, masked_box) if tensor is not None}
    if len(devices) > 1:
        raise InvalidInput(
            f"views, parameters and masked_box lie on different devices: {sorted(map(str, devices))}"
        )
    if dtype not in FORMATS:
        raise InvalidInput(f"dtype must be one of {', '.join(FORMAT_NAMES)}, got {dtype}")


def _column(rows_N: torch.Tensor, column: int) -> torch.Tensor:
    return rows_N[:, column, None, None, None]


def _flag(rows_N: torch.Tensor, column: int) -> torch.Tensor:
    return _column(rows_N, column) != 0


def gray(levels_NCSS: torch.Tensor) -> torch.Tensor:
    """(N, 1, S, S) whole gray levels of (N, 3, S, S) levels, all float32."""
    red, green, blue = levels_NCSS.unbind(1)
    return (
        (GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue)
        .floor()
        .unsqueeze(1)
    )


def jitter(levels_NCSS: torch.Tensor, rows_N: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast, saturation and hue in each sample's own order; whole float32 levels in
    and out."""
    for step in range(4):
        operation = _column(rows_N, ORDER + step)
        factor = rows_N[:, FACTORS : FACTORS + 4].gather(1, rows_N[:, ORDER + step, None].long())[
            :, :, None, None
        ]
        gray_N1SS = gray(levels_NCSS)
        # The three blends differ only in what they blend with: black, the mean gray, or the pixel's
        # own gray.
        other = torch.where(
            operation == CONTRAST, gray_N1SS.mean((1, 2, 3), keepdim=True), gray_N1SS
        )
        other = torch.where(operation == BRIGHTNESS, 0.0, other)
        blended = (factor * levels_NCSS + (1.0 - factor) * other).clamp(0, 255).floor()
        levels_NCSS = torch.where(operation == HUE, turn_hue(levels_NCSS, factor), blended)
    return levels_NCSS


def turn_hue(levels_NCSS: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """torchvision's `adjust_hue` through HSV; `turns` (N, 1, 1, 1) in -0.5..0.5; whole float32
    levels in and out."""
    image = levels_NCSS / 255
    red, green, blue = image.unbind(1)
    value, low = image.amax(1), image.amin(1)
    chroma = value - low
    flat = chroma == 0
    saturation = chroma / torch.where(flat, 1.0, value)
    divisor = torch.where(flat, 1.0, chroma)
    from_red, from_green, from_blue = (
        (value - red) / divisor,
        (value - green) / divisor,
        (value - blue) / divisor,
    )
    hue = torch.where(value == green, 2.0 + from_red - from_blue, 4.0 + from_green - from_red)
    hue = torch.where(value == red, from_blue - from_green, hue)
    hue = torch.fmod(hue / 6.0 + 1.0, 1.0)

    hue = (hue + turns[:, 0]) % 1.0
    sector = torch.floor(hue * 6.0)
    part = hue * 6.0 - sector
    sector = sector % 6
    p = (value * (1.0 - saturation)).clamp(0.0, 1.0)
    q = (value * (1.0 - saturation * part)).clamp(0.0, 1.0)
    t = (value * (1.0 - saturation * (1.0 - part))).clamp(0.0, 1.0)

    def channel(first: int) -> torch.Tensor:
        """value, q, p, p, t, value by sector, counted from the sector where this channel starts to
        fall."""
        turned = (sector - first) % 6
        falling_or_rising = torch.where(turned == 1, q, torch.where(turned == 4, t, p))
        return torch.where((turned == 0) | (turned == 5), value, falling_or_rising)

    turned_image = torch.stack((channel(0), channel(2), channel(4)), 1)
    return (turned_image * (255 + 1.0 - 1e-3)).floor()  # torchvision's way back to uint8


def blur(levels_NCSS: torch.Tensor, sigma_N: torch.Tensor, max_sigma: float) -> torch.Tensor:
    """Reflect-padded Gaussian of 2·ceil(3·sigma) + 1 taps, rounded to whole levels; sigma 0 leaves
    a sample alone."""
    radius = math.ceil(3 * max_sigma)
    size = levels_NCSS.shape[-1]
    weights_NT = gaussian_taps(sigma_N, radius)
    padded = torch.nn.functional.pad(levels_NCSS, (radius, radius, radius, radius), mode="reflect")
    vertical = torch.zeros_like(padded[:, :, :size])
    for tap in range(2 * radius + 1):
        vertical = torch.addcmul(vertical, padded[:, :, tap : tap + size], _column(weights_NT, tap))
    blurred = torch.zeros_like(levels_NCSS)
    for tap in range(2 * radius + 1):
        blurred = torch.addcmul(blurred, vertical[..., tap : tap + size], _column(weights_NT, tap))
    return torch.where(sigma_N[:, None, None, None] > 0, blurred.round(), levels_NCSS)


def gaussian_taps(sigma_N: torch.Tensor, radius: int) -> torch.Tensor:
    """(N, 2·radius + 1) weights that sum to 1, zero beyond each sample's own ceil(3·sigma) taps."""
    offset = torch.arange(-radius, radius + 1, device=sigma_N.device, dtype=torch.float32)
    # In float64, because 3·sigma rounded to float32 may land on a whole number from above and lose
    # a tap.
    own_radius = torch.ceil(3 * sigma_N.double())[:, None]
    sigma = torch.where(sigma_N > 0, sigma_N, 1.0)[:, None]
    weights = torch.where(offset.abs() <= own_radius, torch.exp(-0.5 * (offset / sigma) ** 2), 0.0)
    return weights / weights.sum(1, keepdim=True)


def _normalize(levels_NCSS: torch.Tensor, masked_box: torch.Tensor | None) -> torch.Tensor:
    """float32, by mean and standard deviation, the masked boxes of the first views at zero."""
    # Channel by channel, since a tensor of the three means would be a copy from the host in every
    # call.
    channels = [(levels_NCSS[:, c] / 255 - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)]
    normalized = torch.stack(channels, 1)
    if masked_box is None:
        return normalized
    position = torch.arange(levels_NCSS.shape[-1], device=levels_NCSS.device)
    low, high = masked_box[:, :2].floor(), masked_box[:, 2:].ceil()
    inside = (position >= low[..., None]) & (position < high[..., None])  # (N, xy, S)
    inside = (inside[:, 1, :, None] & inside[:, 0, None, :])[:, None]
    masked = torch.where(inside, 0.0, normalized[: len(masked_box)])
    return torch.cat((masked, normalized[len(masked_box) :]))
