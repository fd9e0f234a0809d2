"""Track speed over commits: the ratios of a few benchmarks, as one line of ``history.jsonl``, and their plot.

`make bench-quick` runs the benchmarks in under five minutes on two cores, appends to ``history.jsonl`` and draws
``history.svg``. With ``--check``, nothing runs: the last line is compared with the previous ones, with a warning for
each ratio that fell. Only ratios between variants that ran alternately are compared, and only with those from the same
kind of machine: seconds from different days say nothing about a commit, and two processors differ in ratios too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import measure
import trained_run

HISTORY = measure.REPOSITORY / "benchmarks" / "history.jsonl"
FALL = 0.85  # a ratio below this fraction of its median in the history is a warning
BENCHMARKS = {
    "decode": ("sightline, into the cache", "tf.data"),
    "train_fashion": ("sightline", "Keras fit"),
    "predict": ("predict, decoded", "bare loop, decoded"),
    "cold": ("predict", "imports"),
}
"""The variants of each benchmark whose ratios are tracked, the first variant against the others."""


def run_benchmarks() -> dict[str, Any]:
    """Run the benchmarks and return a line for the history."""
    ratios: dict[str, float] = {}
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, trained_run.trained_run():
        for name, variants in BENCHMARKS.items():
            out = Path(folder, name)
            script = measure.REPOSITORY / "benchmarks" / f"bench_{name}.py"
            subprocess.run([sys.executable, str(script), "--only", *variants, "--json", str(out)], check=True)
            result = json.loads(out.read_text(encoding="utf-8"))
            ratios |= {f"{name}: {key}": value for key, value in list(result["ratios"].items())[1:]}
            medians |= {f"{name}: {key} ({result['unit']})": value for key, value in result["medians"].items()}
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    machine = measure.describe_machine()
    return {"date": date, "commit": measure.read_commit(), "machine": machine, "ratios": ratios, "medians": medians}


def read_history() -> list[dict[str, Any]]:
    """Return the lines of the history, oldest first."""
    return [json.loads(line) for line in HISTORY.read_text(encoding="utf-8").splitlines()] if HISTORY.exists() else []


def list_falls(history: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each ratio in the last line that is well below its earlier median on such a machine."""
    falls = []
    for name, ratio in history[-1]["ratios"].items() if history else ():
        alike = [line for line in history[:-1] if line["machine"] == history[-1]["machine"]]
        earlier = [line["ratios"][name] for line in alike if name in line["ratios"]]
        if earlier and ratio < FALL * statistics.median(earlier):
            falls.append(f"{name}: {ratio:.2f}, {statistics.median(earlier):.2f} before ({len(earlier)} measurements)")
    return falls


def plot_history(history: list[dict[str, Any]]) -> None:
    """Plot the ratios over the measurements in ``history.svg``."""
    from matplotlib.figure import Figure

    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(sorted({name for line in history for name in line["ratios"]})):
        points: dict[str, list[tuple[int, float]]] = {}
        for at, line in enumerate(history):
            if name in line["ratios"]:
                points.setdefault(line["machine"], []).append((at, line["ratios"][name]))
        for order, alike in enumerate(points.values()):  # a line joins the measurements on one kind of machine
            label = name.replace(": ", " vs. ") if order == 0 else None
            axes.plot(*zip(*alike, strict=True), marker="o", color=f"C{number}", label=label)
    labels = [f"{line['date'][5:]}\n{line['commit']}\n{line['machine'].partition(' (')[0]}" for line in history]
    axes.set_xticks(range(len(history)), labels, fontsize=8)
    axes.margins(x=0.2)
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter("{x:g}")
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set_ylabel("speed relative to the other variant")
    axes.legend(fontsize=8)
    figure.savefig(HISTORY.with_suffix(".svg"), metadata={"Date": None})


def main() -> None:
    """Run the benchmarks, or only check the history; warnings do not change the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="run nothing, and compare the last line with the others")
    if not parser.parse_args().check:
        line = run_benchmarks()
        with HISTORY.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        plot_history(read_history())
    for fall in list_falls(read_history()):
        print(f"warning: slower than before: {fall}", file=sys.stderr)


if __name__ == "__main__":
    main()
