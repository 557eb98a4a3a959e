"""The patterns of demo scenes: textures of ground and sky, shapes and skins of objects.

Legend: H, W are the textured area's sides in pixels; y (H, 1) and x (1, W) run from 0 to 1 over the
scene. h, w are the sides of a patch around one object; v (downwards) and u (to the right) run from
-1 to 1 over the object's box.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

Random = np.random.Generator
Texture = Callable[[Random, np.ndarray, np.ndarray], np.ndarray]
Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
Skin = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]

# Textures of ground and sky: (rng, y (H, 1), x (1, W)) -> levels (H, W) in 0..1. On the ground, y
# is 0 at the horizon.


def noise(rng: Random, height: int, width: int, cells_y: float, cells_x: float) -> np.ndarray:
    """Smooth noise (height, width) in 0..1 with about `cells_y` by `cells_x` blobs."""
    grid = rng.integers(0, 256, (max(2, round(cells_y)), max(2, round(cells_x))), np.uint8)
    image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def wave(values: np.ndarray) -> np.ndarray:
    """A sine of `values` (radians) with steep flanks, in 0..1."""
    return np.clip(0.5 + 1.2 * np.sin(values), 0, 1)


def grain(rng, y, x):
    """Grass: fine grain over soft large spots."""
    fine = noise(rng, y.shape[0], x.shape[1], 60, 70)
    return 0.6 * fine + 0.4 * noise(rng, y.shape[0], x.shape[1], 6, 6)


def patches(rng, y, x):
    """Leaves on soil: hard-edged patches."""
    cells = rng.uniform(5, 9)
    return np.clip(6 * noise(rng, y.shape[0], x.shape[1], cells, cells) - 2.6, 0, 1)


def waves(rng, y, x):
    """Water: bent bands, denser towards the horizon."""
    bend = noise(rng, y.shape[0], x.shape[1], 3, 4)
    return wave(rng.uniform(0, 6) + rng.uniform(22, 34) * np.sqrt(y + 0.02) + 5 * bend)


def furrows(rng, y, x):
    """A ploughed field: lines that meet at a vanishing point."""
    return wave(rng.uniform(0, 6) + rng.uniform(9, 15) * (x - rng.uniform(0.3, 0.7)) / (y + 0.15))


def tiles(rng, y, x):
    """A chequered floor in perspective."""
    frequency = rng.uniform(6, 10)
    across = frequency * (x - rng.uniform(0.3, 0.7)) / (y + 0.3)
    along = 1.4 * frequency * np.log(y + 0.3) + rng.uniform(0, 6)
    return np.clip(0.5 + 3 * np.sin(across) * np.sin(along), 0, 1)


def bricks(rng, y, x):
    """Courses of bricks of different shades, with mortar."""
    row = y * rng.uniform(9, 13)
    column = x * rng.uniform(5, 7) + 0.5 * (np.floor(row) % 2) + rng.uniform()
    mortar = np.maximum(np.abs(row % 1 - 0.5), 0.6 * np.abs(column % 1 - 0.5) + 0.21)
    shade = 0.7 + 0.3 * np.sin(37 * np.floor(row) + 91 * np.floor(column))
    return np.where(mortar > 0.42, 0.05, shade)


def dunes(rng, y, x):
    """Sand: soft, bent ripples."""
    bend = noise(rng, y.shape[0], x.shape[1], 3, 3)
    return 0.5 + 0.5 * np.sin(rng.uniform(0, 6) + rng.uniform(14, 22) * (y + 0.5 * x) + 7 * bend)


def planks(rng, y, x):
    """Boards with fibres and dark seams."""
    fibre = noise(rng, y.shape[0], x.shape[1], 40, 3)
    seam = np.abs((y * rng.uniform(5, 8) + rng.uniform()) % 1 - 0.5)
    return np.where(seam > 0.45, 0.0, 0.3 + 0.6 * fibre)


def clear(rng, y, x):
    """A plain gradient, lightest at the top."""
    return np.broadcast_to(1 - y, (y.shape[0], x.shape[1]))


def clouds(rng, y, x):
    """Soft clouds of two sizes."""
    height, width = y.shape[0], x.shape[1]
    return 0.6 * noise(rng, height, width, 4, 4) + 0.4 * noise(rng, height, width, 10, 9)


def stars(rng, y, x):
    """Bright points on a dark gradient."""
    return np.where(noise(rng, y.shape[0], x.shape[1], 45, 45) > 0.93, 1.0, 0.25 * (1 - y))


def rain(rng, y, x):
    """Slanting streaks."""
    slope = rng.uniform(-0.4, 0.4)
    return np.clip(np.sin(60 * (x + slope * y)) + 0.4 * np.sin(37 * x + 9 * y), 0, 1) * 0.7 + 0.1


def trunks(rng, y, x):
    """Upright stems of different widths."""
    edge = noise(rng, y.shape[0], x.shape[1], 2, rng.uniform(12, 18))
    return np.clip(8 * edge - 4, 0, 1)


def paper(rng, y, x):
    """Wallpaper with rows of dots."""
    frequency = rng.uniform(28, 40)
    return np.clip(3 * np.sin(frequency * x) * np.sin(frequency * y + rng.uniform(0, 6)) - 1, 0, 1)


# Shapes: (v, u) -> depth (h, w) of a point inside the shape, in units of the object's half size;
# negative outside.


def ball(v, u):
    """A disc."""
    return 0.95 - np.hypot(u, v)


def box(v, u):
    """A square."""
    return 0.85 - np.maximum(np.abs(u), np.abs(v))


def cone(v, u):
    """A triangle on its base."""
    return np.minimum(0.9 - v, 0.85 * (0.5 * (v + 0.95) - np.abs(u)))


def star(v, u):
    """Five points, one upwards."""
    return 0.62 + 0.3 * np.cos(5 * np.arctan2(u, -v)) - np.hypot(u, v)


def ring(v, u):
    """A ring."""
    return 0.24 - np.abs(np.hypot(u, v) - 0.68)


def mushroom(v, u):
    """Half a disc on a stem."""
    cap = np.minimum(0.95 - np.hypot(u, 1.1 * v + 0.05), 0.05 - v)
    stem = np.minimum(0.28 - np.abs(u), np.minimum(0.92 - v, v + 0.2))
    return np.maximum(cap, stem)


def cross(v, u):
    """A cross of equal arms."""
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(0.3 - a, 0.9 - b), np.minimum(0.3 - b, 0.9 - a))


def crescent(v, u):
    """A disc minus another disc to its right."""
    return np.minimum(0.95 - np.hypot(u, v), np.hypot(u - 0.45, v) - 0.68)


def leaf(v, u):
    """The intersection of two discs."""
    return 1.15 - np.maximum(np.hypot(u - 0.65, v), np.hypot(u + 0.65, v))


def diamond(v, u):
    """A rhombus, taller than wide."""
    return 0.6 * (0.95 - 1.35 * np.abs(u) - np.abs(v))


def gear(v, u):
    """A toothed wheel with a hole."""
    r = np.hypot(u, v)
    teeth = 0.15 * np.clip(2 * np.cos(9 * np.arctan2(u, v)), -1, 1)
    return np.minimum(0.77 + teeth - r, r - 0.25)


def house(v, u):
    """A square under a gable."""
    roof = np.minimum(-0.05 - v, 0.7 * (v + 0.95 - np.abs(u)))
    return np.maximum(roof, np.minimum(0.7 - np.abs(u), np.minimum(0.9 - v, v + 0.1)))


# Skins: (v, u, frequency, phase) -> levels (h, w) in 0..1 between the object's two colours.


def stripes(v, u, frequency, phase):
    """Stripes across."""
    return wave(frequency * v + phase)


def checks(v, u, frequency, phase):
    """Chequers."""
    return np.clip(0.5 + 3 * np.sin(frequency * v + phase) * np.sin(frequency * u + phase), 0, 1)


def dots(v, u, frequency, phase):
    """Spots."""
    return np.clip(4 * np.cos(frequency * v + phase) * np.cos(frequency * u) - 1, 0, 1)


def circles(v, u, frequency, phase):
    """Concentric circles."""
    return wave(frequency * np.hypot(u, v) + phase)


def swirl(v, u, frequency, phase):
    """Three spiral arms."""
    return wave(0.6 * frequency * np.hypot(u, v) + 3 * np.arctan2(v, u) + phase)


def plain(v, u, frequency, phase):
    """A gradient from top to bottom."""
    return 0.5 + 0.35 * v
