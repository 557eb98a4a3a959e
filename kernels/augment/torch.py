"""Augmentation of a whole batch in plain torch: colour, blur, solarisation, lighting,
normalisation, mask.

The plain twin of the Triton kernels and their fallback: it runs on every device and under
`torch.compile`. It rounds after each operation as torchvision's uint8 operators do. On a CPU the
levels equal torchvision's bit for bit, except for the blur: it is separable here, and at most 1
level off in fewer than one value in a thousand.

Shape suffixes: N views, C = 3 channels, S S height and width in pixels, T taps of the blur, 1
broadcast. `rows_N` is (N, VIEW_FLOATS) float32: each view's columns of the plan row.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional

from ..errors import InvalidInput
from ..formats import FORMAT_NAMES
from ..plan import (
    BLUR_SIGMA,
    FACTORS,
    FLIP,
    GRAY,
    JITTER,
    LIGHTING,
    ORDER,
    SOLARIZE,
    VIEW_FLOATS,
)
from ..torch_formats import FORMATS
from ..views import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIDES,
    SOLARIZE_THRESHOLD,
)

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a gray level (torchvision's `rgb_to_grayscale`)."""
MAX_BLUR_SIGMA = 5.0
"""Widest Gaussian that a `View` allows, in pixels: 31 taps."""


def augment(
    views: torch.Tensor,
    parameters: torch.Tensor,
    *,
    masked_box: torch.Tensor | None = None,
    flip: bool = False,
    dtype: torch.dtype = torch.float16,
    max_blur_sigma: float = MAX_BLUR_SIGMA,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Augment cropped and resized views: (N, 3, S, S) or (V, N, 3, S, S), each channels-last in
    memory. Height and width may differ.

    - `views` (N, S, S, 3) or (V, N, S, S, 3) uint8, of any strides; S in `views.SIDES`.
    - `parameters` (N, columns) or (V, N, columns) float32, `plan.VIEW_FLOATS` columns: the plan's
      columns of these views, on the same device.
    - `masked_box` (N, 4) float32 xyxy in pixels of the flipped view: the pixels floor(x1) to
      ceil(x2) - 1, floor(y1) to ceil(y2) - 1 of the first view are zero after normalisation.
    - `flip`: mirror the views whose plan row says so. By default they are taken to be flipped
      already, as the resize kernels do.
    - `dtype`: float16, bfloat16 or float32 are normalised by `mean` and `std`; uint8 are the
      augmented levels, neither normalised nor masked.
    - `max_blur_sigma`: the widest sigma among `parameters`, in pixels; a wider one is cut to as
      many taps. The default fits every `View`; the configuration's own maximum is faster.
    - `out` receives the result; it has the layout of `empty_output`.

    Raises ValueError where shapes, dtypes or devices do not fit together.
    """
    check(views, parameters, masked_box, dtype)
    if out is not None:
        check_output(out, views, dtype)
    levels_NCSS = views.reshape(-1, *views.shape[-3:]).permute(0, 3, 1, 2).to(torch.float32)
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
    lighting_NC11 = rows_N[:, LIGHTING : LIGHTING + 3, None, None]
    if FORMATS[dtype].normalised:
        finished = _normalize(levels_NCSS, lighting_NC11, masked_box, mean, std)
    else:
        finished = (levels_NCSS + 255 * lighting_NC11 + 0.5).clamp(0, 255).floor()
    if out is None:
        out = empty_output(views, dtype)
    return out.copy_(finished.view(out.shape))


def empty_output(views: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Allocate an uninitialised `out` of `augment` for these views: (…, 3, S, S), each view
    channels-last in memory."""
    return torch.empty(views.shape, dtype=dtype, device=views.device).movedim(-1, -3)


def check_output(out: torch.Tensor, views: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless `out` has the dtype, device, shape and layout of `empty_output`."""
    if out.dtype != dtype or out.device != views.device or out.movedim(-3, -1).shape != views.shape:
        raise InvalidInput(
            f"`out` must be {dtype} {(*views.shape[:-3], 3, *views.shape[-3:-1])} on "
            f"{views.device}, got {out.dtype} {tuple(out.shape)} on {out.device}."
        )
    if not out.movedim(-3, -1).is_contiguous():
        raise InvalidInput(
            "`out` must be channels-last and dense in memory; allocate it by `empty_output`."
        )


def check(
    views: torch.Tensor,
    parameters: torch.Tensor,
    masked_box: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    square: bool = False,
    shortest: int = SIDES[0],
) -> None:
    """Raise ValueError where the arguments of `augment` do not fit together. Reads shapes, never a
    value, so that no device is waited for. `square`, `shortest`: what sides are taken."""
    if views.dtype != torch.uint8 or views.ndim not in (4, 5) or views.shape[-1] != 3:
        raise InvalidInput(
            "`views` must be uint8 (N, S, S, 3) or (V, N, S, S, 3), "
            f"got {views.dtype} {tuple(views.shape)}."
        )
    height, width = views.shape[-3:-1]
    if (square and height != width) or not shortest <= min(height, width) <= max(
        height, width
    ) <= SIDES[1]:
        raise InvalidInput(
            f"`views` must {'be squares' if square else 'have sides'} of {shortest} to {SIDES[1]} "
            f"pixels, got {height} by {width}."
        )
    if parameters.dtype != torch.float32 or parameters.shape != (*views.shape[:-3], VIEW_FLOATS):
        raise InvalidInput(
            f"`parameters` must be float32 {(*views.shape[:-3], VIEW_FLOATS)} for views of "
            f"{tuple(views.shape)}, got {parameters.dtype} {tuple(parameters.shape)}."
        )
    if masked_box is not None and (
        masked_box.dtype != torch.float32 or masked_box.shape != (views.shape[-4], 4)
    ):
        raise InvalidInput(
            f"`masked_box` must be float32 {(views.shape[-4], 4)}, "
            f"got {masked_box.dtype} {tuple(masked_box.shape)}."
        )
    devices = {tensor.device for tensor in (views, parameters, masked_box) if tensor is not None}
    if len(devices) > 1:
        raise InvalidInput(
            "`views`, `parameters` and `masked_box` must be on the same device, "
            f"got {sorted(map(str, devices))}."
        )
    if dtype not in FORMATS:
        raise InvalidInput(f"`dtype` must be one of {', '.join(FORMAT_NAMES)}, got {dtype}.")


def _column(rows_N: torch.Tensor, column: int) -> torch.Tensor:
    """(N, 1, 1, 1): one column, to broadcast against (N, C, S, S)."""
    return rows_N[:, column, None, None, None]


def _flag(rows_N: torch.Tensor, column: int) -> torch.Tensor:
    """(N, 1, 1, 1) bool: whether a view's operation is on."""
    return _column(rows_N, column) != 0


def gray(levels_NCSS: torch.Tensor) -> torch.Tensor:
    """Gray levels (N, 1, S, S) of levels (N, 3, S, S), whole float32 numbers in 0..255."""
    red, green, blue = levels_NCSS.unbind(1)
    return (
        (GRAY_WEIGHTS[0] * red + GRAY_WEIGHTS[1] * green + GRAY_WEIGHTS[2] * blue)
        .floor()
        .unsqueeze(1)
    )


def jitter(levels_NCSS: torch.Tensor, rows_N: torch.Tensor) -> torch.Tensor:
    """Apply brightness, contrast, saturation and hue in each view's own order; whole float32 levels
    in and out.

    Every view goes through every operation, and the one that is its turn is selected.
    """
    for step in range(4):
        operation = _column(rows_N, ORDER + step)
        factors_N4 = rows_N[:, FACTORS : FACTORS + 4]
        factor_N1 = factors_N4.gather(1, rows_N[:, ORDER + step, None].long())
        factor = factor_N1[:, :, None, None]
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
    """Turn the hue by torchvision's `adjust_hue`; whole float32 levels in and out.

    `turns` (N, 1, 1, 1) in [-0.5, 0.5], of a full circle.
    """
    # To HSV, each (N, S, S) in 0..1. Gray pixels have a hue of 0.
    image = levels_NCSS / 255
    red, green, blue = image.unbind(1)
    value, low = image.amax(1), image.amin(1)
    chroma = value - low
    flat = chroma == 0
    saturation = chroma / torch.where(flat, 1.0, value)
    divisor = torch.where(flat, 1.0, chroma)
    from_red = (value - red) / divisor
    from_green = (value - green) / divisor
    from_blue = (value - blue) / divisor
    hue = torch.where(value == green, 2.0 + from_red - from_blue, 4.0 + from_green - from_red)
    hue = torch.where(value == red, from_blue - from_green, hue)
    hue = torch.fmod(hue / 6.0 + 1.0, 1.0)

    # Back to RGB: each sixth of the circle has a channel that rises (t) or falls (q).
    hue = (hue + turns[:, 0]) % 1.0
    sector = torch.floor(hue * 6.0)
    part = hue * 6.0 - sector
    sector = sector % 6
    p = (value * (1.0 - saturation)).clamp(0.0, 1.0)
    q = (value * (1.0 - saturation * part)).clamp(0.0, 1.0)
    t = (value * (1.0 - saturation * (1.0 - part))).clamp(0.0, 1.0)

    def channel(first: int) -> torch.Tensor:
        """One channel (N, S, S): value, q, p, p, t, value by sector, counted from `first`."""
        turned = (sector - first) % 6
        falling_or_rising = torch.where(turned == 1, q, torch.where(turned == 4, t, p))
        return torch.where((turned == 0) | (turned == 5), value, falling_or_rising)

    turned_image = torch.stack((channel(0), channel(2), channel(4)), 1)
    return (turned_image * (255 + 1.0 - 1e-3)).floor()  # torchvision's way back to uint8


def blur(levels_NCSS: torch.Tensor, sigma_N: torch.Tensor, max_sigma: float) -> torch.Tensor:
    """Blur by a Gaussian of 2·ceil(3·sigma) + 1 taps with reflected edges, to whole levels.

    `sigma_N` (N,) in pixels, 0 for no blur; `max_sigma` bounds the taps. `levels_NCSS` are whole
    float32 levels.
    """
    height, width = levels_NCSS.shape[-2:]
    radius = min(math.ceil(3 * max_sigma), min(height, width) - 1)
    weights_NT = gaussian_taps(sigma_N, radius)
    padded = torch.nn.functional.pad(levels_NCSS, (radius, radius, radius, radius), mode="reflect")
    vertical = torch.zeros_like(padded[:, :, :height])
    for tap in range(2 * radius + 1):
        rows = padded[:, :, tap : tap + height]
        vertical = torch.addcmul(vertical, rows, _column(weights_NT, tap))
    blurred = torch.zeros_like(levels_NCSS)
    for tap in range(2 * radius + 1):
        columns = vertical[..., tap : tap + width]
        blurred = torch.addcmul(blurred, columns, _column(weights_NT, tap))
    return torch.where(sigma_N[:, None, None, None] > 0, blurred.round(), levels_NCSS)


def gaussian_taps(sigma_N: torch.Tensor, radius: int) -> torch.Tensor:
    """Weights (N, 2·radius + 1) of each view's Gaussian: sum 1, zero beyond its ceil(3·sigma)."""
    offset = torch.arange(-radius, radius + 1, device=sigma_N.device, dtype=torch.float32)
    # In float64: rounded to float32, 3·sigma slightly above a whole number may fall on it and lose
    # a tap.
    own_radius = torch.ceil(3 * sigma_N.double())[:, None]
    sigma = torch.where(sigma_N > 0, sigma_N, 1.0)[:, None]
    weights = torch.where(offset.abs() <= own_radius, torch.exp(-0.5 * (offset / sigma) ** 2), 0.0)
    return weights / weights.sum(1, keepdim=True)


def _normalize(
    levels_NCSS: torch.Tensor,
    lighting_NC11: torch.Tensor,
    masked_box: torch.Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """Light and normalise levels to float32 (N, C, S, S); zero the first views' masked boxes."""
    # Channel by channel: a tensor of the three means would be copied from the host in every call.
    lit_NCSS = levels_NCSS / 255 + lighting_NC11
    channels = [(lit_NCSS[:, c] - mean[c]) / std[c] for c in range(3)]
    normalized = torch.stack(channels, 1)
    if masked_box is None:
        return normalized
    height, width = levels_NCSS.shape[-2:]
    position = torch.arange(max(height, width), device=levels_NCSS.device)
    low, high = masked_box[:, :2].floor(), masked_box[:, 2:].ceil()
    inside = (position >= low[..., None]) & (position < high[..., None])  # (N, xy, S)
    inside = (inside[:, 1, :height, None] & inside[:, 0, None, :width])[:, None]  # (N, 1, S, S)
    masked = torch.where(inside, 0.0, normalized[: len(masked_box)])
    return torch.cat((masked, normalized[len(masked_box) :]))
