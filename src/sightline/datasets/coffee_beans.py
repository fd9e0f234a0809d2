"""Rendered coffee beans in four roasts: a synthetic image data set of any size, without a download or a license.

An image is a small rendered scene: a surface, a lamp, and one to five beans of one roast. A bean is a height field
(dome, crease, wrinkles) shaded by its normals, so that pose, light and gloss interact as in a photograph. Roasts differ
in color, which overlaps between neighboring roasts and varies with exposure and white balance, and in texture:
silverskin (Green), wrinkles (Light), a pale crease (Medium), oil (Dark).

Scenes use frame units and random spectra of fixed shape, so that a scene looks the same at every image size; only the
sensor noise, added last, differs. A plane is ``float32 [rows, columns]``, a color ``float32 [3, 1, 1]`` RGB, and a
canvas ``float32 [3, side, side]``. Colors and canvases hold linear light in 0..1, the square of the pixel value.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sightline import process
from sightline.errors import OutputError, UsageError
from sightline.seeding import make_generator

# Caches and splits are keyed by this version. Increase it whenever the same index, size and seed produce other pixels;
# keep it when only names, comments or the speed change.
GENERATOR_VERSION = 1

Plane = NDArray[np.floating[Any]]  # always float32, which NumPy's type hints lose in arithmetic
Range = tuple[float, float]  # a value is sampled from it for each bean
RGB = tuple[int, int, int]  # pixel values, 0..255
Grain = tuple[float, float, float]  # noise: cutoff in cycles, slope beyond it, length-to-width ratio of marks


class Roast(NamedTuple):
    """The appearance of the beans of one roast."""

    color: RGB  # mean over all images
    blotch: RGB
    spread: Range  # relative standard deviations, between images, of brightness and of each channel
    mottle: Range  # strength of blotches, 0..1
    wrinkle: Range  # depth of wrinkles
    chaff: Range  # paleness of the crease, 0..1
    skin: Range  # silverskin left on the bean, 0..1
    gloss: Range  # strength of the highlight
    power: Range  # sharpness of the highlight


ROASTS = {
    "Dark": Roast((52, 36, 29), (38, 27, 23), (.13, .04), (.1, .5), (.1, .7), (0, .3), (0, 0), (.1, .55), (14, 60)),
    "Green": Roast((158, 150, 116), (136, 134, 88), (.08, .02), (0, 1), (.1, .5), (0, .5), (.1, .4), (0, .06), (6, 14)),
    "Light": Roast((161, 112, 70), (136, 88, 53), (.08, .03), (.4, 1), (.7, 1.5), (.3, .8), (0, .1), (0, .07), (6, 16)),
    "Medium": Roast((108, 67, 45), (90, 54, 37), (.1, .03), (.2, .7), (.3, 1), (.4, 1), (0, .04), (.03, .16), (10, 30)),
}  # fmt: skip
CLASSES: tuple[str, ...] = tuple(ROASTS)
MASK_CLASSES = ("background", "bean")  # mask values 0 and 1
SILVERSKIN_COLOR, CHAFF_COLOR = (203, 178, 147), (190, 152, 112)
TEXTURES: tuple[Grain, ...] = ((2, 0.9, 1), (4, 0.9, 2), (30, 1, 1))  # blotches, bumps and pores of a bean
BEAN_EXTENT = 1.15  # the extent to which a bean is drawn, in semi-axes
SEMI_LENGTH = (0.43, 0.35, 0.31, 0.29, 0.27)  # semi-axis of a bean in frame units, by the number of beans in the image
BEAN_COUNT_PROBABILITIES = (0.44, 0.22, 0.15, 0.11, 0.08)  # probabilities of one, two ... five beans
WORKING_SIDE = 112  # smaller images are drawn at a multiple of their side and downsampled
MIN_SIZE, MAX_SIZE, MIN_COUNT = 16, 1024, 8  # side in pixels; images in a data set

# Surfaces under the beans: pattern, its two colors, their spread (as in a roast), depth of the relief.
SURFACES: tuple[tuple[str, RGB, RGB, Range, float], ...] = (
    ("wood", (95, 64, 43), (154, 110, 74), (0.1, 0.04), 0.15),
    ("wood", (165, 134, 101), (206, 177, 140), (0.08, 0.03), 0.1),
    ("weave", (118, 95, 71), (187, 162, 128), (0.1, 0.03), 0.7),
    ("weave", (151, 150, 146), (206, 204, 198), (0.1, 0.07), 0.5),
    ("paper", (205, 200, 194), (227, 224, 219), (0.05, 0.02), 0.2),
    ("paper", (166, 133, 101), (189, 154, 120), (0.1, 0.03), 0.2),
    ("stone", (45, 46, 49), (74, 78, 81), (0.2, 0.05), 0.9),
    ("stone", (118, 120, 112), (170, 165, 157), (0.1, 0.04), 0.5),
    ("gradient", (97, 88, 80), (193, 186, 180), (0.12, 0.06), 0),
    ("brushed", (139, 139, 141), (176, 176, 176), (0.1, 0.02), 0.2),
)


class Light(NamedTuple):
    """A key light from a unit direction (x right, y down, z towards the camera) and ambient sky light."""

    x: float
    y: float
    z: float
    key: Plane  # color
    sky: Plane  # color
    haze: float  # fraction of sky light, 0..1: more makes shadows softer and paler


class Pose(NamedTuple):
    """Position in frame units, rotation in radians, tilt as its sine, and projected semi-axes in frame units."""

    x: float
    y: float
    angle: float
    tip: float
    length: float
    width: float
    height: float

    def region(self, side: int, reach: float, more: float = 0) -> tuple[slice, slice, Plane, Plane]:
        """Return the rows and columns within `reach` semi-axes plus `more` frame units, and their bean coordinates."""
        sizes = rotate(np.array([self.length, 0]), np.array([0, self.width]), self.angle)
        spans = [(at, reach * math.hypot(*size) + more) for at, size in zip(self[:2], sizes, strict=True)]
        columns, rows = (slice(max(round((at - to) * side), 0), round((at + to) * side)) for at, to in spans)
        line = (np.arange(side, dtype=np.float32) + 0.5) / side
        u, v = rotate(line[columns] - self.x, line[rows, None] - self.y, self.angle)
        return rows, columns, u / self.length, v / self.width


def to_linear(color: RGB, factors: Plane | float = 1) -> Plane:
    """Convert a pixel color, times `factors` `[3]`, to linear light."""
    value = np.asarray(color, np.float32).reshape(3, 1, 1) / 255
    return np.asarray((value * np.reshape(factors, (-1, 1, 1))) ** 2, np.float32)


def sample_color_factors(rng: np.random.Generator, spread: Range, times: float = 1) -> Plane:
    """Sample the factors `[3]` by which a color with this spread differs from its mean."""
    bright, *tint = np.clip(rng.standard_normal(4), -2, 2) * times
    return np.asarray(np.exp(spread[0] * bright + spread[1] * np.array(tint)), np.float32)


def smoothstep(low: Plane | float, high: Plane | float, plane: Plane) -> Plane:
    """Return the smoothstep of `plane` from 0 at `low` to 1 at `high` (either may be the larger)."""
    t = np.clip((plane - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def rotate(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    """Rotate the coordinates of columns `x` and rows `y`: return those along and across `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def make_noise(rng: np.random.Generator, size: int, angle: float, waves: int, *kinds: Grain) -> Plane:
    """Return noise `[len(kinds), size, size]` with mean 0, deviation 1, 1..`waves` cycles and marks along `angle`."""
    raw = rng.standard_normal((2, len(kinds), 2 * waves, waves), dtype=np.float32)
    across = np.arange(waves, dtype=np.float32)
    along, beside = rotate(across, np.concatenate((across, across - waves))[:, None], angle)
    keep = min(waves, size // 2)
    spectrum = np.zeros((len(kinds), size, keep), np.complex64)
    for kind, (even, slope, stretch) in enumerate(kinds):
        gain = (even**2 + (along * stretch) ** 2 + beside**2) ** -slope
        wave = (raw[0, kind] + 1j * raw[1, kind]) * (gain * (0.5 / float(np.linalg.norm(gain))))
        spectrum[kind, :keep], spectrum[kind, -keep:] = wave[:keep, :keep], wave[-keep:, :keep]
    spectrum[:, 0, 0] = 0
    return np.fft.irfft(np.fft.ifft(spectrum, axis=1, norm="forward"), size, norm="forward")


def draw_pattern(rng: np.random.Generator, name: str, side: int) -> Plane:
    """Draw the surface pattern `name`, `[side, side]`, with values of about 0..1."""
    angle, scale = rng.uniform((0, 0.7), (2 * math.pi, 1.4)).tolist()
    line = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    u, v = rotate(line, line[:, None], angle)
    mix: Plane
    if name == "wood":
        warp, grain = make_noise(rng, side, angle, 96, (1.5, 1.3, 2.5), (30, 0.8, 25))
        rings = (v * (7 * scale) + 0.4 * warp) % 1
        mix = 0.45 + 0.6 * (rings - 0.5) * smoothstep(1, 0.85, rings) + 0.13 * grain
    elif name == "weave":
        tone = rng.normal(0, 0.09, (2, 256)).astype(np.float32)
        (across, warp), (down, weft) = (np.divmod(axis * (48 * scale), 1) for axis in (u, v))
        warp, weft = 1 - (2 * warp - 1) ** 2, 1 - (2 * weft - 1) ** 2
        warp_over = (warp + tone[0][across.astype(np.int8)]) * (0.5 + 0.3 * weft)
        weft_over = (weft + tone[1][down.astype(np.int8)]) * (0.5 + 0.3 * warp)
        mix = (
            np.where((across + down) % 2, warp_over, weft_over) + 0.06 * make_noise(rng, side, angle, 96, (90, 1, 1))[0]
        )
    elif name == "gradient":
        mix = smoothstep(-0.6, 0.6, u) + 0.06 * make_noise(rng, side, angle, 4, (1, 1, 1))[0]
    else:
        kinds = {"stone": (2, 0.85, 1), "brushed": (20, 0.7, 60), "paper": (40, 0.7, 1)}
        mix = 0.5 + 0.15 * make_noise(rng, side, angle, 96, kinds[name])[0]
    return mix


def draw_surface(rng: np.random.Generator, light: Light, side: int) -> Plane:
    """Return a canvas with the lit surface on which the beans are drawn."""
    name, low, high, spread, relief = SURFACES[rng.integers(len(SURFACES))]
    factors, mix = sample_color_factors(rng, spread), draw_pattern(rng, name, side)
    dark, pale = to_linear(low, factors), to_linear(high, factors)
    down, across = np.gradient(mix)
    slope = np.clip((across * light.x + down * light.y) * (relief * side / 60), -0.5, 0.5)
    return (dark + (pale - dark) * np.clip(mix, -0.3, 1.3)) * (light.key * (light.z + slope) + light.sky)


def cast_shadow(canvas: Plane, pose: Pose, light: Light) -> None:
    """Darken the canvas, in place, where a bean blocks the light: its outline swept away from the lamp, ever softer."""
    fall, penumbra = 0.8 * min(pose.height / light.z, 1.2 * pose.width), 0.8 * light.haze - 0.12
    rows, columns, u, v = pose.region(canvas.shape[1], 1 + 1.2 * penumbra, fall)
    end_x, end_y = (np.full(1, -fall * towards, np.float32) for towards in light[:2])
    along, across = rotate(end_x, end_y, pose.angle)
    along, across = along / pose.length, across / pose.width
    way = np.clip((u * along + v * across) / (along**2 + across**2), 0, 1)  # 0 under the bean, 1 at the far end
    edge, away = penumbra * (0.4 + 0.8 * way), (u - way * along) ** 2 + (v - way * across) ** 2
    shade = smoothstep((1 + edge) ** 2, (1 - edge) ** 2, away) * (0.9 - 0.35 * way)
    canvas[:, rows, columns] *= 1 - (1.05 - light.haze) * shade


def shape_bean(rng: np.random.Generator, u: Plane, v: Plane, bumps: Plane) -> tuple[Plane, Plane, Plane]:
    """Return a bean's squared radius (1 at the rim), height (1 in the middle) and crease (1 in the groove)."""
    bend, egg, curl, offset = rng.normal(0, 0.06, 4).tolist()
    face, width = rng.uniform((0, 0.045), (1, 0.08)).tolist()
    flat = 0.1 if face < 0.28 else 0.45  # the round back or the flat face
    middle = 2 * offset if face < 0.82 else math.copysign(0.5 + abs(offset), offset)  # otherwise seen from the side
    v = (v - bend * (u * u - 0.3)) / (1 + egg * u)
    square = u * u + v * v
    inside = 1 - square * (1 - flat + flat * square)
    height = np.sqrt(np.maximum(inside, 0.04)) + np.minimum(inside - 0.04, 0) * 2.5 + bumps
    if face < 0.28:
        return square, height, np.zeros_like(square)
    away = v - middle * (1 - 0.55 * u * u) - curl * np.sin(2.8 * u) - 0.2 * bumps
    ends = smoothstep(1, 0.7, np.abs(u))
    groove = np.exp(-((away / width) ** 2)) * ends
    return square, height - 0.15 * groove - 0.25 * np.exp(-((away / 0.25) ** 2)) * ends, groove


def draw_bean(
    rng: np.random.Generator, canvas: Plane, coverage: Plane, roast: Roast, factors: Plane, pose: Pose, light: Light
) -> None:
    """Draw a bean in the roast's color, times `factors` `[3]`, onto the canvas, in place.

    The fraction of each pixel that beans cover, `[side, side]`, is drawn into `coverage`.
    """
    mottle, depth, chaff, skin, gloss, power = rng.uniform(*np.transpose(roast[3:])).tolist()
    side = canvas.shape[1]
    rows, columns, u, v = pose.region(side, BEAN_EXTENT)
    size = 8 * math.ceil((BEAN_EXTENT * pose.length * side + 1) / 4)  # the FFT is fast for multiples of 8
    top, left = rows.start - round(pose.y * side) + size // 2, columns.start - round(pose.x * side) + size // 2
    texture = make_noise(rng, size, pose.angle, 40, *TEXTURES)
    blotch, bumps, pores = texture[:, top : top + u.shape[0], left : left + u.shape[1]]
    blotch, flakes = (
        smoothstep(-1.5, 1.5, blotch),
        smoothstep(0, 0.8, bumps + 3.5 * skin - 1.8) * min(0.7, 4 * skin),
    )
    square, height, groove = shape_bean(rng, u, v, 0.02 * (depth * bumps + 0.4 * flakes))
    down, across = np.gradient((height + 0.9 * pose.tip * u) * (pose.height * side))
    nz, lean = 1 / np.sqrt(1 + across * across + down * down), across * light.x + down * light.y
    facing = np.maximum((light.z - lean) * nz, 0)
    mirror = (light.z + 1 - lean) * nz / math.sqrt(
        2 + 2 * light.z
    ) - 1  # cosine of the normal and the half vector, minus 1
    shine = np.exp(power * mirror) + 0.25 * np.exp(power / 5 * mirror)
    shine *= gloss * (0.3 + 0.7 * blotch) * (1 + 0.1 * pores)
    shine = (shine + (0.02 + 0.3 * gloss) * (1 - nz) ** 3) * (1 - groove)
    color = to_linear(roast.color, factors) * (1 - blotch * mottle)
    color += to_linear(roast.blotch, factors) * (blotch * mottle)
    color += (to_linear(SILVERSKIN_COLOR) - color) * flakes
    color *= 1 + 0.06 * pores
    color += (to_linear(CHAFF_COLOR) - color) * (groove**2 * chaff * smoothstep(-2.2, -0.2, pores))
    open_sky = (1 - 0.8 * groove * (1 - 0.5 * chaff)) * (0.55 + 0.45 * nz)
    color *= (light.key * facing + light.sky) * open_sky
    color += light.key * shine
    cover = np.clip((1 - square) * (0.25 * (pose.length + pose.width) * side) + 0.5, 0, 1)
    canvas[:, rows, columns] += (color - canvas[:, rows, columns]) * cover
    coverage[rows, columns] += (1 - coverage[rows, columns]) * cover


def sample_light(rng: np.random.Generator) -> Light:
    """Sample a light under which a level white surface has a value of about 1."""
    turn, lift, haze = rng.uniform((0, 0.55, 0.25), (2 * math.pi, 1.25, 0.6)).tolist()
    x, y, z = math.cos(lift) * math.cos(turn), math.cos(lift) * math.sin(turn), math.sin(lift)
    warm = np.array([1, 0, -1.2], np.float32).reshape(3, 1, 1) * float(rng.normal(0.03, 0.05))
    return Light(x, y, z, (1 + warm) * ((1 - haze) / z), (1 - 0.5 * warm) * haze, haze)


def sample_poses(rng: np.random.Generator) -> list[Pose]:
    """Sample the poses of one to five beans: the first near the middle, the others spaced apart."""
    count, spots = (
        1 + int(rng.choice(len(BEAN_COUNT_PROBABILITIES), p=BEAN_COUNT_PROBABILITIES)),
        rng.normal(0.5, 0.07, (1, 2)),
    )
    for _ in range(1, count):
        places = rng.uniform(0.08, 0.92, (5, 2))
        room = np.linalg.norm(places[:, None] - spots, axis=2).min(axis=1)
        spots = np.vstack((spots, places[np.argmax(room)]))
    size = float(rng.uniform(0.8, 1.15)) * SEMI_LENGTH[count - 1]
    least, most = (0, -0.5, 0.9, 0.64, 0.6), (2 * math.pi, 0.5, 1.1, 0.78, 0.8)
    turn, tilt, long, wide, high = rng.uniform(least, most, (count, 5)).T
    rows = np.stack((*spots.T, turn, np.sin(tilt), size * long * np.cos(tilt), size * wide, size * wide * high), axis=1)
    return [Pose(*row) for row in rows.tolist()]


def render_photo(rng: np.random.Generator, canvas: Plane, size: int) -> NDArray[np.uint8]:
    """Render the canvas as a camera would, `[size, size, 3]`: blur, vignetting, exposure, white balance, noise."""
    soft, motion = abs(float(rng.normal(0, 0.003))), rng.uniform(0, 0.006, 2) * (rng.uniform() < 0.2)
    tilt, (vignette, grit) = rng.normal(0, 0.07, (2, 1)), rng.uniform((0, 0.4), (0.16, 3)).tolist()
    side, gain = canvas.shape[1], 250 * sample_color_factors(rng, (0.08, 0.025)).reshape(3, 1, 1)
    line = (np.arange(side) + 0.5) * (2 / side) - 1
    down, across = (1 + tilt * line - vignette * line * line).astype(np.float32)
    values = np.minimum(np.sqrt(np.maximum(canvas, 0)) * (gain * down[:, None]) * across, 255).astype(np.uint8)
    image = Image.merge("RGB", [Image.fromarray(band) for band in values])
    image = image.filter(ImageFilter.BoxBlur([1.6 * (soft + m) * side for m in motion.tolist()]))
    sharp = np.asarray(image.resize((size, size), Image.Resampling.BOX))
    bits = np.frombuffer(rng.bytes(2 * sharp.size), np.int8).reshape(2, *sharp.shape)
    grain = np.add(bits[0], bits[1], dtype=np.float32) * (grit / 104)  # triangular distribution with deviation `grit`
    return np.asarray(np.clip(sharp + grain + 0.5, 0, 255), np.uint8)


def check_request(size: int, count: int = MIN_COUNT, index: int = 0) -> None:
    """Raise `UsageError` unless image `index` can be drawn at `size` and a data set can have `count` images."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UsageError(
            f"Beans are drawn at {MIN_SIZE} to {MAX_SIZE} pixels per side, got {size}: choose another size."
        )
    if count < MIN_COUNT:
        raise UsageError(
            f"A beans data set needs at least {MIN_COUNT} images, two per roast, got {count}: choose a larger count."
        )
    if index < 0:
        raise UsageError(f"Beans images are numbered from 0, got {index}: choose an index of 0 or more.")


def draw(index: int, size: int = 224, seed: int = 0) -> NDArray[np.uint8]:
    """Draw image `index`, RGB uint8 `[size, size, 3]`, of class ``CLASSES[index % 4]``; size keeps the scene.

    Raises `UsageError` for a negative index or a size outside 16..1024.
    """
    rng, canvas, _ = _draw_scene(index, size, seed)
    return render_photo(rng, canvas, size)


def draw_mask(index: int, size: int = 224, seed: int = 0) -> NDArray[np.uint8]:
    """Draw the mask of image `index`, uint8 `[size, size]`: 1 where beans cover at least half of a pixel, else 0.

    It comes from the same drawing, before the blur of the camera. Raises `UsageError` as `draw` does.
    """
    _, _, coverage = _draw_scene(index, size, seed)
    times = len(coverage) // size
    covered = coverage.reshape(size, times, size, times).mean((1, 3))
    return np.asarray(covered >= 0.5, np.uint8)


def _draw_scene(index: int, size: int, seed: int) -> tuple[np.random.Generator, Plane, Plane]:
    """Return the generator for the camera, the canvas, and the fraction of each of its pixels that beans cover."""
    check_request(size, index=index)
    rng, roast = make_generator(seed, "beans", index), ROASTS[CLASSES[index % len(CLASSES)]]
    light, factors = sample_light(rng), sample_color_factors(rng, roast.spread)
    canvas = draw_surface(rng, light, size * math.ceil(WORKING_SIDE / size))
    coverage = np.zeros(canvas.shape[1:], np.float32)
    for pose in sample_poses(rng):
        cast_shadow(canvas, pose, light)
        color = factors * sample_color_factors(rng, roast.spread, 0.35)
        draw_bean(rng, canvas, coverage, roast, color, pose, light)
    return rng, canvas, coverage


def write(folder: str | Path, count: int = 1200, size: int = 224, seed: int = 0, kind: str = "png") -> None:
    """Write images 0..count-1 as ``folder/<Class>/<class>-0001.png`` (or ``jpg``, quality 92).

    Raises `UsageError` for a size outside 16..1024, a count below 8 and another `kind`, `OutputError` if the folder is
    not empty or not writable.
    """
    check_request(size, count)
    if kind not in ("png", "jpg"):
        raise UsageError(f"Beans can be written as png or jpg, got {kind!r}: choose one of them.")

    def save(index: int) -> None:
        name = CLASSES[index % len(CLASSES)]
        path = Path(folder, name, f"{name.lower()}-{index // len(CLASSES) + 1:04d}.{kind}")
        Image.fromarray(draw(index, size, seed)).save(path, quality=92)

    try:
        for name in CLASSES:
            Path(folder, name).mkdir(parents=True)
        with ThreadPoolExecutor(process.count_cores()) as pool:
            list(pool.map(save, range(count)))
    except OSError as error:
        raise OutputError(f"Cannot write beans to {folder}: {error}. Choose a new folder.") from error
