"""Group a network's layers into the few blocks that a drawing can show."""
# ruff: noqa: RUF001  # papers print sizes with a multiplication sign

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

from sightline.models.describe import LayerDescription, ModelDescription

CONVOLUTIONS = ("convolution", "depthwise", "separable")  # roles
PARALLEL = "parallel block"  # its branches are concatenated
MAX_BLOCK_LAYERS = 40  # a larger tangle of branches is divided by the size of its feature maps


@dataclass(frozen=True, slots=True)
class DiagramUnit:
    """One box: `kind` is input, convolution, separable, dense or block; `extras` are its strips, kind to role.

    `output` is its output shape before the following `pools`, each with its own output shape.
    """

    kind: str
    output: tuple[int, ...]
    text: str
    extras: Mapping[str, str] = field(default_factory=dict)
    pools: tuple[tuple[str, tuple[int, ...]], ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiagramGroup:
    """Consecutive units with the same kind and output shape, drawn side by side with one label."""

    units: tuple[DiagramUnit, ...]

    @property
    def last(self) -> DiagramUnit:
        """The unit whose shape is in the label."""
        return self.units[-1]


def group_layers(description: ModelDescription) -> list[DiagramGroup]:
    """Return the groups of a network, from its input to its output.

    The layers between the opening and closing of branches form a block, as do layers whose names show that they belong
    to one block of a series, such as ``block_3_expand``. Poolings, normalization, dropout and softmax are attached to
    the unit that they follow.
    """
    units: list[DiagramUnit] = []
    for segment in _join_named(_segments(description.layers)):
        for unit in _make_units(segment):
            _append(units, unit)
    return [DiagramGroup(tuple(same)) for same in _group_runs(units)]


def _segments(layers: Sequence[LayerDescription]) -> Iterator[list[LayerDescription]]:
    """Cut a network wherever everything that follows depends on a single tensor."""
    last_use = dict.fromkeys(range(len(layers)), -1)
    for place, layer in enumerate(layers):
        last_use |= dict.fromkeys(layer.inputs, place)
    open_ends: set[int] = set()
    segment: list[LayerDescription] = []
    for place, layer in enumerate(layers):
        if last_use[place] < 0 and place < len(layers) - 1:  # an intermediate output
            continue
        segment.append(layer)
        open_ends = {end for end in (*open_ends, place) if last_use[end] > place}
        if len(open_ends) <= 1 and layer.kind != "split":  # a split outputs several tensors
            yield segment
            segment = []


def _join_named(segments: Iterator[list[LayerDescription]]) -> Iterator[list[LayerDescription]]:
    """Join neighboring segments whose layers have the name of the same block."""
    segment_list = list(segments)
    series = {_block_pattern(segment) for segment in segment_list if len(segment) > 1} - {""}
    patterns = [re.compile(pattern + r"(?=[_/]|$)") for pattern in sorted(series, key=len)]

    def block(segment: Sequence[LayerDescription]) -> str:
        """The name of the block, such as ``block_3``."""
        names = [match.group() for p in patterns if (match := p.match(segment[0].name))]
        return names[0] if names else ""

    names = [block(segment) for segment in segment_list]
    weighty = [i for i, segment in enumerate(segment_list) if any(layer.parameters for layer in segment)]
    for before, after in pairwise(weighty):  # layers inside a block may have other names
        if names[before] == names[after]:
            names[before:after] = [names[before]] * (after - before)
    for name, same in groupby(range(len(segment_list)), names.__getitem__):
        if name:
            yield [layer for i in same for layer in segment_list[i]]
        else:
            yield from (segment_list[i] for i in same)


def _block_pattern(segment: Sequence[LayerDescription]) -> str:
    """Return a pattern for the common prefix of the names in a block, with any numbers; "" if there is none."""
    names = [layer.name for layer in segment if layer.parameters]
    start = ""
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        start += letters[0]
    match = re.match(r".*\d(?!d)[a-z]?(?=[_/])", start)
    return re.sub(r"\d+[a-z]?(?=$|[_/])|\d+", lambda m: r"\d+[a-z]?" if m.end() else "", match.group()) if match else ""


def _make_units(segment: list[LayerDescription]) -> Iterator[DiagramUnit]:
    kinds = [layer.kind for layer in segment]
    convolutions = [layer for layer in segment if layer.kind == "convolution"]
    alike = len({(layer.window, layer.output, layer.activation) for layer in convolutions}) == 1
    if len(segment) == 1:
        yield from _layer_unit(segment[0])
    elif alike and sorted(kinds) == sorted(["split", *["convolution"] * len(convolutions), "concatenate"]):
        unit = next(_layer_unit(convolutions[0]))
        yield replace(unit, output=segment[-1].output, text=f"{unit.text}, {len(convolutions)} groups")
    elif not any(layer.parameters for layer in segment) and {"power", "average pooling"} <= {*kinds}:
        normalization = "local response normalization"
        yield DiagramUnit("strip", segment[-1].output, normalization, {normalization: "normalization"})
    elif len(segment) > MAX_BLOCK_LAYERS:
        joins = sorted({layer.output[:2] for layer in segment if layer.kind in ("add", "concatenate")}, reverse=True)
        for size in joins:
            yield replace(_make_block([layer for layer in segment if layer.output[:2] == size]), text="cells")
    else:
        yield _make_block(segment)


def _layer_unit(layer: LayerDescription) -> Iterator[DiagramUnit]:
    """Yield the box of a single layer; strips only have a text, and layers that change nothing have no box."""
    kind, role = layer.kind, layer.role
    activation = {layer.activation: "activation"} if layer.activation else {}
    if role == "input":
        yield DiagramUnit("input", layer.output, "input")
    elif role in CONVOLUTIONS and layer.window is not None:
        short = kind.replace(role, "conv" if role == "convolution" else role).removesuffix(" convolution")
        yield DiagramUnit(role, layer.output, f"{short} {_window(layer)}", activation)
    elif role == "dense":
        yield DiagramUnit("dense", layer.output, "dense", activation)
    elif role == "pooling":
        yield DiagramUnit("pooling", layer.output, kind, {kind: role})
    elif role in ("normalization", "activation", "dropout", "softmax"):
        yield DiagramUnit("strip", layer.output, kind, {kind: role})


def _window(layer: LayerDescription) -> str:
    assert layer.window is not None
    assert layer.strides is not None
    stride = "" if layer.strides == (1, 1) else f", stride {'×'.join(map(str, dict.fromkeys(layer.strides)))}"
    return f"{layer.window[0]}×{layer.window[1]}{stride}"


def _make_block(layers: list[LayerDescription]) -> DiagramUnit:
    kinds = {layer.kind for layer in layers}
    name = "residual block" if "add" in kinds else PARALLEL if "concatenate" in kinds else "block"
    windows = tuple(
        f"{layer.role[0] if layer.role != 'convolution' else ''}{layer.window[0]}×{layer.window[1]}"
        for layer in layers
        if layer.role in CONVOLUTIONS and layer.window and not _is_squeezed(layer, layers)
    )
    maps = [layer for layer in layers if len(layer.output) == 3]
    return DiagramUnit("block", (maps or layers)[-1].output, name, parts=windows)


def _is_squeezed(layer: LayerDescription, layers: list[LayerDescription]) -> bool:
    """Whether a layer works on the means of whole feature maps, as in squeeze and excitation."""
    return len(layer.output) == 3 and layer.output[:2] == (1, 1) and max(x.output[0] for x in layers) > 1


def _append(units: list[DiagramUnit], unit: DiagramUnit) -> None:
    """Add a box, or attach it to the previous one."""
    if not units or unit.kind not in ("pooling", "strip"):
        units.append(_merge_depthwise(units, unit))
    elif unit.kind == "pooling":
        units[-1] = replace(units[-1], pools=(*units[-1].pools, (unit.text, unit.output)))
    elif units[-1].kind != "input":
        units[-1] = replace(units[-1], extras={**units[-1].extras, **unit.extras})


def _merge_depthwise(units: list[DiagramUnit], unit: DiagramUnit) -> DiagramUnit:
    """Return `unit`, merged with a depthwise convolution before it if it is the 1x1 that mixes the channels."""
    if units and units[-1].kind == "depthwise" and unit.kind == "convolution" and not units[-1].pools:
        before = units.pop()
        window = before.text.removeprefix("depthwise ").partition(",")[0]
        return replace(unit, kind="separable", text=f"d{window} + 1×1", extras={**before.extras, **unit.extras})
    return unit


def _group_runs(units: Sequence[DiagramUnit]) -> Iterator[list[DiagramUnit]]:
    run: list[DiagramUnit] = []
    for unit in units:
        if run and not _belong_together(run[-1], unit):
            yield run
            run = []
        run.append(unit)
    if run:
        yield run


def _belong_together(one: DiagramUnit, two: DiagramUnit) -> bool:
    if one.kind != two.kind or one.kind in ("input", "dense") or one.pools:
        return False
    if one.kind == "block":
        grown = one.text == two.text == PARALLEL and one.parts == two.parts  # channels grow in DenseNet
        return one.output == two.output or (grown and one.output[:2] == two.output[:2])
    return one.output == two.output and without_stride(one.text) == without_stride(two.text)


def without_stride(text: str) -> str:
    """Return a convolution's text without its stride, which often differs in the first of a row."""
    return re.sub(r", stride [\d×]+", "", text)
