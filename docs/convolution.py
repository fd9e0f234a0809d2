"""Draw the figures of convolution.md and write the numbers between its marks.

Run it as ``python docs/convolution.py``; ``--fast`` leaves out everything that needs training.
"""
# ruff: noqa: RUF001  # figures print sizes with a multiplication sign

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import sightline
from sightline import backend
from sightline.datasets import coffee_beans
from sightline.inference.runtimes.keras import load_model
from sightline.models.layers.windows import compute_output_size
from sightline.report import plotting
from sightline.report.plotting import INK, VALIDATION

PAGE = Path(__file__).with_name("convolution.md")
IMAGES = Path(__file__).with_name("images")
SIDE = 9
KERNEL = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])  # the Sobel operator, which responds to vertical edges
PLACE = (4, 1)  # row and column of the worked example in the output
LAYERS = ("conv1", "conv2", "conv3", "conv4")
MAPS = 6  # feature maps shown of each layer

Grid = NDArray[np.int64]


def image() -> Grid:
    """Return the example image, 9x9: a bright disc (8) with a dimmer rim (4) on black (0)."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    distance = np.hypot(rows, columns)
    return np.where(distance <= 2.3, 8, np.where(distance <= 3.4, 4, 0))


def convolve(pixels: Grid, kernel: Grid, strides: tuple[int, int] = (1, 1), padding: int = 0) -> Grid:
    """Slide `kernel` over `pixels`, multiply and sum; `strides` are vertical and horizontal."""
    padded = np.pad(pixels, padding)
    height, width = kernel.shape
    return np.array(
        [
            [
                (padded[i : i + height, j : j + width] * kernel).sum()
                for j in range(0, padded.shape[1] - width + 1, strides[1])
            ]
            for i in range(0, padded.shape[0] - height + 1, strides[0])
        ]
    )


def pool(pixels: Grid, size: int, method: str) -> NDArray[np.float64]:
    """Return the maximum (``max``) or the mean of each tile of `size` x `size` pixels."""
    side = len(pixels) // size
    tiles = pixels[: side * size, : side * size].reshape(side, size, side, size)
    return np.asarray(tiles.max((1, 3)) if method == "max" else tiles.mean((1, 3)), float)


def worked() -> str:
    """Return the sum of the worked example, with all its products."""
    i, j = PLACE
    under = image()[i : i + 3, j : j + 3]
    rows = [
        " + ".join(f"{p}·({w})" if w < 0 else f"{p}·{w}" for p, w in zip(*pair, strict=True))
        for pair in zip(under, KERNEL, strict=True)
    ]
    return " + ".join(rows) + f" = {(under * KERNEL).sum()}"


def numbers() -> dict[str, str]:
    """Return the blocks of the page that need no training, by the name of their mark."""
    pixels = image()
    plain = convolve(pixels, KERNEL)
    uneven = convolve(pixels, KERNEL, (2, 1))
    padded = convolve(pixels, KERNEL, padding=1)
    rows = [
        (
            "stride 1, no padding",
            compute_output_size(SIDE, 3, 1, "valid")[1],
            compute_output_size(SIDE, 3, 1, "valid")[1],
            plain,
        ),
        (
            "vertical stride 2, horizontal stride 1",
            compute_output_size(SIDE, 3, 2, "valid")[1],
            compute_output_size(SIDE, 3, 1, "valid")[1],
            uneven,
        ),
        (
            "stride 1, padding 1",
            compute_output_size(SIDE, 3, 1, "same")[1],
            compute_output_size(SIDE, 3, 1, "same")[1],
            padded,
        ),
    ]
    sizes = ["| | rows | columns | minimum | maximum | sum |", "|---|---|---|---|---|---|"]
    sizes += [
        f"| {name} | {down} | {across} | {out.min()} | {out.max()} | {out.sum()} |" for name, down, across, out in rows
    ]
    maximum, mean = pool(pixels, 3, "max"), pool(pixels, 3, "mean")
    pooled = ["| tile | max | average |", "|---|---|---|"]
    pooled += [f"| row {i + 1}, column {j + 1} | {maximum[i, j]:.0f} | {mean[i, j]:.2f} |" for i, j in np.ndindex(2, 3)]
    return {"sum": f"    {worked()}", "sizes": "\n".join(sizes), "pooling": "\n".join(pooled)}


def write(blocks: dict[str, str]) -> None:
    """Write each block between its marks in the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: written by convolution.py -->", f"<!-- end of {name} -->"
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            sys.exit(f"{PAGE.name} has no place for {name}: expected {begin} and {end}.")
        text = f"{before}{begin}\n\n{block}\n\n{end}{after}"
    PAGE.write_text(text, encoding="utf-8")


def draw(
    axes: Any, grid: NDArray[Any], title: str, mark: tuple[int, int, int] | None = None, colors: str = "gray"
) -> None:
    """Draw a grid with its numbers, and a frame given by the row, column and side of `mark`."""
    from matplotlib.patches import Rectangle

    most = 8.0 if colors == "gray" else 1.6 * float(np.abs(grid).max())  # pale, so that the numbers remain legible
    axes.imshow(grid, cmap=colors, vmin=0 if colors == "gray" else -most, vmax=most)
    for i, j in np.ndindex(*grid.shape):
        dark = colors == "gray" and grid[i, j] < 4
        text = f"{grid[i, j]:g}" if float(grid[i, j]).is_integer() else f"{grid[i, j]:.2f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    if mark:
        i, j, side = mark
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), side, side, fill=False, edgecolor=VALIDATION, linewidth=2.5))
    axes.set_title(title, **plotting.text_style(9))
    axes.set_xticks([])
    axes.set_yticks([])


def save(figure: Any, name: str) -> None:
    """Save a figure of the page."""
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / f"{name}.png", dpi=90, bbox_inches="tight", pad_inches=0.08)


def figures() -> None:
    """Draw the figures that need no training."""
    pixels = image()
    plain = convolve(pixels, KERNEL)
    figure = plotting.make_figure(9.5, 3.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=(9, 3.4, 7))
    draw(left, pixels, "image, 9×9", (*PLACE, 3))
    draw(middle, KERNEL, "kernel, 3×3", colors="RdBu")
    draw(right, plain, "output, 7×7", (*PLACE, 1), "RdBu")
    save(figure, "convolution-kernel")
    figure = plotting.make_figure(9.5, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=(7, 9))
    draw(left, convolve(pixels, KERNEL, (2, 1)), "vertical stride 2, horizontal stride 1: 4×7", colors="RdBu")
    draw(right, convolve(pixels, KERNEL, padding=1), "stride 1, padding 1: 9×9", colors="RdBu")
    save(figure, "convolution-strides")
    figure = plotting.make_figure(9.5, 3.6)
    left, middle, right = figure.subplots(1, 3, width_ratios=(9, 6, 6))
    draw(left, pixels, "image, 9×9")
    draw(middle, pool(pixels, 3, "max"), "max pooling 3×3")
    draw(right, pool(pixels, 3, "mean"), "average pooling 3×3")
    save(figure, "convolution-pooling")


def trained() -> str:
    """Train the tutorials' `cifar10-deep` on synthetic beans, draw its feature maps, and return their statistics."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        assignments = ["model.name=cifar10-deep", "train.epochs=12"]
        result = sightline.train("beans:240@64", recipe="quick", set=assignments, out=run).result
        model = load_model(run / "model.keras")
        pixels = coffee_beans.draw(2, 64, 1)  # a new image: those for training are drawn with seed 0
        keras = backend.keras()
        extractor = keras.Model(model.input, [model.get_layer(name).output for name in LAYERS])
        maps = [keras.ops.convert_to_numpy(out)[0] for out in extractor(pixels[None])]  # each [H, W, C]
    draw_maps(pixels, maps)
    rows = ["| layer | maps | size | values above zero |", "|---|---|---|---|"]
    rows += [
        f"| `{name}` | {out.shape[2]} | {out.shape[0]}x{out.shape[1]} | {(out > 0).mean():.0%} |"
        for name, out in zip(LAYERS, maps, strict=True)
    ]
    evaluation = result.validation
    assert evaluation is not None
    summary = (
        f"After {result.epochs} epochs on {result.train.count} images of 64x64, its accuracy on {evaluation.count} "
        f"validation images was {evaluation.accuracy:.0%}."
    )
    return f"{summary}\n\n" + "\n".join(rows)


def draw_maps(pixels: NDArray[np.uint8], maps: list[NDArray[np.float32]]) -> None:
    """Draw the image and the maps of each layer with the largest variance over positions."""
    figure = plotting.make_figure(9, 1.45 * len(maps) + 0.3)
    panels = figure.subplots(len(maps), MAPS + 1)
    for row, name, out in zip(panels, LAYERS, maps, strict=True):
        strongest = np.argsort(-out.std((0, 1)))[:MAPS]
        for axes in row:
            axes.axis("off")
        row[0].text(0.5, 0.5, f"{name}\n{out.shape[0]}×{out.shape[1]}×{out.shape[2]}", ha="center", va="center",
                    **plotting.text_style(9))  # fmt: skip
        for axes, number in zip(row[1:], strongest, strict=True):
            axes.imshow(out[:, :, number], cmap="viridis", interpolation="nearest")
            axes.set_title(f"map {number}", pad=2, **plotting.text_style(7))
    panels[0][0].clear()
    panels[0][0].axis("off")
    panels[0][0].imshow(Image.fromarray(pixels))
    panels[0][0].set_title(f"input image, then {LAYERS[0]}", pad=2, **plotting.text_style(6))
    save(figure, "convolution-maps")


def main() -> None:
    """Write all figures and numbers, or with ``--fast`` those that need no training."""
    figures()
    blocks = numbers()
    if "--fast" not in sys.argv[1:]:
        blocks["maps"] = trained()
    write(blocks)


if __name__ == "__main__":
    main()
