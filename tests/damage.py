"""Damage files as a disk, an editor, another version or an attacker might."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1 << 40, (1 << 63) - 1, 1 << 64, 10**400, 0.5, -1e-300, 1e308, 5e-324, "", "x", "1",
    "a" * 10_000, "\0", "\ud800", "../../..", "/dev/stdin", "[bold]", "\x1b[2J", [], [[]], [1], ["x"], ["x", 2], {},
    {"x": 1}, {"x": {}}, [[1, 2], [3]], [None],
)  # fmt: skip
TEXTS = (
    b"", b"\n", b"\0", b"\xff\xfe", b"{", b"}", b"[]", b"null", b"1", b'"x"', b"{}", b'{"a": NaN}', b'{"a": 1e999}',
    b"[" * 100_000, b'{"a":' * 100_000, b"a = " + b"[" * 100_000, b"a." * 30_000 + b"a = 1", b"PK\x03\x04" + bytes(60),
    b'{"schema": 2}', b'{"schema": 2, "status": "complete"}', b"1" * 10_000,
)  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """One kind of damage to a file, described by `word`."""

    description: str
    apply: Callable[[Path], None]


def _replace_content(description: str, content: bytes) -> Damage:
    return Damage(description, lambda path: _write_content(path, content))


def _write_content(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def damage_file(path: Path, rng: np.random.Generator) -> Damage:
    """Return damage that replaces a file, or truncates, flips or overwrites its bytes."""
    data = path.read_bytes()
    at = int(rng.integers(len(data) + 1))
    flipped = bytearray(data)
    for place in rng.integers(max(len(data), 1), size=int(rng.integers(1, 9)) if data else 0):
        flipped[place] ^= 1 << int(rng.integers(8))
    text = TEXTS[rng.integers(len(TEXTS))]
    noise = rng.bytes(int(rng.integers(1, 200)))
    kinds = [
        Damage("a folder", _folder),
        Damage("a pipe", _pipe),
        _replace_content(f"cut at {at}", data[:at]),
        _replace_content("bits flipped", bytes(flipped)),
        _replace_content(f"noise at {at}", data[:at] + noise + data[at + len(noise) :]),
        _replace_content(f"noise put in at {at}", data[:at] + noise + data[at:]),
        _replace_content(f"{text[:20]!r}, {len(text)} bytes", text),
        _replace_content(f"{text[:20]!r}, {len(text)} bytes", text),
    ]
    return kinds[rng.integers(len(kinds))]


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the key path of every position in a JSON value, for lists only of the first three items."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from list_paths(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value[:3]):
            yield from list_paths(item, (*path, i))


def repeat_lines(path: Path, count: int) -> Damage:
    """Return damage that repeats the lines of a file until there are `count`."""
    lines = path.read_bytes().splitlines(keepends=True)
    return _replace_content(f"{count} lines", b"".join(lines[i % len(lines)] for i in range(count)))


def enlarge_matrix(path: Path, count: int) -> Damage:
    """Return damage that gives the metrics in a file `count` classes and a confusion matrix without zeros."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics |= {"classes": [str(i) for i in range(count)], "confusion": [[1] * count] * count}
    return _replace_content(f"a matrix of {count} classes", _dumps(metrics).encode())


def change_at(value: Any, path: tuple[Any, ...], how: str, new: Any) -> Any:
    """Return a copy of a JSON value with the item at `path` replaced, removed, or given an extra key."""
    if not path:
        return new
    result = copy.deepcopy(value)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    if how == "put":
        inner[path[-1]] = new
    elif how == "drop":
        del inner[path[-1]]
    elif isinstance(inner, dict):
        inner["unknown"] = new
    else:
        inner.append(new)
    return result


def change_value(content: Any, rng: np.random.Generator) -> tuple[str, Any]:
    """Change a JSON value at random; return a description and the new value."""
    every = list(list_paths(content))
    path = every[rng.integers(len(every))]
    how = ("put", "put", "put", "drop", "add")[rng.integers(5)]
    new = VALUES[rng.integers(len(VALUES))]
    new_text = repr(new) if not isinstance(new, int) or abs(new) < 1 << 70 else "10**400"
    return f"{'.'.join(map(str, path))}: {how} {new_text[:30]}", change_at(content, path, how, new)


def damage_value(path: Path, rng: np.random.Generator) -> Damage:
    """Return damage that changes one value in a JSON, JSON lines, TOML or array file."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not lines:
            return damage_file(path, rng)
        at = int(rng.integers(len(lines)))
        description, lines[at] = change_value(lines[at], rng)
        return _replace_content(
            f"line {at + 1}: {description}", "".join(_dumps(line) + "\n" for line in lines).encode()
        )
    if path.suffix == ".json":
        description, changed = change_value(json.loads(path.read_text(encoding="utf-8")), rng)
        return _replace_content(description, _dumps(changed).encode())
    if path.suffix == ".toml":
        return _toml(path, rng)
    if path.suffix == ".npz":
        return _arrays(path, rng)
    return damage_file(path, rng)


def _dumps(content: Any) -> str:
    return json.dumps(content)


def _toml(path: Path, rng: np.random.Generator) -> Damage:
    lines = path.read_text(encoding="utf-8").splitlines()
    settings = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    at = settings[rng.integers(len(settings))]
    new = VALUES[rng.integers(len(VALUES))]
    words = json.dumps(new, ensure_ascii=True) if new is not None and new != "\ud800" else "inf"
    lines[at] = f"{lines[at].split(' = ')[0]} = {words}" if rng.integers(4) else ""
    return _replace_content(f"line {at + 1}: {lines[at][:60]}", "\n".join(lines).encode())


def change_arrays(path: Path, rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """Change an array of a file at random; return a description and the new arrays."""
    with np.load(path, allow_pickle=False) as file:
        content = {name: file[name] for name in file.files}
    name = list(content)[rng.integers(len(content))]
    old = content[name]
    kind = int(rng.integers(8))
    if name == "state":
        description, state = change_value(json.loads(str(old)), rng)
        return f"state: {description}", content | {name: np.array(_dumps(state))}
    if kind == 0:
        del content[name]
    elif kind == 1:
        content["unknown"] = old
    else:
        numbers = np.issubdtype(old.dtype, np.number)
        content[name] = (
            old[..., :0] if old.ndim else np.zeros(3),
            np.zeros(3, np.float32),
            old.astype(np.str_),
            np.concatenate([old, old]) if old.ndim else old,
            -np.abs(old) * np.array(np.nan if np.issubdtype(old.dtype, np.floating) else 1) if numbers else old[:1],
            np.full(old.shape, 1 << 40),
        )[kind - 2]
    return f"{name}: kind {kind}", content


def _arrays(path: Path, rng: np.random.Generator) -> Damage:
    description, content = change_arrays(path, rng)

    def save(place: Path) -> None:
        np.savez(place, allow_pickle=False, **content)

    return Damage(description, save)


def choose_damage(path: Path, seed: int) -> Damage:
    """Return the damage with this seed: many lines or a large matrix in one of eight cases, where the file has them.

    Else a changed value in three of five cases, or anything.
    """
    is_large = np.random.default_rng([seed, 1]).integers(8) == 0
    if is_large and path.suffix == ".jsonl" and path.stat().st_size:
        return repeat_lines(path, 3000)
    if is_large and path.name == "metrics.json":
        return enlarge_matrix(path, 300)
    rng = np.random.default_rng(seed)
    return (damage_file if rng.integers(5) < 2 else damage_value)(path, rng)


def restore(path: Path, original: Path) -> None:
    """Restore a folder to the content of another."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(original, path)


def hash_files(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Return the hash of every file in a folder, with metadata that changes when the same bytes are written again."""

    def state(path: Path) -> tuple[str, int, int]:
        stat = path.stat()
        return hashlib.sha256(path.read_bytes()).hexdigest(), stat.st_ino, stat.st_mtime_ns

    return {str(p): state(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def replace_by_links(folder: Path, stash: Path, *, folders: bool) -> None:
    """Move each file (or top-level folder) of a folder to `stash`, and replace it by a link."""
    stash.mkdir()
    places = [p for p in folder.iterdir() if p.is_dir()] if folders else [p for p in folder.rglob("*") if p.is_file()]
    for number, place in enumerate(places):
        victim = stash / f"{number}-{place.name}"
        shutil.move(place, victim)
        place.symlink_to(victim)
