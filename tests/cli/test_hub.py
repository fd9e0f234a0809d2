"""`sightline push` and `pull`, against a server that speaks the interface of the Hugging Face Hub."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

import sightline as sl
from command import Command
from hub_server import TOKEN, Files, Hub, Repository
from sightline import _locks
from sightline.api.hub import _prepare_files
from sightline.errors import UsageError
from sightline.inference import bundle

# huggingface_hub 2.4 hands bytes to httpx2 in a way that this calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "me/colors"


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]]) -> Path:
    return trained[0]


@pytest.fixture(scope="module")
def uploaded(trained: tuple[Path, dict[str, Any]]) -> Files:
    """The files that a push of the run uploads."""
    return _prepare_files(trained[0], NAME, "other", include_images=False)


@pytest.fixture
def repository(hub: Hub, uploaded: Files) -> Repository:
    """A model on the server, as a push leaves it."""
    hub.repositories[NAME] = Repository(private=True)
    hub.repositories[NAME].add(dict(uploaded))
    return hub.repositories[NAME]


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_pushed_bundle_is_private_without_images_and_comes_back_the_same(
    sightline: Command, hub: Hub, run: Path, colors: Path, tmp_path: Path
) -> None:
    result = sightline("push", run, f"hf:{NAME}", "--license", "apache-2.0", "--format", "json")
    assert result.code == 0, result.err
    repository = hub.repositories[NAME]
    assert repository.private
    assert result.json["files"] == {name: len(content) for name, content in repository.files.items()}
    assert set(repository.files) == {"manifest.json", "model.onnx", "README.md", "figures/confusion.png"}
    card = repository.files["README.md"].decode()
    assert '\nlicense: "apache-2.0"\n' in card
    assert f"sightline pull hf:{NAME} colors" in card
    assert "reference/" not in card
    assert any(request.startswith("PUT /lfs/") for request in hub.requests), "large files take another way"

    pulled = sightline("pull", f"hf:{NAME}", tmp_path / "here")
    assert pulled.code == 0, pulled.err
    assert list_files(tmp_path / "here") == {"manifest.json", "model.onnx"}
    image = colors / "red" / "red-000.png"
    expected, actual = (sl.load(path).predict_proba([image]) for path in (run, tmp_path / "here"))
    assert (expected == actual).all()
    assert TOKEN not in result.out + result.err + pulled.out + pulled.err + str(list(repository.files.values()))


def test_a_dry_run_connects_to_nothing(sightline: Command, hub: Hub, run: Path) -> None:
    result = sightline("push", run, f"hf:{NAME}", "--dry-run", "--include-images")
    assert result.code == 0
    assert "nothing was sent" in result.out
    for name in ("manifest.json", "model.onnx", "README.md", "reference/0.png"):
        assert name in result.out
    assert "--license" in result.out
    assert hub.requests == []


def test_images_are_uploaded_if_that_is_said_and_removed_by_the_next_push(hub: Hub, run: Path, tmp_path: Path) -> None:
    first = sl.push(sl.Run(run), f"hf:{NAME}", include_images=True)
    examples = {name for name in first.files if name.startswith("reference/")}
    assert examples
    hub.repositories[NAME].files["notes.txt"] = b"mine"
    assert sl.pull(f"hf:{NAME}", tmp_path / "first").classes == ("blue", "green", "red")
    assert examples < list_files(tmp_path / "first")
    second = sl.push(run / "bundle", f"hf:{NAME}")
    files = hub.repositories[NAME].files
    assert not examples & set(files)
    assert "notes.txt" in files
    assert second.commit != first.commit
    sl.pull(f"hf:{NAME}@{first.commit}", tmp_path / "again")
    assert list_files(tmp_path / "again") == list_files(tmp_path / "first")


def test_a_card_that_was_edited_on_the_hub_is_not_a_fault(repository: Repository, tmp_path: Path) -> None:
    repository.files["README.md"] += b"\nMore about it."
    assert sl.pull(f"hf:{NAME}", tmp_path / "here").manifest is not None


def test_a_public_model_needs_the_word(sightline: Command, hub: Hub, run: Path) -> None:
    hub.repositories[NAME] = Repository(private=False)
    result = sightline("push", run, f"hf:{NAME}")
    assert result.code == 2
    assert "is public" in result.err
    assert hub.repositories[NAME].files == {}
    assert sightline("push", run, f"hf:{NAME}", "--public", "--format", "json").json["public"] is True
    assert sl.push(run, "hf:me/new", public=True).public
    assert not hub.repositories["me/new"].private


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("push", "RUN", "me/colors"), "is not a model on the Hub: expected hf:USER/NAME"),
        (("push", "RUN", "hf:colors"), "is not a model on the Hub"),
        (("push", "RUN", "hf:me/../x"), "is not a model on the Hub"),
        (("push", "RUN", "hf:me/colors@v1"), "without @v1"),
        (("push", "RUN", "hf:me/colors", "--license", "my own"), "is not a license identifier"),
        (("push", "RUN", "hf:me/colors", "--license", "nope", "--dry-run"), "that it does not list, use other."),
        (("push", "RUN", "hf:me/colors", "--license", "Apache 2.0"), "Hub. Did you mean 'apache-2.0'?"),
        (("push", "NONE", "hf:me/colors"), "There is no model"),
        (("pull", "hf:me/none", "TMP/x"), "There is no model hf:me/none that you can access"),
        (("pull", "hf:me/empty", "TMP/x"), "has no file manifest.json"),
        (("pull", "hf:me/empty@v9", "TMP/x"), "no such revision"),
        (("pull", "hf:me/empty", "RUN"), "exists already"),
        (("predict", "hf:me/empty", "x.png"), "`sightline pull hf:me/empty FOLDER` downloads it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    sightline: Command, hub: Hub, run: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    hub.repositories["me/empty"] = Repository(private=False)
    hub.repositories["me/empty"].add({"x.txt": b"x"})
    places = {"RUN": str(run), "NONE": str(tmp_path / "none")}
    result = sightline(*(places.get(a, a.replace("TMP", str(tmp_path))) for a in arguments))
    assert (result.code, result.out) == (2, "")
    assert words in " ".join(result.err.split())
    assert list(tmp_path.iterdir()) == []
    assert set(hub.repositories) == {"me/empty"}


def test_without_a_login_the_message_says_how(
    sightline: Command, hub: Hub, repository: Repository, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    for arguments, words in (
        (("push", run, "hf:me/other"), "You are not logged in to the Hub"),
        (("pull", f"hf:{NAME}", tmp_path / "x"), f"There is no model hf:{NAME} that you can access"),
    ):
        result = sightline(*arguments)
        assert words in " ".join(result.err.split())
        assert result.code == 2
        assert "`hf auth login`" in result.err
    assert repository.files
    assert set(hub.repositories) == {NAME}


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    sightline: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    result = sightline("pull", f"hf:{NAME}", tmp_path / "x")
    assert result.code == 2
    assert "The Hub cannot be reached" in result.err
    assert list(tmp_path.iterdir()) == []
    huggingface_hub.close_session()


def change_model(repository: Repository) -> None:
    repository.files["model.onnx"] = repository.files["model.onnx"][:-1] + b"\0"


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Repository], None]:
    def apply(repository: Repository) -> None:
        values = json.loads(repository.files["manifest.json"])
        change(values)
        repository.files["manifest.json"] = json.dumps(values).encode()

    return apply


def replace_model(repository: Repository) -> None:
    """Another party's graph, with the right hash in the manifest."""
    repository.files["model.onnx"] = b"\x08\x07 not an ONNX file"
    digest = hashlib.sha256(repository.files["model.onnx"]).hexdigest()
    edit_manifest(lambda values: values["files"].update({"model.onnx": digest}))(repository)


FAULTS: dict[str, tuple[Callable[[Repository], object], str]] = {
    "a changed model": (change_model, "model.onnx was changed"),
    "another graph": (replace_model, "cannot be used"),
    "changed classes": (edit_manifest(lambda v: v.update(classes=["a", "b", "c"])), "differ"),
    "a missing file": (lambda r: r.files.pop("model.onnx"), "has no file model.onnx"),
    "a file elsewhere": (edit_manifest(lambda v: v["files"].update({"../x": "0"})), "not a file of a bundle"),
    "a pickle": (edit_manifest(lambda v: v["files"].update({"model.pkl": "0"})), "not a file of a bundle"),
    "no JSON": (lambda r: r.files.update({"manifest.json": b"["}), "not valid JSON"),
    "many files": (
        edit_manifest(lambda v: v["files"].update({f"reference/{i}.png": "0" for i in range(300)})),
        "more than 200 files",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bundle_that_was_changed_is_refused_and_nothing_is_written(
    sightline: Command, repository: Repository, tmp_path: Path, fault: str
) -> None:
    damage, words = FAULTS[fault]
    damage(repository)
    result = sightline("pull", f"hf:{NAME}", tmp_path / "x")
    assert result.code == 2, result.out
    assert words in " ".join(result.err.split())
    assert ".part-" not in result.err, "the temporary folder says nothing to the user"
    assert list(tmp_path.iterdir()) == []


class Interloper(sl.Callback):
    """Does something else during the download."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def on_progress(self, task: str, done: int, total: int) -> None:
        self.act()


def test_an_error_of_the_caller_is_not_blamed_on_the_hub(repository: Repository, run: Path, tmp_path: Path) -> None:
    class Faulty(sl.Callback):
        def on_message(self, text: str) -> None:
            raise ZeroDivisionError(text)

    with pytest.raises(ZeroDivisionError, match="at commit"):
        sl.pull(f"hf:{NAME}", tmp_path / "x", callback=Faulty())
    with pytest.raises(ZeroDivisionError, match="uploading"):
        sl.push(run, f"hf:{NAME}", callback=Faulty())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_blamed_on_the_hub(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", fail)
    with pytest.raises(
        sl.ModelError, match=r"^The files of hf:me/colors cannot be .* on this disk: No space left on device"
    ):
        sl.pull(f"hf:{NAME}", tmp_path / "x")


def test_what_was_put_there_during_the_download_stays(repository: Repository, tmp_path: Path) -> None:
    place = tmp_path / "x"

    def act() -> None:
        place.mkdir(exist_ok=True)
        (place / "mine.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(sl.OutputError, match="exists already"):
        sl.pull(f"hf:{NAME}", place, callback=Interloper(act))
    assert list_files(tmp_path) == {"x/mine.txt"}


def test_what_a_killed_pull_left_is_removed_by_the_next_one_to_the_same_place(
    repository: Repository, tmp_path: Path
) -> None:
    """Not what another process is still writing, what is for another place, or a folder of somebody else's."""
    names = {"killed": ".part-x-1", "in use": ".part-x-2", "other place": ".part-xy-1", "foreign": ".part-x-mine"}
    for name in names.values():
        (tmp_path / name / "files").mkdir(parents=True)
    for kind in ("killed", "in use", "other place"):
        (tmp_path / names[kind] / "lock").write_text("1", encoding="utf-8")
    with _locks.hold_lock(tmp_path / names["in use"] / "lock", "The folder"):
        sl.pull(f"hf:{NAME}", tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"x", *names.values()} - {names["killed"]}


def test_a_killed_pull_leaves_a_folder_that_the_next_one_knows(repository: Repository, tmp_path: Path) -> None:
    left: list[Path] = []

    def act() -> None:
        left.extend(tmp_path.iterdir())

    sl.pull(f"hf:{NAME}", tmp_path / "x", callback=Interloper(act))
    assert {folder.name.rpartition("-")[0] for folder in left} == {".part-x"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_current_folder_is_refused_before_the_download(
    hub: Hub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.requests.clear()
    with pytest.raises(sl.OutputError, match="is the current folder, which cannot be replaced"):
        sl.pull(f"hf:{NAME}", ".")
    assert (hub.requests, list_files(tmp_path)) == ([], set())


def test_a_size_beyond_the_limit_is_refused_before_the_download(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    hub.stated_sizes["model.onnx"] = bundle.MAX_MODEL_BYTES + 1
    with pytest.raises(sl.ModelError, match=r"model\.onnx has 2,147,483,649 bytes, more than"):
        sl.pull(f"hf:{NAME}", tmp_path / "x")
    assert not any("resolve" in request and "model.onnx" in request for request in hub.requests)
    assert list(tmp_path.iterdir()) == []


def test_pulling_needs_nothing_that_trains() -> None:
    blocked = ("keras", "tensorflow", "sklearn", "matplotlib", "onnx", "tomlkit", "sightline.api.training")
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\nimport sightline\nsightline.pull"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_without_a_bundle_is_not_pushed(run: Path, hub: Hub, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(copy / "bundle")
    with pytest.raises(sl.ModelError, match="has no bundle to upload"):
        sl.push(copy, f"hf:{NAME}")
    with pytest.raises(UsageError, match="expected hf:USER/NAME"):
        sl.pull("me/colors", tmp_path / "x")
    assert hub.requests == []
