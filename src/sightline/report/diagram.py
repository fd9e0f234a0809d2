"""An architecture diagram of a network for a paper: a row of boxes, sized by the feature maps.

A box's height and depth represent the size of the feature maps, and its width their number, both as square roots so
that 7 pixels are visible next to 224. Lengths are in inches.
"""
# ruff: noqa: RUF001  # papers print sizes with a multiplication sign

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from sightline.errors import UsageError
from sightline.models.describe import ModelDescription
from sightline.report import plotting
from sightline.report.diagram_blocks import (
    DiagramGroup,
    DiagramUnit,
    group_layers,
    without_stride,
)
from sightline.report.plotting import INK

MISSING = r"Glyph \d+ .* missing from font"
FORMATS = ("png", "svg")
COLORS = {
    "input": "#dee2e6",
    "convolution": "#f6c667",
    "depthwise": "#f3a261",
    "separable": "#f3a261",
    "block": "#8ab6e0",
    "dense": "#86c29a",
    "pooling": "#d9626b",
    "normalization": "#9a86c8",
    "dropout": "#868e96",
    "softmax": "#3c6e9f",
}
TALLEST, LOWEST = 1.9, 0.16  # heights of a box
WIDEST = 1.15  # width of a group
SLANT = 0.3  # ratio of a box's drawn depth to its side
STRIP = 0.045
GAP = 0.24  # between groups
MAX_LISTED = 3  # convolutions described individually per block
ROW = 12.5  # wider drawings get a second row
BIG, SMALL, LINE = 8, 7, 0.15  # points, points, inches


def plot_architecture(description: ModelDescription, format: str = "png") -> bytes:
    """Draw a network; `format` is ``png`` or ``svg``."""
    layer_groups = group_layers(description)
    largest = max(max(unit.output[:2]) for group in layer_groups for unit in group.units if len(unit.output) == 3)
    rows = _divide_rows(layer_groups, largest)
    width = max(sum(_cell(group, largest) for group in row) for row in rows) + 2 * GAP
    legend = _legend(layer_groups)
    title = _title(description)
    width = max(width, _text_width(title, 10, "bold") + 0.4, *(_swatch(text) + 0.4 for _, text in legend))
    lines = _legend_lines(legend, width - 0.4)
    tops = [max(_half(group, largest) for group in row) for row in rows]
    bottoms = [max(_half(group, largest) + LINE * (len(_label(group)) + 0.8) for group in row) for row in rows]
    height = 0.5 + sum(tops) + sum(bottoms) + 0.1 + 0.24 * len(lines)
    figure = plotting.make_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    axes.text(width / 2, height - 0.22, title, ha="center", va="center", fontweight="bold", **plotting.text_style(10))
    y = height - 0.5
    for row, top, bottom in zip(rows, tops, bottoms, strict=True):
        _draw_row(axes, row, largest, (width - sum(_cell(group, largest) for group in row)) / 2, y - top)
        y -= top + bottom
    for number, line in enumerate(lines):
        _draw_legend(axes, line, width, 0.2 + 0.24 * (len(lines) - 1 - number))
    return save_figure(figure, format)


def save_figure(figure: Any, format: str) -> bytes:
    """Return a figure as bytes, reproducibly; the metadata name Sightline as its creator."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "sightline"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", MISSING, UserWarning)  # missing characters are drawn as boxes
        author = {"Date": None, "Creator": "Sightline"} if format == "svg" else {"Software": "Sightline"}
        figure.savefig(buffer, format=format, dpi=200, metadata=author)
    return buffer.getvalue()


def parse_format(path: str) -> str:
    """Return the format for a file's suffix; raise `UsageError` if it cannot be drawn.

    >>> parse_format("paper/vgg.SVG")
    'svg'
    """
    suffix = path.rpartition(".")[2].lower() if "." in path else ""
    if suffix not in FORMATS:
        raise UsageError(f"{path} has no known image format: use a name that ends in .png or .svg.")
    return suffix


def _title(description: ModelDescription) -> str:
    size = "×".join(map(str, description.size))
    return (
        f"{description.name}: {size}, {description.classes:,} classes, {description.parameters:,} parameters, "
        f"{_format_count(description.multiply_adds)} multiply-adds"
    )


def _format_count(number: int) -> str:
    """Return a number with three digits: 15,470,264,320 as 15.5 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _divide_rows(layer_groups: Sequence[DiagramGroup], largest: int) -> list[list[DiagramGroup]]:
    """Divide the groups into rows of about the same width, each narrower than `ROW`."""
    cells = [_cell(group, largest) for group in layer_groups]
    count = math.ceil(sum(cells) / ROW)
    row_width = sum(cells) / count
    rows: list[list[DiagramGroup]] = [[] for _ in range(count)]
    x = 0.0
    for group, cell in zip(layer_groups, cells, strict=True):
        rows[min(int((x + cell / 2) / row_width), count - 1)].append(group)
        x += cell
    return [row for row in rows if row]


def _side(pixels: int, largest: int) -> float:
    return max(TALLEST * math.sqrt(pixels / largest), LOWEST)


def _box(shape: tuple[int, ...], largest: int) -> tuple[float, float, float]:
    """Return the width, height and drawn depth of the box for a shape: feature maps, or a vector as an upright bar."""
    if len(shape) == 3:
        width = max(0.032 * math.sqrt(shape[2] / 8), 0.05)
        return width, _side(shape[0], largest), SLANT * _side(shape[1], largest)
    return 0.13, 0.3 + 0.11 * math.log2(max(shape[0], 1)), 0.08


def _faces(group: DiagramGroup, largest: int) -> Iterator[tuple[str, float, float, float, bool]]:
    """Yield the boxes of a group from left to right: kind, width, height, depth, whether it ends in an activation."""
    max_width = (WIDEST if len(group.units) > 1 else 9) / len(group.units)
    for unit in group.units:
        width, height, depth = _box(unit.output, largest)
        yield (
            unit.kind,
            min(width, max_width),
            height,
            depth,
            unit.kind != "block" and "activation" in unit.extras.values(),
        )
        before = [role for role in unit.extras.values() if role == "normalization"]
        behind = [role for role in unit.extras.values() if role in ("dropout", "softmax")]
        for _ in before if unit.kind != "block" else ():
            yield "normalization", min(STRIP, max_width), height, depth, False
        for _, shape in unit.pools:
            flat = shape if len(shape) == 3 else (1, 1, *shape)
            pooled = _box(flat, largest)
            yield "pooling", min(max(0.6 * pooled[0], 0.06), 0.3), pooled[1], pooled[2], False
            height, depth = pooled[1], pooled[2]
        for role in behind:
            yield role, 1.4 * STRIP if role == "softmax" else STRIP, height, depth, False


def _extent(group: DiagramGroup, largest: int) -> tuple[float, float, float]:
    """Return the width of a group's boxes, and how much their depth adds on the left and on the right."""
    faces = list(_faces(group, largest))
    return sum(face[1] for face in faces), faces[0][3] / 2, max(face[3] for face in faces) / 2


def _half(group: DiagramGroup, largest: int) -> float:
    return max((face[2] + face[3]) / 2 for face in _faces(group, largest))


def _cell(group: DiagramGroup, largest: int) -> float:
    words = max(_text_width(text, size, weight) for text, size, weight in _label(group))
    return max(sum(_extent(group, largest)), words) + GAP


def _label(group: DiagramGroup) -> list[tuple[str, int, str]]:
    """Return the lines of text below a group: text, size in points, weight."""
    last = group.last
    count = len(group.units)
    texts = [unit.text for unit in group.units]
    text = max(sorted(set(texts)), key=lambda text: (text.startswith("residual"), texts.count(text)))
    if count > 1:
        plural = "s" if text.endswith("block") else ""
        text = f"{count} × {without_stride(text)}{plural}"
    lines = [("×".join(f"{n:,}" if len(last.output) == 1 else str(n) for n in last.output), BIG, "bold")]
    lines.append((text, SMALL, "normal"))
    if last.parts:
        many = f"{len(last.parts)} convolutions" if count == 1 else f"{len(last.parts)} convolutions each"
        lines.append((", ".join(last.parts) if len(last.parts) <= MAX_LISTED else many, SMALL, "normal"))
    if last.pools:
        lines.append((f"→ {'×'.join(map(str, last.pools[-1][1]))}", SMALL, "normal"))
    return lines


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of `text` in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=plotting.fonts_for(text), size=size, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", MISSING, UserWarning)
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def _draw_row(axes: Any, row: Sequence[DiagramGroup], largest: int, x: float, y: float) -> None:
    end: float | None = None
    for group in row:
        cell = _cell(group, largest)
        boxes, left, right = _extent(group, largest)
        at = x + (cell - left - boxes - right) / 2 + left
        if end is not None:
            arrow = {
                "arrowstyle": "-|>",
                "color": INK,
                "linewidth": 0.7,
                "shrinkA": 2,
                "shrinkB": 2,
                "mutation_scale": 7,
            }
            axes.annotate("", (at - left, y), (end, y), arrowprops=arrow, zorder=0)
        for kind, width, height, depth, bright in _faces(group, largest):
            _cuboid(axes, (at, y), (width, height, depth), COLORS[kind], band=bright)
            at += width
            end = at + depth / 2
        below = y - _half(group, largest) - LINE * 0.8
        for text, size, weight in _label(group):
            axes.text(
                x + cell / 2, below, text, ha="center", va="center", fontweight=weight, **plotting.text_style(size)
            )
            below -= LINE
        x += cell


def _cuboid(axes: Any, at: tuple[float, float], size: tuple[float, float, float], color: str, *, band: bool) -> None:
    """Draw a box, seen from the right and above, with the center of its left side `at`; `band` marks an activation."""
    from matplotlib.patches import Polygon

    width, height, depth = size
    x, y = at[0] - depth / 2, at[1] - (height + depth) / 2
    front = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    top = [
        (x, y + height),
        (x + width, y + height),
        (x + width + depth, y + height + depth),
        (x + depth, y + height + depth),
    ]
    side = [
        (x + width, y),
        (x + width + depth, y + depth),
        (x + width + depth, y + height + depth),
        (x + width, y + height),
    ]
    strip = min(0.3 * width, 0.05)
    end = [(x + width - strip, y), (x + width, y), (x + width, y + height), (x + width - strip, y + height)]
    over = [
        (px + dx, y + height + dy)
        for px, dx, dy in (
            (x + width - strip, 0, 0),
            (x + width, 0, 0),
            (x + width, depth, depth),
            (x + width - strip, depth, depth),
        )
    ]
    dark = _adjust_lightness(color, -0.22)
    faces = [
        (front, color),
        (top, _adjust_lightness(color, 0.35)),
        (side, _adjust_lightness(color, -0.12) if not band else dark),
    ]
    faces += [(end, dark), (over, _adjust_lightness(color, 0.08))] if band else []
    for points, fill in faces:
        edge = "none" if points in (end, over) else _adjust_lightness(color, -0.45)
        axes.add_patch(Polygon(points, facecolor=fill, edgecolor=edge, linewidth=0.5, joinstyle="round"))


def _adjust_lightness(color: str, amount: float) -> tuple[float, float, float]:
    """Return a color made lighter (`amount` up to 1) or darker (down to -1)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c + (1 - c) * amount if amount > 0 else c * (1 + amount) for c in channels)
    return red, green, blue


def _legend(layer_groups: Sequence[DiagramGroup]) -> list[tuple[str, str]]:
    """Return the color and meaning of each kind of box in the drawing, in the order of first use."""
    units = [unit for group in layer_groups for unit in group.units]
    entries: dict[str, str] = {}
    for unit in units:
        entries.setdefault(unit.kind, _meaning(unit.kind, [u for u in units if u.kind == unit.kind]))
    for unit in units:
        for extra, role in unit.extras.items():
            if role in ("dropout", "softmax"):
                entries.setdefault(role, role)
            elif role == "normalization" and unit.kind != "block":
                entries.setdefault("normalization", extra)
        if unit.pools:
            kinds = list(dict.fromkeys(text for u in units for text, _ in u.pools))
            *others, last = [kind.removesuffix(" pooling") for kind in kinds]
            entries.setdefault("pooling", f"{', '.join(others)} and {last} pooling" if others else f"{last} pooling")
    order = list(COLORS)
    same = dict(sorted(entries.items(), key=lambda item: order.index(item[0])))
    return [(COLORS[kind], text) for kind, text in same.items()]


def _meaning(kind: str, units: Sequence[DiagramUnit]) -> str:
    if kind == "block":
        used = {text[0] for unit in units if len(unit.parts) <= MAX_LISTED for text in unit.parts}
        notes = [note for letter, note in (("d", "d: depthwise"), ("s", "s: separable")) if letter in used]
        blocks = " or ".join(sorted({unit.text for unit in units}, key=len, reverse=True))
        return f"{blocks} ({', '.join(notes)})" if notes else blocks
    names = {"separable": "depthwise separable convolution", "depthwise": "depthwise convolution"}
    spelled = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "hard_silu": "hard SiLU", "elu": "ELU", "prelu": "PReLU"}
    activations = dict.fromkeys(extra for unit in units for extra, role in unit.extras.items() if role == "activation")
    return " + ".join([names.get(kind, kind), *(spelled.get(name, name) for name in activations)])


def _swatch(text: str) -> float:
    return 0.3 + _text_width(text, SMALL) + 0.25


def _legend_lines(entries: Sequence[tuple[str, str]], width: float) -> list[list[tuple[str, str]]]:
    """Divide the legend into as few lines as possible, of about the same length."""
    total = sum(_swatch(text) for _, text in entries)
    for count in range(math.ceil(total / width), len(entries) + 1):
        lines: list[list[tuple[str, str]]] = [[] for _ in range(count)]
        x = 0.0
        for entry in entries:
            size = _swatch(entry[1])
            lines[min(int((x + size / 2) / total * count), count - 1)].append(entry)
            x += size
        if all(sum(_swatch(text) for _, text in line) <= width for line in lines):
            return [line for line in lines if line]
    return [[entry] for entry in entries]


def _draw_legend(axes: Any, line: Sequence[tuple[str, str]], width: float, y: float) -> None:
    from matplotlib.patches import Rectangle

    x = (width - sum(_swatch(text) for _, text in line) + 0.25) / 2
    for color, text in line:
        edge = _adjust_lightness(color, -0.45)
        axes.add_patch(Rectangle((x, y - 0.06), 0.2, 0.12, facecolor=color, edgecolor=edge, linewidth=0.5))
        axes.text(x + 0.27, y, text, ha="left", va="center", **plotting.text_style(SMALL))
        x += _swatch(text)
