"""Inputs that once crashed a reader, or were crafted to, are rejected; the seeds of the fuzzer are accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz_inputs import MAX_INPUT
from fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=[f"{p.parent.name}-{p.name[:20]}" for p in INPUTS])
def test_a_hostile_input_breaks_nothing(path: Path) -> None:
    assert path.stat().st_size <= MAX_INPUT + 1
    TARGETS[path.parent.name].check(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_starts_from_breaks_nothing(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].check(seed)
