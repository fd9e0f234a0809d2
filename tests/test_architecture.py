"""The rules of the architecture: layers, module size, light imports, public names, clean files.

The checks are plain functions of a package root, so that the last tests can show that they fail.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOT = REPOSITORY / "src" / "sightline"
PACKAGE = "sightline"

# A module imports only from lower layers and its own package, never from a sibling package in its own layer. A module
# of a package may have its own layer, below the package's: it then imports nothing from the package.
# `sightline/__init__.py` is exempt: it resolves the public names lazily and may import anything.
LAYERS: dict[int, set[str]] = {
    0: {"errors", "escaping", "nesting", "process", "recipes"},  # recipes: TOML files
    1: {"_io", "_keras", "_packed", "callbacks", "plugins", "seeding"},
    2: {
        *("_locks", "backend", "config", "datasets", "intervals", "jsonio", "metrics", "preprocessing", "progress"),
        "tracking",
    },
    3: {"data", "distributed", "models"},
    4: {"export"},
    5: {"inference"},
    6: {"tasks.protocol"},
    7: {"explain", "training"},
    8: {"evaluation"},
    9: {"tasks"},
    10: {"compress"},
    11: {"runs"},
    12: {"report"},
    13: {"api"},
    14: {"serve.addressing", "serve.certificate", "serve.listening", "sweeps"},
    15: {"serve", "studio"},
    16: {"cli", "integrations"},
    17: {"__main__"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}

JSON_WRITER = "jsonio.py"

LONGEST_MODULE = 400  # lines

PUBLIC_NAMES = {
    "Callback",
    "Classifier",
    "ConfigError",
    "DataError",
    "Dataset",
    "DivergedError",
    "Evaluation",
    "HostError",
    "ImageError",
    "InsufficientMemoryError",
    "Interrupted",
    "MissingExtraError",
    "MissingImagesError",
    "ModelError",
    "OutputError",
    "PluginError",
    "Prediction",
    "ProcessError",
    "Run",
    "SightlineError",
    "UsageError",
    "__version__",
    "describe",
    "learning_curve",
    "load",
    "pull",
    "push",
    "register_augmentation",
    "register_exporter",
    "register_layer",
    "register_metric",
    "register_model",
    "register_source",
    "register_task",
    "sweep",
    "train",
}

FRAMEWORKS = {"jax", "keras", "tensorflow", "torch"}

# Absolute paths of one machine, and hosts of package indexes; the brackets keep this line from matching itself.
FORBIDDEN = re.compile(rb"(?<![\w.-])[/]work/|pypi[.]org/simple|files[.]pythonhosted")


def list_modules(root: Path) -> list[str]:
    """Return the modules under `root` as sorted paths relative to it, such as ``"data/indexing.py"``."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))


@functools.cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file, cached for several tests."""
    return ast.parse(path.read_bytes(), filename=str(path))


def list_imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the absolute dotted name of each import in `tree`, at any depth.

    Includes `import a.b`, `from a import b` (as ``a.b``), relative imports, and `import_module("a.b")`.
    """
    folder = [PACKAGE, *module.split("/")[:-1]]
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(names=names, module=source, level=level):
                base = folder[: len(folder) - level + 1] if level else []
                base = [*base, source] if source else base
                yield from ((node.lineno, ".".join([*base, alias.name])) for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def find_entry(name: str) -> str:
    """Return the entry of `LAYER_OF` for a dotted name: the module, if it has its own layer, or else the package."""
    package, _, rest = name.partition(".")
    module = f"{package}.{rest.partition('.')[0]}"
    return module if module in LAYER_OF else package


def find_layer_faults(root: Path, module: str) -> list[str]:
    """Return the violations of the layer table in `module`, one line each."""
    own = find_entry(module.removesuffix(".py").replace("/", "."))
    if own == "__init__":
        return []
    if own not in LAYER_OF:
        return [f"{module}: {own!r} has no layer; add it to LAYERS in tests/test_architecture.py"]
    faults = []
    for line, name in list_imports(parse(root / module), module):
        package, _, rest = name.partition(".")
        target = find_entry(rest)
        if package != PACKAGE or target in {own, "__version__"}:
            continue
        if target not in LAYER_OF:
            faults.append(f"{module}:{line}: imports {name!r}; import from the module that defines the name")
        elif LAYER_OF[target] >= LAYER_OF[own]:
            faults.append(
                f"{module}:{line}: {own} (layer {LAYER_OF[own]}) imports {target} (layer {LAYER_OF[target]});"
                " only lower layers may be imported"
            )
    return faults


def test_imports_only_from_lower_layers() -> None:
    faults = [fault for module in list_modules(ROOT) for fault in find_layer_faults(ROOT, module)]
    assert not faults, "\n".join(faults)


def find_json_faults(root: Path, module: str) -> list[str]:
    """Return each use of Python's own JSON writer, which writes NaN, outside of `JSON_WRITER`."""
    if module == JSON_WRITER:
        return []
    faults = []
    for node in ast.walk(parse(root / module)):
        match node:
            case ast.Attribute(value=ast.Name(id="json"), attr="dumps" | "dump"):
                faults.append(f"{module}:{node.lineno}: writes JSON that may hold NaN; use sightline.jsonio.dumps")
            case ast.ImportFrom(module="json", names=names) if {n.name for n in names} & {"dumps", "dump"}:
                faults.append(f"{module}:{node.lineno}: writes JSON that may hold NaN; use sightline.jsonio.dumps")
    return faults


def test_json_never_holds_nan() -> None:
    faults = [fault for module in list_modules(ROOT) for fault in find_json_faults(ROOT, module)]
    assert not faults, "\n".join(faults)


def test_modules_are_short_enough_to_read() -> None:
    lengths = {module: len((ROOT / module).read_bytes().splitlines()) for module in list_modules(ROOT)}
    faults = [f"{module} has {lines} lines" for module, lines in lengths.items() if lines > LONGEST_MODULE]
    assert not faults, "\n".join(faults) + f"\nSplit by concept (limit {LONGEST_MODULE})."


PROBE = """
import sys
import sightline
if arguments := sys.argv[1:]:
    from sightline.cli import main
    sys.argv = ["sightline", *arguments]
    try:
        sys.exit(main())
    except SystemExit as stop:
        if stop.code:
            raise
print("modules:", *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["models"], ["recipes"]], ids=lambda args: " ".join(args) or "-")
def test_light_commands_import_no_framework(arguments: list[str]) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert completed.returncode == 0, completed.stderr
    loaded = set(completed.stderr.rpartition("modules:")[2].split())
    assert PACKAGE in loaded
    assert not loaded & FRAMEWORKS


def test_the_page_shows_the_layers_of_the_code() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ((?:`[\w.]+` )+)\|", page, re.MULTILINE)
    table = {int(layer): set(re.findall(r"[\w.]+", names)) for layer, names in rows}
    assert table == {layer: names for layer, names in LAYERS.items() if names != {"__main__"}}
    modules = {module.split("/", maxsplit=1)[0].removesuffix(".py") for module in list_modules(ROOT)}
    assert {name for name in LAYER_OF if "." not in name} == modules - {"__init__"}


def test_public_names_are_pinned() -> None:
    import sightline

    assert set(sightline.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_public_name_resolves(name: str) -> None:
    assert hasattr(importlib.import_module(PACKAGE), name)


def test_version_is_the_installed_one() -> None:
    import sightline

    assert sightline.__version__ == importlib.metadata.version(PACKAGE)


def test_no_file_names_one_machine_or_an_index() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout, so git cannot list the files")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    files = [path for name in tracked if name and (path := REPOSITORY / name).is_file()]
    assert Path(__file__).resolve() in files
    assert [path.relative_to(REPOSITORY).as_posix() for path in files if FORBIDDEN.search(path.read_bytes())] == []


# The checks must be able to fail.


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("data/indexing.py", "from sightline.models import registry", "data (layer 3) imports models (layer 3)"),
        ("data/indexing.py", "from ..models import registry", "data (layer 3) imports models (layer 3)"),
        (
            "training/loop.py",
            "def f():\n    import sightline.explain.gradcam",
            "training (layer 7) imports explain",
        ),
        ("metrics.py", "from . import config", "metrics (layer 2) imports config (layer 2)"),
        ("metrics.py", "from sightline import data", "metrics (layer 2) imports data (layer 3)"),
        ("runs/paths.py", "import importlib\nimportlib.import_module('sightline.cli')", "runs (layer 11) imports cli"),
        ("runs/paths.py", "from sightline import Classifier", "import from the module that defines the name"),
        ("runs/paths.py", "import sightline", "import from the module that defines the name"),
        (
            "training/loop.py",
            "from sightline.tasks.single_label import SingleLabel",
            "training (layer 7) imports tasks",
        ),
        ("tasks/protocol.py", "from sightline.tasks import single_label", "tasks.protocol (layer 6) imports tasks"),
        ("helpers.py", "", "'helpers' has no layer; add it to LAYERS"),
        ("helpers/text.py", "", "'helpers' has no layer; add it to LAYERS"),
    ],
    ids=range(12),
)
def test_a_layer_fault_is_found(tmp_path: Path, module: str, source: str, fault: str) -> None:
    path = tmp_path / module
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert list_modules(tmp_path) == [module]
    (message,) = find_layer_faults(tmp_path, module)
    assert fault in message


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data/indexing.py", "from sightline.data.split import split\nfrom . import audit\nfrom .split import split"),
        (
            "data/indexing.py",
            "from sightline import errors, jsonio\nfrom ..errors import DataError\nimport numpy.data",
        ),
        ("runs/paths.py", "from sightline import __version__"),
        ("training/loop.py", "from sightline.tasks.protocol import find_task"),
        ("tasks/multi_label.py", "from sightline.tasks import protocol, single_label"),
        ("__init__.py", "from sightline.cli import main"),
        ("__main__.py", "from sightline.cli import main"),
    ],
    ids=range(7),
)
def test_a_valid_import_is_accepted(tmp_path: Path, module: str, source: str) -> None:
    path = tmp_path / module
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert find_layer_faults(tmp_path, module) == []


@pytest.mark.parametrize("source", ["import json\njson.dumps(1)", "from json import dump", "f = json.dump"])
def test_another_json_writer_is_found(tmp_path: Path, source: str) -> None:
    (tmp_path / "writes.py").write_text(source, encoding="utf-8")
    assert len(find_json_faults(tmp_path, "writes.py")) == 1
    (tmp_path / "reads.py").write_text("import json\njson.loads('1')", encoding="utf-8")
    assert find_json_faults(tmp_path, "reads.py") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"see /" + b"work/main", True),
        (b"--index-url https://pypi." + b"org/simple", True),
        (b"a/b/work/c and ../work/d", False),
    ],
    ids=["path", "index", "other"],
)
def test_forbidden_text_is_found(text: bytes, expected: bool) -> None:
    assert bool(FORBIDDEN.search(text)) is expected
