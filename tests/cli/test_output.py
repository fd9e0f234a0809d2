"""What training shows of itself."""

from __future__ import annotations

import pytest

from sightline.cli.output import Display


def test_one_epoch_is_not_one_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.stage("training", 1, 1)
        display.stage("training", 2, 3)
    assert capsys.readouterr().err.splitlines() == ["training: 1 epoch of 1 step", "training: 2 epochs of 3 steps"]
