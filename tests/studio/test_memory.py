"""The studio's memory does not grow with the features of its images, nor with what it knows of their files."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

import large_studio
import sightline as sl
from sightline.data import file_records
from sightline.data.file_records import FileRecords
from sightline.studio.contents import open_studio

LIMIT = 500_000_000  # bytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_100_000_images_with_1_280_features_take_less_than_500_mb(tmp_path: Path) -> None:
    script = Path(large_studio.__file__)
    answer = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert answer.returncode == 0, answer.stderr
    peak = int(answer.stdout)
    assert 150_000_000 < peak < LIMIT


@pytest.mark.parametrize("kind", ["data", "run"])
def test_what_is_known_of_the_files_is_not_kept_in_memory(
    kind: str, colors: Path, run: sl.Run, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_records, "FRESH_NS", 0)
    patch, counts = tmp_path / "fixes.jsonl", []
    for _ in range(2):
        with open_studio(sl.Dataset(colors) if kind == "data" else sl.Run(run.path), patch) as studio:
            counts.append(studio.known_files)
            gc.collect()
            assert not [value for value in gc.get_objects() if type(value) is FileRecords]
    assert counts == [0, 24 if kind == "data" else 60]
