"""Sentences of errors are in the language of the page, and the catalog has them as the code writes them."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sightline
from command import COLORS, draw_classes
from sightline import Dataset
from sightline.studio import messages
from sightline.studio.contents import Studio, open_studio
from studio_client import load_page

testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")

SOURCE = Path(sightline.__file__).parent
VARIABLES = r"PATH|NAME|COUNT|NUMBER|REASON|OWNER|KEY|VALUE|RECIPE|SPLIT"
KEYS = sorted(key for key in messages.select("en") if key.startswith("error-"))
REASONS = sorted(key for key in messages.select("en") if key.startswith("why-"))
NOTES = sorted(key for key in messages.select("en") if key.startswith("note-"))
OF_OTHERS = {  # whose beginning or end is an argument
    "error-patch-unwritable", "error-patch-not-json", "error-patch-no-image", "error-patch-corrected-twice",
    "error-image-changed",
}  # fmt: skip
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """The texts of the code, with a null character in place of each value."""
    texts = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                pieces = [str(piece.value) if isinstance(piece, ast.Constant) else "\0" for piece in node.values]
                texts.append("".join(pieces))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


@pytest.mark.parametrize("key", [key for key in [*KEYS, *REASONS, *NOTES] if key not in OF_OTHERS])
def test_each_sentence_of_the_catalog_is_one_of_the_code(key: str, sentences: list[str]) -> None:
    pieces = re.split(rf"\(?\b(?:{VARIABLES})\b\)?", messages.select("en")[key])
    pattern = re.compile("[^.]*".join(re.escape(piece.strip("'")) for piece in pieces).replace(r"\ ", r" ?"))
    assert any(pattern.fullmatch(sentence) for sentence in sentences)


@pytest.mark.parametrize("key", KEYS)
def test_a_translation_has_the_values_of_the_sentence(key: str) -> None:
    english, chinese = messages.select("en")[key], messages.select("zh")[key]
    assert sorted(re.findall(VARIABLES, english)) == sorted(re.findall(VARIABLES, chinese))
    values = {
        "PATH": "runs/NAME.d",
        "NAME": "'eins'",
        "COUNT": "12",
        "NUMBER": "7",
        "REASON": "gone. Away",
        "OWNER": "(3)",
        "KEY": "train.time_limit",
        "VALUE": "fast",
        "RECIPE": "quick",
    }
    sentence = re.sub(VARIABLES, lambda match: values[match[0]], english)
    translated = messages.translate_error(sentence, messages.select("zh"))
    assert translated == re.sub(VARIABLES, lambda match: values[match[0]], chinese)
    assert messages.translate_error(sentence, messages.select("en")) == sentence


@pytest.mark.parametrize("name", ["a in b", "a' in b", "\"a\" in 'b'", "a\\' in b", "PATH to COUNT images"])
def test_a_name_may_hold_words_of_the_sentence(name: str) -> None:
    sentence = f"There is no run {name!r} in runs in use."
    assert messages.translate_error(sentence, messages.select("zh")) == f"runs in use 中没有名为 {name!r} 的训练。"


@pytest.mark.parametrize(
    ("reason", "translation"),
    [
        ("empty file", "文件为空"),
        ("format JPEG XL is not supported", "不支持 JPEG XL 格式"),
        ("cannot be decoded: decoder error -2", "无法解码\uff1adecoder error -2"),
        ("rare, and as it is", "rare, and as it is"),
    ],
)
def test_the_reason_why_an_image_cannot_be_read_is_translated_too(reason: str, translation: str) -> None:
    translated = messages.translate_error(f"The image cannot be read: {reason}.", messages.select("zh"))
    assert translated == f"无法读取图片\uff1a{translation}。"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Studio, Any]]:
    """A studio with a client whose page is Chinese."""
    folder, patches = draw_classes(tmp_path / "colors", COLORS, 2), tmp_path / "patches"
    patches.mkdir()
    with (
        open_studio(Dataset(folder), patches / "fixes.jsonl", runs=tmp_path / "runs") as studio,
        load_page(studio) as client,
    ):
        client.headers["Accept-Language"] = "zh-CN"
        yield studio, client


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("/undo", {"click": None}),
        ("/corrections", {"ids": [0], "edit": "relabel", "to": " a/b "}),
        ("/corrections", {"ids": [0], "edit": "add", "to": "red"}),
        ("/corrections", {"ids": [0], "edit": "move", "to": "test"}),
        ("/corrections", {"ids": [99], "edit": "drop"}),
        ("/corrections", {"ids": list(range(6)), "edit": "drop"}),
        ("/corrections", {"ids": [], "edit": "drop"}),
        ("/train/start", {"data": "elsewhere", "recipe": "quick", "effort": "", "time_limit": "", "epochs": 1}),
        ("/train/start", {"data": "", "recipe": "quick", "effort": "fast", "time_limit": "", "epochs": 1}),
        ("/train/start", {"data": "", "recipe": "quick", "effort": "", "time_limit": "10 apples", "epochs": 1}),
    ],
)
def test_what_a_page_is_refused_is_said_in_its_language(opened: tuple[Studio, Any], address: str, body: Any) -> None:
    answer = opened[1].post(address, json=body)
    assert answer.status_code == 400
    assert CHINESE.search(answer.json()["error"])
    english = opened[1].post(address, json=body, headers={"Accept-Language": "en"})
    assert not CHINESE.search(english.json()["error"])


def test_a_file_that_cannot_be_written_and_a_lost_token_are_said_in_its_language(opened: tuple[Studio, Any]) -> None:
    studio, client = opened
    shutil.rmtree(studio.corrections.path.parent)
    studio.corrections.path.parent.touch()  # a file in place of the folder
    answer = client.post("/corrections", json={"ids": [0], "edit": "drop"})
    assert answer.status_code == 500
    assert re.match(r"无法读取补丁文件 .*fixes\.jsonl", answer.json()["error"])
    lost = client.post("/undo", json={"click": None}, headers={"X-CSRF-Token": "old"})
    assert lost.json()["error"] == messages.select("zh")["error-restarted"]


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ("no JSON\n", "第 2 行不是 JSON"),
        (None, "第 2 行更正的 blue/blue-000.png 已由第 1 行更正"),
        (("blue-000.png", "gone.png"), "第 2 行没有对应的图片"),
    ],
)
def test_a_file_that_somebody_spoils_is_said_in_its_language(
    opened: tuple[Studio, Any], added: Any, words: str
) -> None:
    studio, client = opened
    client.post("/corrections", json={"ids": [0], "edit": "drop"})
    line = studio.corrections.path.read_text(encoding="utf-8")
    with studio.corrections.path.open("a", encoding="utf-8") as file:
        file.write(added if isinstance(added, str) else line if added is None else line.replace(*added))
    assert words in client.get("/state").json()["error"]


def test_what_a_background_task_fails_with_is_said_in_its_language(opened: tuple[Studio, Any], tmp_path: Path) -> None:
    studio, client = opened
    shutil.rmtree(tmp_path / "colors")
    for task, address in ((studio.check, "/check"), (studio.folders, "/folders")):
        client.post(address)
        task.wait()
        assert "发生了变化" in client.get("/state").json()[address[1:]]["error"]


def test_an_image_that_cannot_be_read_is_refused_in_the_language_of_the_page(run_client: Any) -> None:
    answer = run_client.post("/try", content=b"no image", headers={"Accept-Language": "zh"})
    assert answer.status_code == 400
    assert CHINESE.search(answer.json()["error"])
