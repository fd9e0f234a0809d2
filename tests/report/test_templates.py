"""What all pages share: colors in light and dark, and templates that hold the words."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sightline.report import templates


def read_themes() -> dict[str, dict[str, str]]:
    """Return the variables of the style sheet by theme, as a browser reads them."""
    style = str(templates.make_environment().globals["style"])
    light, dark = (re.search(rf"color-scheme: {name};([^}}]*)", style) for name in ("light", "dark"))
    assert light
    assert dark
    return {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", match[1]))
        for name, match in (("light", light), ("dark", dark))
    }


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


TEXT = [
    (name, ground)
    for name in ("ink", "soft", "link", "error", "warning", "note", "good")
    for ground in ("paper", "surface")
]
TEXT += [("ink", f"{color}-{level}") for color in ("blue", "orange") for level in (1, 2, 3)]
TEXT += [("paper", f"{color}-{level}") for color in ("blue", "orange") for level in (4, 5)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colors_have_the_contrast_of_wcag_aa(theme: str) -> None:
    colors = read_themes()[theme]
    for front, ground in TEXT:
        assert contrast(colors[front], colors[ground]) >= 4.5, (front, ground)
    for name in ("blue", "orange"):  # lines and dots
        assert contrast(colors[name], colors["paper"]) >= 3


def test_every_variable_is_defined_in_both_themes() -> None:
    style = str(templates.make_environment().globals["style"])
    themes = read_themes()
    assert themes["light"].keys() == themes["dark"].keys()
    others = set(re.findall(r"--([\w-]+):", style)) - themes["light"].keys()
    assert set(re.findall(r"var\(--([\w-]+)\)", style)) <= themes["light"].keys() | others
    assert style.count("color-scheme: dark;") == 2, "by preference, and by choice"
    assert style.count("color-scheme: light;") == 2


def test_blue_and_orange_are_distinct_without_red_or_green_cones() -> None:
    """Simulated by Viénot et al. (1999): the pair keeps a distance in color that red and green would lose."""
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    for colors in read_themes().values():
        linear = [
            np.array([(int(colors[name][i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)])
            for name in ("blue", "orange")
        ]
        for matrix in (protan, deutan):
            one, other = ((matrix @ color).clip(0, 1) ** (1 / 2.2) for color in linear)
            assert np.linalg.norm(one - other) > 0.5
