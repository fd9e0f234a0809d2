"""What the headers of a JPEG 2000 codestream make a decoder allocate and process, whatever pixels follow.

A header of 150 bytes may declare millions of code blocks, precincts or packets: OpenJPEG took 20 GB for one such file.
Nothing is decoded here. Markers are followed as in OpenJPEG. Source: ITU-T T.800, annexes A and B.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from sightline.preprocessing.counts import check_count

_SIZ, _COD, _COC, _POC, _START_OF_TILE, _START_OF_DATA, _END = 0xFF51, 0xFF52, 0xFF53, 0xFF5F, 0xFF90, 0xFF93, 0xFFD9
_KNOWN = frozenset({
    0xFF50, _SIZ, _COD, _COC, 0xFF55, 0xFF57, 0xFF58, 0xFF59, 0xFF5C, 0xFF5D, 0xFF5E, _POC, 0xFF60, 0xFF61, 0xFF63,
    0xFF64, 0xFF74, 0xFF75, 0xFF77, 0xFF78, _START_OF_TILE, _START_OF_DATA, _END,
})  # fmt: skip
"""OpenJPEG skips any other marker in the main header, and searches its segment for markers."""
_MAX_UNKNOWN_BYTES = 1 << 16  # limit on bytes skipped in this way
_MAX_TILE_PARTS = 1 << 18
_MAX_STYLES = 256
_BLOCK_BYTES = 450  # allocated by OpenJPEG for a code block or a precinct
_TILE_BYTES, _TILE_COMPONENT_BYTES = 8_000, 1_300  # settings of each tile, and of each of its components

_Style = tuple[int, int, int, bytes]  # levels, block width and height (exponents), precincts (empty: largest)


@dataclass(frozen=True, slots=True)
class CodestreamDemand:
    """What a decoder must handle: numbers of components, code blocks, packets and steps, and bytes of memory.

    `steps` are the positions at which the decoder looks for the next packet; `num_bytes` is the memory for the samples
    and code blocks of the largest tile, and for the settings of all tiles.
    """

    components: int
    blocks: int
    packets: int
    steps: int
    num_bytes: int


def measure_codestream(data: bytes, start: int) -> CodestreamDemand:
    """Measure the codestream that begins at `start`; raises `struct.error` if it does not state its size.

    Raises ImageError for more headers than any ordinary file has.
    """
    headers = _Headers()
    with suppress(struct.error, IndexError):  # decoders may process the data before the damage
        for marker, content in _iterate_segments(data, start + 2):
            headers.add(marker, content)
    return headers.measure()


@dataclass(slots=True)
class _Headers:
    """The headers of a codestream; where tiles may override settings, the most demanding values count."""

    size: bytes = b""
    styles: set[_Style] = field(default_factory=set)
    layers: int = 1
    progressions: int = 1
    tile_parts: int = 0

    def add(self, marker: int, content: bytes) -> None:
        wide = bool(self.size) and self._count_components() > 256  # if so, component numbers take two bytes
        if marker == _SIZ:
            self.size = self.size or content
        elif marker == _COD:
            self.layers = max(self.layers, struct.unpack_from(">H", content, 2)[0])
            self.styles.add(_read_style(content, 5, content[0] & 1))
        elif marker == _COC:
            self.styles.add(_read_style(content, 2 + wide, content[1 + wide] & 1))
        elif marker == _POC:
            self.progressions += len(content) // (9 if wide else 7)
        elif marker == _START_OF_TILE:
            self.tile_parts += 1
        check_count(self.tile_parts, _MAX_TILE_PARTS, "tile-parts")
        check_count(len(self.styles), _MAX_STYLES, "ways of coding")

    def measure(self) -> CodestreamDemand:
        right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack_from(
            ">IIIIIIII", self.size, 2
        )
        components = self._count_components()
        tiles = _divide(right - tile_left, max(tile_width, 1)) * _divide(bottom - tile_top, max(tile_height, 1))
        width, height = min(tile_width, right - left), min(tile_height, bottom - top)
        depths = self.size[36::3][:components]
        sample_bytes = max((((depth & 127) + 8) // 8 for depth in depths), default=1)
        counts = [_count(style, width, height) for style in self.styles]
        blocks, precincts, steps = (max((count[i] for count in counts), default=0) for i in range(3))
        return CodestreamDemand(
            components,
            blocks * components * tiles,
            precincts * components * tiles * self.layers * self.progressions,
            steps * components * tiles * self.progressions,
            components * (width * height * (4 + sample_bytes) + blocks * _BLOCK_BYTES)
            + tiles * (_TILE_BYTES + components * _TILE_COMPONENT_BYTES),
        )

    def _count_components(self) -> int:
        return int(struct.unpack_from(">H", self.size, 34)[0])


def _iterate_segments(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield each marker in the main header and the tile-part headers, with its content."""
    part_end, in_main_header, unknown = 0, True, 0
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _END:
            return
        if in_main_header and marker not in _KNOWN:
            at, unknown = at + 2, unknown + 2
            check_count(unknown, _MAX_UNKNOWN_BYTES, "bytes of unknown markers")
        elif marker == _START_OF_DATA:
            if not part_end:  # length 0: up to the end of the file
                return
            at = max(part_end, at + 2)
        else:
            if marker == _START_OF_TILE:
                in_main_header = False
                (part_length,) = struct.unpack_from(">I", data, at + 6)
                part_end = at + part_length if part_length else 0
            yield marker, data[at + 4 : at + 2 + length]
            at += 2 + max(length, 2)


def _read_style(content: bytes, at: int, has_precincts: int) -> _Style:
    levels, width, height = content[at : at + 3]
    return levels, (width & 15) + 2, (height & 15) + 2, content[at + 5 : at + 6 + levels] if has_precincts else b""


def _count(style: _Style, width: int, height: int) -> tuple[int, int, int]:
    """Return the number of blocks plus precincts, of precincts, and of packet positions in a tile component."""
    levels, block_width, block_height, precincts = style
    blocks = packets = 0
    step_x = step_y = 32 + levels
    for resolution in range(levels + 1):
        exponents = precincts[resolution] if resolution < len(precincts) else 0xFF
        x, y = exponents & 15, exponents >> 4
        scale = levels - resolution
        step_x, step_y = min(step_x, x + scale), min(step_y, y + scale)
        count = _shift(_shift(width, scale), x) * _shift(_shift(height, scale), y)
        in_bands = resolution > 0  # three bands of half the size
        across = _shift(_shift(width, scale + in_bands), max(min(block_width, x - in_bands), 0))
        down = _shift(_shift(height, scale + in_bands), max(min(block_height, y - in_bands), 0))
        blocks += (3 if in_bands else 1) * (max(across * down, count) + count)
        packets += count
    return blocks, packets, _shift(width, step_x) * _shift(height, step_y) * (levels + 1)


def _shift(size: int, exponent: int) -> int:
    return _divide(size, 1 << exponent)


def _divide(size: int, divisor: int) -> int:
    return -(-size // divisor)
