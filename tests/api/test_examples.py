"""The quickstart and the page for Python users run as printed."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sightline as sl
from sightline.datasets import coffee_beans

pytestmark = pytest.mark.usefixtures("plain_figures")

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
QUICKSTART = (REPOSITORY / "examples" / "quickstart.py").read_text(encoding="utf-8")


def run_code(text: str, name: str) -> dict[str, Any]:
    """Run a page's own code and return its variables."""
    variables: dict[str, Any] = {}
    exec(compile(text, name, "exec"), variables)  # noqa: S102  # our own code
    return variables


def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        folder = tmp_path / "photos" / coffee_beans.CLASSES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coffee_beans.draw(i, 32, 0)).save(folder / f"{i}.png")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 10
    variables = run_code("\n".join(blocks), "docs/python.md")
    assert len(variables["data"]) == 8
    assert variables["probabilities"].shape == (4, 2)
    assert (tmp_path / "confusion.png").is_file()
    assert (tmp_path / "model.onnx").is_file()
    assert "95% interval" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("methods", ['"float16"', ""], ids=["quick", "as printed"])
def test_the_quickstart_runs_on_photographs(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: str
) -> None:
    """The quick test takes a smaller network, small images and one method of compression: all of it takes minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras"))
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for file in sorted((shared / "data" / "cats_vs_dogs" / "train" / label).iterdir())[:40]:
            if methods:
                with Image.open(file) as image:
                    image.resize((96, 96)).save(tmp_path / "photos" / label / file.name)
            else:
                shutil.copy(file, tmp_path / "photos" / label)
    shutil.copy(min((shared / "data" / "cats_vs_dogs" / "test" / "cat").iterdir()), tmp_path / "new.jpg")
    text = QUICKSTART
    if methods:
        text = text.replace("max_drop=0)", f"max_drop=0, methods={methods})")
        text = text.replace('recipe="transfer"', 'recipe="transfer-mobilenetv2"')
    variables = run_code(text, "examples/quickstart.py")
    assert variables["run"].status == "complete"
    metrics = variables["ev"].metrics
    assert metrics["accuracy"].interval is not None
    assert metrics["macro_f1"].interval is not None or metrics["macro_f1"].note
    assert (tmp_path / "model.onnx").is_file()
    assert (tmp_path / "runs" / "a" / "compressed").is_dir()


def test_the_examples_of_docstrings_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, in the order of the objects' lives: each may use what the ones before it made."""
    monkeypatch.chdir(tmp_path)
    for i in range(80):
        folder = tmp_path / "photos" / coffee_beans.CLASSES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coffee_beans.draw(i, 32, 0)).save(folder / f"{i}.png")
    Image.fromarray(coffee_beans.draw(41, 32, 0)).save(tmp_path / "new.jpg")
    documented = [
        sl.Dataset, sl.train, sl.Run, sl.Classifier, sl.Classifier.predict, sl.Classifier.evaluate,
        sl.Classifier.export, sl.describe,
    ]  # fmt: skip
    examples = [re.findall(r"```python\n(.*?)```", inspect.getdoc(value) or "", re.DOTALL) for value in documented]
    assert all(examples)
    code = "\n".join(textwrap.dedent(block) for blocks in examples for block in blocks)
    run_code(f"import sightline as sl\n{code}", "docstrings")
    assert (tmp_path / "model.onnx").is_file()
    assert "95% interval" in capsys.readouterr().out
