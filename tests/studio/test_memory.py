"""The studio's memory does not grow with the features of its images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import large_studio

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
