"""Drawn coffee beans in four roasts: a picture data set of any size that needs no download and no licence.

A picture is a small rendered scene: a surface, a key light with a soft sky, and one to five beans of one roast. A bean
is a height field (dome, crease, wrinkles) shaded by its normals, so that pose, light and gloss interact as on a
photograph. Roasts differ in colour, which overlaps between neighbours and is shaken by exposure and white balance, and
in texture: silverskin (Green), wrinkles (Light), a pale crease (Medium), oil (Dark).

A scene is drawn in units of the frame, from random spectra of fixed shape, so that it is the same at every size; only
the sensor's noise, drawn last, differs. A plane is ``float32 [rows, columns]``; a colour is ``float32 [3, 1, 1]``, RGB,
and a canvas ``float32 [3, side, side]``, both in light: 0..1, the square of a pixel's value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.errors import OutputError, UsageError
from sightline.randomness import generator

Plane = NDArray[np.float32]
Lab = tuple[float, float, float] | NDArray[np.float64]
Range = tuple[float, float]
Grain = tuple[float, float, float]  # of noise: cycles up to which it is even, fall beyond, length of marks over width


@dataclass(frozen=True)
class Roast:
    """What a roast looks like: colours in CIE Lab (D65), and ranges from which each bean draws."""

    colour: Lab  # mean of all pictures
    spread: Lab  # standard deviation between pictures
    patch: Lab  # what blotches add to the colour
    mottle: Range  # strength of blotches, 0..1
    wrinkle: Range  # depth of wrinkles
    chaff: Range  # how pale the crease is, 0..1
    skin: Range  # silverskin left on the bean, 0..1
    gloss: Range  # strength of the highlight
    sharpness: Range  # its exponent
    size: float  # beans swell as they roast


ROASTS = {
    "Dark": Roast((17, 7.5, 8.5), (3.6, 1.6, 2.4), (-5, -2, -3), (0.1, 0.5), (0.15, 0.7), (0.0, 0.3), (0.0, 0.0),
                  (0.10, 0.55), (14, 60), 1.06),
    "Green": Roast((62, -2.5, 19), (5.0, 2.4, 4.0), (-7, -4, 6), (0.2, 0.8), (0.1, 0.5), (0.1, 0.5), (0.1, 0.45),
                   (0.01, 0.06), (6, 14), 0.93),
    "Light": Roast((47, 15, 29), (4.6, 2.0, 3.2), (-9, 1, -3), (0.4, 1.0), (0.7, 1.5), (0.3, 0.8), (0.0, 0.12),
                   (0.01, 0.07), (6, 16), 1.0),
    "Medium": Roast((34, 15, 22), (4.2, 1.8, 3.0), (-6, -1, -3), (0.2, 0.7), (0.3, 1.0), (0.4, 1.0), (0.0, 0.04),
                    (0.03, 0.16), (10, 30), 1.03),
}  # fmt: skip
CLASSES: tuple[str, ...] = tuple(ROASTS)

SILVERSKIN, CHAFF = (74, 4, 19), (66, 9, 27)
SKIN: tuple[Grain, ...] = ((2, 0.9, 1.0), (4, 0.95, 2.2), (3, 0.8, 2.0), (30, 1.0, 1.0))  # blotches bumps flakes pores
SEMI_LENGTH = (0.36, 0.29, 0.26, 0.24, 0.22)  # of a bean, in frames, by the number of beans in the picture
BEAN_SHARES = (0.44, 0.22, 0.15, 0.11, 0.08)  # how often there are one, two ... five
WORKING_SIDE = 112  # smaller pictures are drawn at a multiple of their side and averaged down
SMALLEST, LARGEST, FEWEST = 16, 1024, 8  # side in pixels; pictures in a set

# What beans lie on: pattern, the two colours it mixes, standard deviation of both together, depth of its relief.
SURFACES: tuple[tuple[str, Lab, Lab, Lab, float], ...] = (
    ("wood", (30, 11, 18), (50, 13, 27), (9, 3, 4), 0.15),
    ("wood", (58, 7, 22), (74, 5, 23), (6, 3, 4), 0.1),
    ("weave", (42, 6, 17), (68, 4, 21), (7, 2, 5), 0.7),
    ("weave", (62, 0, 2), (82, 0, 3), (9, 4, 9), 0.5),
    ("paper", (84, 1, 4), (91, 0, 3), (4, 1, 3), 0.25),
    ("paper", (58, 8, 22), (66, 8, 23), (6, 2, 3), 0.25),
    ("stone", (19, 0, -2), (33, -1, -2), (5, 2, 3), 0.9),
    ("stone", (50, -2, 4), (68, 0, 5), (8, 3, 5), 0.5),
    ("gradient", (38, 2, 6), (76, 1, 4), (12, 7, 10), 0.0),
    ("brushed", (58, 0, -1), (72, 0, 0), (6, 1, 2), 0.2),
)


@dataclass(frozen=True)
class Light:
    """A key light in a unit direction (x right, y down, z to the camera), a sky, and the shadow between them."""

    x: float
    y: float
    z: float
    key: Plane  # colour
    sky: Plane  # colour
    penumbra: float  # width of the shadow's edge, in semi-axes of the bean
    shade: float  # depth of the shadow, 0..1


@dataclass(frozen=True)
class Pose:
    """Where a bean lies, in frames; how it is turned (radians) and tipped (sine); its semi-axes as seen, in frames."""

    x: float
    y: float
    angle: float
    tip: float
    length: float
    width: float
    height: float

    def patch(self, reach: int, side: int, dx: float = 0, dy: float = 0) -> tuple[slice, slice, Plane, Plane]:
        """Return rows and columns within `reach` pixels of the bean moved by (dx, dy), and both in its semi-axes."""
        x, y = self.x * side + dx, self.y * side + dy
        rows, columns = (slice(max(round(at) - reach, 0), max(round(at) + reach, 0)) for at in (y, x))
        line = np.arange(side, dtype=np.float32) + 0.5
        u, v = turned((line[columns] - x) / side, (line[rows, None] - y) / side, self.angle)
        return rows, columns, u / self.length, v / self.width


def rgb(lab: Lab) -> Plane:
    """Return a CIE Lab colour as a colour of this module."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * (0.9505, 1.0, 1.089)
    matrix = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
    light = np.clip(np.array(matrix) @ xyz, 0.0032, 1.0)
    return np.asarray((1.055 * light ** (1 / 2.4) - 0.055) ** 2, np.float32).reshape(3, 1, 1)


def jitter(rng: np.random.Generator, spread: Lab) -> NDArray[np.float64]:
    """Return a normal shift `[3]` of standard deviation `spread`, cut at two deviations."""
    return np.clip(rng.standard_normal(3), -2, 2) * spread


def smooth(low: float, high: float, plane: Plane) -> Plane:
    """Return the smooth step of `plane` from 0 at `low` to 1 at `high` (either may be the larger)."""
    t = np.clip((plane - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    """Return the coordinates along and across `angle` of columns `x` and rows `y`."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def noise(rng: np.random.Generator, size: int, angle: float, waves: int, *kinds: Grain) -> Plane:
    """Return noise `[len(kinds), size, size]`, mean 0, deviation 1, marks along `angle`, up to `waves` cycles a side."""
    raw = rng.standard_normal((2, len(kinds), 2 * waves, waves), dtype=np.float32)
    across = np.arange(waves, dtype=np.float32)
    along, beside = turned(across, np.concatenate((across, across - waves))[:, None], angle)
    keep = min(waves, size // 2)
    spectrum = np.zeros((len(kinds), size, keep), np.complex64)
    for kind, (even, slope, stretch) in enumerate(kinds):
        gain = (even**2 + (along * stretch) ** 2 + beside**2) ** -slope
        gain[0, 0] = 0
        wave = (raw[0, kind] + 1j * raw[1, kind]) * (gain * (0.5 / float(np.sqrt(np.sum(gain * gain)))))
        spectrum[kind, :keep], spectrum[kind, -keep:] = wave[:keep, :keep], wave[-keep:, :keep]
    mixed = np.fft.ifft(spectrum, axis=1, norm="forward")
    return np.asarray(np.fft.irfft(mixed, size, axis=2, norm="forward"), np.float32)


def pattern(rng: np.random.Generator, name: str, side: int) -> Plane:
    """Return the surface pattern `name`, `[side, side]`, about 0..1."""
    angle, scale = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.7, 1.4))
    line = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    u, v = turned(line, line[:, None], angle)
    if name == "wood":
        warp, grain = noise(rng, side, angle, 96, (1.5, 1.3, 2.5), (30, 0.8, 25))
        rings = (v * 7 * scale + 0.4 * warp) % 1
        return 0.45 + 0.6 * (rings - 0.5) * smooth(1, 0.85, rings) + 0.13 * grain
    if name == "weave":
        tone = 0.09 * rng.standard_normal((2, 256), dtype=np.float32)
        (across, warp), (down, weft) = (np.divmod(axis * 48 * scale, 1) for axis in (u, v))
        tone_warp, tone_weft = tone[0][across.astype(np.int8)], tone[1][down.astype(np.int8)]
        warp, weft = 1 - (2 * warp - 1) ** 2, 1 - (2 * weft - 1) ** 2
        over = np.where((across + down) % 2, (warp + tone_warp) * (0.5 + 0.3 * weft), (weft + tone_weft) * (0.5 + 0.3 * warp))
        return over + 0.06 * noise(rng, side, angle, 96, (90, 1, 1))[0]
    if name == "gradient":
        return smooth(-0.6, 0.6, u) + 0.06 * noise(rng, side, angle, 4, (1, 1, 1))[0]
    depth, kind = {"stone": (0.17, (2, 0.85, 1)), "brushed": (0.16, (20, 0.7, 60)), "paper": (0.12, (40, 0.7, 1))}[name]
    return 0.5 + depth * noise(rng, side, angle, 96, kind)[0]


def surface(rng: np.random.Generator, light: Light, side: int) -> Plane:
    """Return a canvas: the lit surface that the beans will lie on."""
    name, low, high, spread, relief = SURFACES[int(rng.integers(len(SURFACES)))]
    shift, mix = jitter(rng, spread), pattern(rng, name, side)
    dark, pale = rgb(low + shift), rgb(high + shift)
    down, across = np.gradient(mix)
    slope = np.clip((across * light.x + down * light.y) * (relief * side / 60), -0.5, 0.5)
    return (dark + (pale - dark) * np.clip(mix, -0.3, 1.3)) * (light.key * (light.z + slope) + light.sky)


def cast_shadow(canvas: Plane, pose: Pose, light: Light) -> None:
    """Darken the canvas, in place, where a bean hides the light: most under its rim, least at the shadow's far end."""
    side, fall = canvas.shape[1], min(pose.height / light.z, 1.2 * pose.width)
    dx, dy = -fall * light.x, -fall * light.y
    reach = math.ceil((pose.length * (1 + light.penumbra) + fall / 2) * side)
    rows, columns, u, v = pose.patch(reach, side, dx / 2 * side, dy / 2 * side)
    along, across = turned(np.float32(dx), np.float32(dy), pose.angle)
    shade = np.zeros_like(u)
    for share, depth in ((0.05, 0.9), (0.4, 0.75), (0.8, 0.6)):
        du, dv = u + (0.5 - share) * along / pose.length, v + (0.5 - share) * across / pose.width
        edge = light.penumbra * (0.4 + share)
        np.maximum(shade, smooth((1 + edge) ** 2, (1 - edge) ** 2, du * du + dv * dv) * depth, out=shade)
    canvas[:, rows, columns] *= 1 - light.shade * shade


def form(rng: np.random.Generator, u: Plane, v: Plane, bumps: Plane) -> tuple[Plane, Plane, Plane]:
    """Return a bean's squared radius (1 at the rim), height (1 in the middle) and crease (1 in the groove)."""
    bend, egg, curl, offset = rng.normal(0, 0.06, 4).tolist()
    face, width = float(rng.uniform()), float(rng.uniform(0.045, 0.08))
    v = (v - bend * (u * u - 0.3)) / (1 + egg * u)
    square = u * u + v * v
    flat = 0.1 if face < 0.28 else 0.45  # the round back, or the flat face
    inside = 1 - square * (1 - flat + flat * square)
    height = np.sqrt(np.maximum(inside, 0.04)) + np.minimum(inside - 0.04, 0) * 2.5 + bumps
    if face < 0.28:
        return square, height, np.zeros_like(square)
    middle = 2 * offset if face < 0.82 else math.copysign(0.5 + abs(offset), offset)  # at times from the side
    away = v - middle * (1 - 0.55 * u * u) - curl * np.sin(2.8 * u) - 0.2 * bumps
    ends = smooth(1.0, 0.7, np.abs(u))
    groove = np.exp(-((away / width) ** 2)) * ends
    return square, height - 0.15 * groove - 0.25 * np.exp(-((away / 0.25) ** 2)) * ends, groove


def lay(rng: np.random.Generator, canvas: Plane, roast: Roast, lab: Lab, pose: Pose, light: Light) -> None:
    """Paint a bean of colour `lab` onto the canvas, in place."""
    side, reach = canvas.shape[1], math.ceil(1.15 * pose.length * canvas.shape[1])
    mottle, depth, chaff, share, gloss, power = (
        float(rng.uniform(*span))
        for span in (roast.mottle, roast.wrinkle, roast.chaff, roast.skin, roast.gloss, roast.sharpness)
    )
    rows, columns, u, v = pose.patch(reach, side)
    top, left = rows.stop - 2 * reach, columns.stop - 2 * reach
    texture = noise(rng, 2 * reach, pose.angle, 40, *SKIN)[:, rows.start - top :, columns.start - left :]
    blotch, bumps, flakes, pores = texture[:, : u.shape[0], : u.shape[1]]
    blotch, flakes = smooth(-1.5, 1.5, blotch), smooth(0, 0.8, flakes + 3.5 * share - 1.8) * min(0.7, 4 * share)
    square, height, groove = form(rng, u, v, 0.02 * (depth * bumps + 0.4 * flakes))
    if u.size == 0:
        return
    down, across = np.gradient((height + 0.9 * pose.tip * u) * (pose.height * side))
    nz, lean = 1 / np.sqrt(1 + across * across + down * down), across * light.x + down * light.y
    facing = np.maximum((light.z - lean) * nz, 0)
    mirror = (light.z + 1 - lean) * nz / math.sqrt(2 + 2 * light.z) - 1  # the normal's cosine with half-way, less 1
    shine = gloss * (0.3 + 0.7 * blotch) * (1 + 0.1 * pores) * (np.exp(power * mirror) + 0.25 * np.exp(power / 5 * mirror))
    shine = (shine + (0.02 + 0.3 * gloss) * (1 - nz) ** 3) * (1 - groove)
    plain = rgb(lab)
    colour = plain + (rgb(lab + np.asarray(roast.patch)) - plain) * (blotch * mottle)
    colour = (colour + (rgb(SILVERSKIN) - colour) * flakes) * (1 + 0.06 * pores)
    colour += (rgb(CHAFF) - colour) * (groove**2 * chaff * smooth(-2.2, -0.2, pores))
    open_sky = (1 - 0.8 * groove * (1 - 0.5 * chaff)) * (0.55 + 0.45 * nz)
    lit = (colour * (light.key * facing + light.sky)) * open_sky + light.key * shine
    cover = np.clip((1 - square) * (0.25 * (pose.length + pose.width) * side) + 0.5, 0, 1)
    part = canvas[:, rows, columns]
    part += (lit - part) * cover


def lamp(rng: np.random.Generator) -> Light:
    """Return a light under which a level white surface is about 1."""
    azimuth, height = float(rng.uniform(0, 2 * math.pi)), math.radians(float(rng.uniform(32, 72)))
    sky, warmth = float(rng.uniform(0.25, 0.6)), float(rng.normal(0.03, 0.05))
    x, y, z = math.cos(height) * math.cos(azimuth), math.cos(height) * math.sin(azimuth), math.sin(height)
    key = np.array([1 + warmth, 1, 1 - 1.3 * warmth], np.float32).reshape(3, 1, 1) * ((1 - sky) / z)
    cool = np.array([1 - 0.5 * warmth, 1, 1 + 0.6 * warmth], np.float32).reshape(3, 1, 1) * sky
    return Light(x, y, z, key, cool, float(rng.uniform(0.08, 0.35)), (1.1 - sky) * float(rng.uniform(0.75, 1.0)))


def scatter(rng: np.random.Generator, size: float) -> list[Pose]:
    """Return the poses of one to five beans of relative `size`: the first near the middle, the others with some room."""
    count, spots = 1 + int(rng.choice(len(BEAN_SHARES), p=BEAN_SHARES)), rng.normal(0.5, 0.07, (1, 2))
    for _ in range(1, count):
        places = rng.uniform(0.08, 0.92, (5, 2))
        room = np.linalg.norm(places[:, None] - spots, axis=2).min(axis=1)
        spots = np.vstack((spots, places[np.argmax(room)]))
    size *= float(rng.uniform(0.75, 1.15)) * SEMI_LENGTH[count - 1]
    turn, tilt, long, wide, high = rng.uniform((0, -0.5, 0.9, 0.64, 0.6), (2 * math.pi, 0.5, 1.1, 0.78, 0.8), (count, 5)).T
    rows = np.stack((*spots.T, turn, np.sin(tilt), size * long * np.cos(tilt), size * wide, size * wide * high), axis=1)
    return [Pose(*row) for row in rows.tolist()]


def blur(canvas: Plane, deviations: NDArray[np.float64]) -> None:
    """Blur the canvas in place, by deviations `[2]` in pixels down and across: kernels of three, ever wider apart."""
    for axis, deviation in enumerate(deviations.tolist(), start=1):
        planes, left, step = np.swapaxes(canvas, axis, 2), deviation**2, 1
        while left > 0.01:
            weight = min(0.25, left / (2 * step * step))
            padded = np.pad(planes, ((0, 0), (0, 0), (step, step)), mode="edge")
            planes *= 1 - 2 * weight
            planes += (padded[:, :, : -2 * step] + padded[:, :, 2 * step :]) * np.float32(weight)
            left, step = left - 2 * weight * step * step, 2 * step


def photograph(rng: np.random.Generator, canvas: Plane, size: int) -> NDArray[np.uint8]:
    """Return the canvas as a camera sees it, `[size, size, 3]`: blur, fall-off, exposure, white balance, noise."""
    soft, motion = abs(float(rng.normal(0, 0.003))), rng.uniform(0, 0.006, 2) * (rng.uniform() < 0.2)
    tilt, vignette, grit = rng.normal(0, 0.07, (2, 1)), float(rng.uniform(0, 0.16)), float(rng.uniform(0.4, 3.0))
    exposure, warmth, tint = np.clip(rng.standard_normal(3), -2, 2) * (0.11, 0.045, 0.02)
    blur(canvas, (soft + motion) * canvas.shape[1])
    values = np.sqrt(np.clip(canvas, 0, None)).reshape(3, size, -1, size, canvas.shape[1] // size).mean(axis=(2, 4))
    line = (np.arange(size) + 0.5) * (2 / size) - 1
    down, across = (1 + tilt * line - vignette * line * line).astype(np.float32)
    gain = np.exp(exposure) * np.array([1 + warmth, 1 + tint, 1 - warmth])
    values *= (255 * gain).astype(np.float32)[:, None, None] * down[:, None] * across
    bits = np.frombuffer(rng.bytes(2 * values.size), np.int8).reshape(2, *values.shape)
    values += (bits[0] * np.float32(grit / 74) + bits[1] * np.float32(grit / 74)) 
    return np.ascontiguousarray(np.clip(values + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def check(size: int, count: int = FEWEST) -> None:
    """Raise `UsageError` unless pictures can be drawn at `size` and `count` make a set."""
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(f"beans are drawn at {SMALLEST} to {LARGEST} pixels a side, got {size}: choose a size between.")
    if count < FEWEST:
        raise UsageError(f"a set of beans has at least {FEWEST} pictures, two of each roast, got {count}: ask for more.")


def draw(index: int, size: int = 224, seed: int = 0) -> NDArray[np.uint8]:
    """Return picture `index`, RGB `[size, size, 3]`, of class ``CLASSES[index % 4]``; one scene at every size.

    Raises `UsageError` for a negative index or a size outside 16..1024.
    """
    check(size)
    if index < 0:
        raise UsageError(f"pictures of beans are counted from 0, got {index}: choose an index of 0 or more.")
    rng, roast = generator(seed, "beans", index), ROASTS[CLASSES[index % len(CLASSES)]]
    light, lab = lamp(rng), roast.colour + jitter(rng, roast.spread)
    canvas = surface(rng, light, size * math.ceil(WORKING_SIDE / size))
    for pose in scatter(rng, roast.size):
        cast_shadow(canvas, pose, light)
        lay(rng, canvas, roast, lab + 0.35 * jitter(rng, roast.spread), pose, light)
    return photograph(rng, canvas, size)


def draw_all(
    count: int, size: int = 224, seed: int = 0, threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:  # fmt: skip
    """Return pictures 0..count-1, uint8 `[count, size, size, 3]`, and labels, int64 `[count]`, whatever the `threads`.

    `progress(done, count)` is called in this thread. Raises `UsageError` for a size outside 16..1024 or count below 8.
    """
    check(size, count)
    pictures = np.empty((count, size, size, 3), np.uint8)

    def fill(index: int) -> None:
        pictures[index] = draw(index, size, seed)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(fill, range(count)), start=1):
            if progress is not None:
                progress(done, count)
    return pictures, np.arange(count, dtype=np.int64) % len(CLASSES)


def write(folder: str | Path, count: int = 1200, size: int = 224, seed: int = 0, kind: str = "png") -> None:
    """Write pictures 0..count-1 as ``folder/<Class>/<class>-0001.png`` (or ``jpg``, of quality 92).

    Raises `UsageError` as `draw_all` or for another kind; `OutputError` when the folder is not empty or not writable.
    """
    check(size, count)
    if kind not in ("png", "jpg"):
        raise UsageError(f"beans are written as png or jpg, got {kind!r}: choose one of the two.")

    def save(index: int) -> None:
        name = CLASSES[index % len(CLASSES)]
        path = Path(folder, name, f"{name.lower()}-{index // len(CLASSES) + 1:04d}.{kind}")
        Image.fromarray(draw(index, size, seed)).save(path, quality=92)

    try:
        for name in CLASSES:
            Path(folder, name).mkdir(parents=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(save, range(count)))
    except OSError as error:
        raise OutputError(f"cannot write beans to {folder}: {error}; name a new folder.") from error
