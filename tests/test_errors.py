"""Missing optional packages are reported before the work that needs them begins."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from sightline.errors import EXTRAS, MissingExtraError, check_installed, require

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed `optuna` with a missing dependency."""
    (tmp_path / "optuna.py").write_text("import not_here_at_all", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "optuna", raising=False)


def test_require_imports_submodules_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setitem(EXTRAS, "numpy", ("numpy", "train"))
    assert require("numpy.linalg", "Counting") is np.linalg
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)  # otherwise it would not be imported again
    monkeypatch.setitem(sys.modules, "sklearn", None)
    message = (
        "Counting needs the package 'scikit-learn', which is not installed: "
        'pip install ".[train]" in the checkout of Sightline, or with the path of its wheel instead of the dot'
    )
    with pytest.raises(MissingExtraError) as caught:
        require("sklearn.datasets", "Counting")
    assert str(caught.value) == message
    with pytest.raises(MissingExtraError) as caught:
        check_installed("numpy", "sklearn", purpose="Counting")
    assert str(caught.value) == message


@pytest.mark.usefixtures("broken")
def test_a_missing_package_of_a_package_is_named_itself() -> None:
    with pytest.raises(MissingExtraError, match=r"'not_here_at_all'.*sweep"):
        require("optuna", "A sweep")


def test_each_optional_package_is_in_the_extra_that_is_named() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package, names in EXTRAS.values():
        extra, *_ = names.split(",")  # for train, a backend follows
        assert any(line.startswith(package) for line in extras["optional-dependencies"][extra]), package
