"""Small labelled scenes, drawn with NumPy and PIL.

The same (seed, index) gives the same pixels with the same versions of the libraries.

A scene is a context (ground, sky, light, palette) with textured objects of labelled kinds. The
context predicts which kinds occur, where they stand and how they are arranged. All objects of a
scene share its palette and light. A masked object is thus predictable from its surroundings.
Contexts differ by texture and structure and hardly by colour, so that an untrained network cannot
already separate them.

Legend: H, W the scene's height and width in pixels; h, w those of a patch around one object.
"""

import colorsys
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskco_fast.demo import patterns
from maskco_fast.demo.patterns import Random, Shape, Skin, Texture

VERSION = 1
"""Bump when the drawing changes; a folder holds scenes of one version."""
MIN_VISIBLE = 0.25
"""Least visible share of an object that gets a label."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of object: its shape, skin, relative size and largest rotation."""

    name: str
    shape: Shape
    skin: Skin
    size: float = 1.0
    lean: float = 0.15
    """Largest rotation either way, radians."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The setting of a scene: its textures, and the kinds of object that occur in it."""

    name: str
    ground: Texture
    sky: Texture
    on_ground: tuple[str, ...]
    in_sky: tuple[str, ...]
    row: bool
    """True: objects on the ground form a row of one kind. False: mixed kinds at random places."""


KINDS = (
    Kind(name="ball", shape=patterns.ball, skin=patterns.stripes, lean=1.5),
    Kind(name="crate", shape=patterns.box, skin=patterns.checks),
    Kind(name="cone", shape=patterns.cone, skin=patterns.stripes, size=1.2),
    Kind(name="star", shape=patterns.star, skin=patterns.plain, size=0.8, lean=0.6),
    Kind(name="ring", shape=patterns.ring, skin=patterns.circles, lean=1.5),
    Kind(name="mushroom", shape=patterns.mushroom, skin=patterns.dots),
    Kind(name="cross", shape=patterns.cross, skin=patterns.plain),
    Kind(name="crescent", shape=patterns.crescent, skin=patterns.plain, size=1.1, lean=0.5),
    Kind(name="leaf", shape=patterns.leaf, skin=patterns.stripes, size=0.8, lean=1.5),
    Kind(name="kite", shape=patterns.diamond, skin=patterns.checks, size=1.1, lean=0.5),
    Kind(name="gear", shape=patterns.gear, skin=patterns.swirl, lean=1.5),
    Kind(name="house", shape=patterns.house, skin=patterns.dots, size=1.4, lean=0.03),
)
"""Every kind of object; a label's `kind` is an index into this tuple."""

CONTEXTS = (
    Context(
        name="meadow",
        ground=patterns.grain,
        sky=patterns.clouds,
        on_ground=("mushroom", "ball"),
        in_sky=("kite",),
        row=False,
    ),
    Context(
        name="seaside",
        ground=patterns.waves,
        sky=patterns.clear,
        on_ground=("ring", "ball"),
        in_sky=("crescent",),
        row=False,
    ),
    Context(
        name="field",
        ground=patterns.furrows,
        sky=patterns.rain,
        on_ground=("leaf", "house"),
        in_sky=("leaf",),
        row=True,
    ),
    Context(
        name="road",
        ground=patterns.tiles,
        sky=patterns.clear,
        on_ground=("cone", "crate"),
        in_sky=("ball",),
        row=True,
    ),
    Context(
        name="yard",
        ground=patterns.planks,
        sky=patterns.bricks,
        on_ground=("crate", "gear"),
        in_sky=("cross", "ring"),
        row=True,
    ),
    Context(
        name="desert",
        ground=patterns.dunes,
        sky=patterns.stars,
        on_ground=("house", "cone"),
        in_sky=("star",),
        row=False,
    ),
    Context(
        name="forest",
        ground=patterns.patches,
        sky=patterns.trunks,
        on_ground=("mushroom", "leaf"),
        in_sky=("crescent",),
        row=False,
    ),
    Context(
        name="nursery",
        ground=patterns.tiles,
        sky=patterns.paper,
        on_ground=("gear", "cross"),
        in_sky=("star", "kite"),
        row=True,
    ),
)
"""Every context; the integer in a sample's `.cls` member is an index into this tuple."""

STRAY_SHARE = 0.1
"""Share of objects whose kind is drawn regardless of the context, so prediction is never certain.
"""
_KIND_NUMBERS = {kind.name: number for number, kind in enumerate(KINDS)}


def _colour(rng: Random, hue: float, spread: float, saturation: float, value: float) -> np.ndarray:
    """A random RGB colour (3,) float32 in 0..1 near the given hue, saturation and value.

    `hue` in turns; it varies by `spread` in both directions.
    """
    hue = (hue + rng.uniform(-spread, spread)) % 1
    saturation = min(1.0, saturation * rng.uniform(0.6, 1.3))
    return np.array(
        colorsys.hsv_to_rgb(hue, saturation, min(1.0, value * rng.uniform(0.8, 1.15))), np.float32
    )


def _background(
    rng: Random, context: Context, horizon: int, height: int, width: int, hue: float
) -> np.ndarray:
    """Sky above ground, (H, W, 3) float32 in 0..1; the ground starts at row `horizon`."""
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    canvas = np.empty((height, width, 3), np.float32)
    halves = ((context.sky, 0, horizon, 0.5, 0.75), (context.ground, horizon, height, 0.0, 0.55))
    for texture, top, bottom, turn, value in halves:
        y = np.linspace(0, (bottom - top) / height, bottom - top, dtype=np.float32)[:, None]
        level = texture(rng, y, x).astype(np.float32)[..., None]
        light = _colour(rng, hue + turn, 0.08, 0.35, value * 1.2)
        dark = _colour(rng, hue + turn, 0.15, 0.55, value * 0.6)
        canvas[top:bottom] = dark + level * (light - dark)
    return canvas


@dataclass(frozen=True, kw_only=True)
class _Place:
    """An object to draw and its place in the scene."""

    kind: int
    """Index into `KINDS`."""
    y: float
    x: float
    """Centre, pixels."""
    size: float
    """Half of the object's side, pixels."""
    grounded: bool
    """Whether it stands on the ground and casts a shadow."""


def _places(rng: Random, context: Context, horizon: int, height: int, width: int) -> list[_Place]:
    """Draw the objects of a scene and their places at random; distant ones first."""
    scale = min(height, width) * rng.uniform(0.09, 0.13)

    def place(name: str, y: float, x: float, size: float, grounded: bool) -> _Place:
        number = (
            int(rng.integers(len(KINDS))) if rng.uniform() < STRAY_SHARE else _KIND_NUMBERS[name]
        )
        return _Place(
            kind=number, y=y, x=x * width, size=size * scale * KINDS[number].size, grounded=grounded
        )

    places = []
    for _ in range(rng.integers(1, 3)):
        name = context.in_sky[rng.integers(len(context.in_sky))]
        y = rng.uniform(0.15, 0.85) * horizon
        places.append(place(name, y, rng.uniform(0.08, 0.92), rng.uniform(0.8, 1.3), False))
    count = int(rng.integers(3, 6))
    first, last = rng.uniform(0.2, 0.95, 2)
    row_name = context.on_ground[rng.integers(len(context.on_ground))]
    for i in range(count):
        if context.row:
            name = row_name
            depth = first + (last - first) * i / (count - 1)
            x = (i + 0.5 + rng.uniform(-0.12, 0.12)) / count
        else:
            name = context.on_ground[rng.integers(len(context.on_ground))]
            depth, x = rng.uniform(0.05, 0.95), rng.uniform(0.06, 0.94)
        places.append(
            place(name, horizon + depth * (height - horizon) * 0.85, x, 0.6 + depth, True)
        )
    return sorted(places, key=lambda one: one.y)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """The colours and skin parameters of all objects of one kind in a scene."""

    colours: np.ndarray  # (2, 3) float32 in 0..1
    frequency: float
    phase: float


def _patch(place: _Place, height: int, width: int) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """The rows and columns around an object, and v (h, 1) and u (1, w) over them."""
    reach = 1.1 * place.size
    rows = slice(max(0, math.floor(place.y - reach)), min(height, math.ceil(place.y + reach)))
    columns = slice(max(0, math.floor(place.x - reach)), min(width, math.ceil(place.x + reach)))
    size = np.float32(place.size)
    v = (np.arange(rows.start, rows.stop, dtype=np.float32) - np.float32(place.y)) / size
    u = (np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(place.x)) / size
    return rows, columns, v[:, None], u[None, :]


def _draw(
    rng: Random, canvas: np.ndarray, place: _Place, look: _Look, light: np.ndarray
) -> tuple[slice, slice, np.ndarray]:
    """Paint an object into `canvas` (H, W, 3); returns its rows, columns and coverage (h, w).

    The coverage is in 0..1. `light` (2,) float32: the direction (v, u) towards the light.
    """
    kind = KINDS[place.kind]
    height, width = canvas.shape[:2]
    rows, columns, v, u = _patch(place, height, width)
    if place.grounded:  # a shadow on the side away from the light
        shadow = np.exp(-4 * ((2.2 * (v - 0.85)) ** 2 + (u + 0.4 * light[1]) ** 2))
        canvas[rows, columns] *= (1 - 0.55 * shadow)[..., None]
    angle = rng.uniform(-kind.lean, kind.lean)
    sine, cosine = np.float32(math.sin(angle)), np.float32(math.cos(angle))
    own_v, own_u = cosine * v + sine * u, cosine * u - sine * v
    coverage = np.clip(0.5 + place.size * kind.shape(own_v, own_u), 0, 1).astype(np.float32)
    level = kind.skin(own_v, own_u, look.frequency, look.phase).astype(np.float32)[..., None]
    shade = np.clip(0.8 + 0.35 * (v * light[0] + u * light[1]), 0.35, 1.2)[..., None]
    paint = (look.colours[0] + level * (look.colours[1] - look.colours[0])) * shade
    canvas[rows, columns] += coverage[..., None] * (paint - canvas[rows, columns])
    return rows, columns, coverage


def scene(
    seed: int, index: int, size: tuple[int, int] = (128, 160)
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw scene `index` of the set `seed`; returns its pixels (H, W, 3) uint8 RGB and its label.

    See `scene_with_masks`.
    """
    pixels, label, _ = scene_with_masks(seed, index, size)
    return pixels, label


def scene_with_masks(
    seed: int, index: int, size: tuple[int, int] = (128, 160)
) -> tuple[np.ndarray, dict[str, Any], list[np.ndarray]]:
    """Draw scene `index` of the set `seed`; returns its pixels, its label and its objects' masks.

    The pixels are (H, W, 3) uint8 RGB. The masks (H, W) bool are the visible parts of the label's
    objects, in their order.

    `seed` and `index` are at least 0. H and W are each drawn from `size` (low, high), pixels, both
    inclusive. The label, as the shard's `.json` member holds it, has `context`, `context_name` and
    `objects`. Each object of which at least `MIN_VISIBLE` is visible has `kind`, `kind_name`,
    `box` (x1, y1, x2, y2) in whole pixels around its visible part, and `visible`, that part's
    share.
    """
    rng = np.random.default_rng((VERSION, seed, index))
    number = int(rng.integers(len(CONTEXTS)))
    context = CONTEXTS[number]
    height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
    horizon = int(height * rng.uniform(0.25, 0.5))
    hue = rng.uniform()
    canvas = _background(rng, context, horizon, height, width, hue)

    tilt = rng.uniform(-1.2, 1.2)
    light = np.array([-math.cos(tilt), math.sin(tilt)], np.float32)
    accents = (hue + 0.5 + rng.uniform(-0.1, 0.1), hue + rng.choice((0.3, -0.3)))
    looks: dict[int, _Look] = {}
    owner = np.full((height, width), -1, np.int16)  # index of the foremost object of each pixel
    placed = []
    for i, place in enumerate(_places(rng, context, horizon, height, width)):
        if place.kind not in looks:
            accent = accents[len(looks) % 2]
            bright = _colour(rng, accent, 0.05, 0.7, 0.95)
            deep = _colour(rng, accent, 0.2, 0.8, 0.4)
            looks[place.kind] = _Look(
                colours=np.stack([deep, bright]),
                frequency=rng.uniform(5, 11),
                phase=rng.uniform(0, 6),
            )
        rows, columns, coverage = _draw(rng, canvas, place, looks[place.kind], light)
        solid = coverage > 0.5
        owner[rows, columns][solid] = i
        placed.append((place.kind, int(solid.sum())))
    canvas *= 255 * rng.uniform(0.8, 1.15)
    # A camera's noise, the same in all channels.
    canvas += 3 * rng.standard_normal((height, width, 1), np.float32)
    pixels = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    objects, masks = _visible_objects(owner, placed)
    label = {"context": number, "context_name": context.name, "objects": objects}
    return pixels, label, masks


def _visible_objects(
    owner: np.ndarray, placed: list[tuple[int, int]]
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The labels and the masks (H, W) of the visible objects.

    `placed`: each object's kind and number of pixels. `owner` (H, W): the index into `placed` of
    the foremost object, or -1.
    """
    labels, masks = [], []
    for i, (kind, area) in enumerate(placed):
        seen = owner == i
        count = int(np.count_nonzero(seen))
        if area and count >= MIN_VISIBLE * area:
            ys, xs = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
            box = [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1]
            visible = round(count / area, 3)
            labels.append(
                {"kind": kind, "kind_name": KINDS[kind].name, "box": box, "visible": visible}
            )
            masks.append(seen)
    return labels, masks
