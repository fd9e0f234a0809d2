"""Time variants of a benchmark alternately, each in its own process, and print a table of medians."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from sightline import process

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SIGHTLINE_SHARED") or REPOSITORY.parent / "shared")

Variant = Callable[[], float]
"""A function that does its work and returns its speed, in images per second unless `compare` gets another unit."""


def compare(title: str, variants: Mapping[str, Variant], rounds: int = 3, unit: str = "images/s") -> None:
    """Run the variants alternately, `rounds` times each, and print medians and their ratios to the first one.

    ``--only TEXT...`` selects the variants with these names, or whose names contain one of the texts; ``--json
    FILE`` appends the title, the medians and the ratios to a file as one line. With ``--one NAME`` (used internally
    for the new processes), it runs that variant once and prints its speed.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="run variants with such names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the results to this file")
    parser.add_argument("--one", choices=list(variants), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(variants[options.one]()))
        return
    speeds: dict[str, list[float]] = {
        name: []
        for name in variants
        if name in options.only or any(text in name for text in set(options.only) - set(variants))
    }
    for _ in range(options.rounds):
        for name, speeds_of_variant in speeds.items():
            command = [sys.executable, sys.argv[0], "--one", name]
            completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            speeds_of_variant.append(float(completed.stdout.splitlines()[-1]))
    ratios = _compute_ratios(speeds)
    _print_table(title, speeds, ratios, unit)
    if options.json:
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"title": title, "unit": unit, "medians": medians, "ratios": ratios}) + "\n")


def read_commit() -> str:
    """Return the short hash of the current commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()


def describe_machine() -> str:
    """Return the number of cores, the processor, and its low-precision instructions."""
    return f"{process.count_cores()} cores {_processor()}"


def _compute_ratios(speeds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return, for each variant, the median over rounds of the first variant's speed divided by its own."""
    first = next(iter(speeds.values()))
    return {
        name: statistics.median(ours / theirs for ours, theirs in zip(first, values, strict=True))
        for name, values in speeds.items()
    }


def _print_table(title: str, speeds: Mapping[str, list[float]], ratios: Mapping[str, float], unit: str) -> None:
    print(f"{title}\n{datetime.now(UTC):%Y-%m-%d}, commit {read_commit()}, {describe_machine()}\n")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    first = next(iter(medians))
    print(f"| variant | {unit}, median of {len(speeds[first])} | range | speed of {first} relative to this |")
    print("|---|---|---|---|")
    for name, median in medians.items():
        low, high = min(speeds[name]), max(speeds[name])
        print(f"| {name} | {_speed(median)} | {_speed(low)} to {_speed(high)} | {ratios[name]:.2f} |")
    print()


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.2f}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(known)})" if known else name
