"""Outside of `sightline._keras`, no module uses private names of other packages or changes the process."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "sightline"
MODULES = sorted(
    path.relative_to(SOURCE).as_posix()
    for path in SOURCE.rglob("*.py")
    if path.relative_to(SOURCE).parts[0] != "_keras"
)

NOT_PRIVATE = {"_replace", "_asdict", "_fields", "_make", "_exit"}  # of named tuples and of os
PRIVATE_MODULE = re.compile(r"(keras\.src|tensorflow\.python|jax\._src)\b|^(keras|tensorflow|jax|torch)\b.*\._")
CHANGES = {
    *(
        "os.environ.setdefault",
        "os.environ.update",
        "os.environ.pop",
        "os.putenv",
        "os.unsetenv",
        "os.chdir",
        "os.umask",
    ),
    *(
        "sys.modules.update",
        "sys.modules.pop",
        "sys.modules.setdefault",
        "sys.meta_path.insert",
        "sys.meta_path.append",
    ),
    *("logging.disable", "logging.basicConfig", "logging.captureWarnings", "setLevel", "warnings.resetwarnings"),
    *("np.seterr", "np.random.seed", "np.set_printoptions", "random.seed", "sys.setrecursionlimit"),
    *("set_random_seed", "set_dtype_policy", "set_floatx", "set_image_data_format", "clear_session"),
    *("set_num_threads", "set_num_interop_threads", "use_deterministic_algorithms", "enable_op_determinism"),
    *("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"),
    *("set_float32_matmul_precision", "enable_tensor_float_32_execution"),
    *("enable_unsafe_deserialization", "matplotlib.use", "plt.style.use", "mpl.use", "mallopt"),
}
LAST_NAMES = {name.rpartition(".")[2] for name in CHANGES} | {"simplefilter", "filterwarnings"}
RESTORED = "restored at the end of the call: process_state.restore_torch_settings"
NO_WAY_BACK = "TensorFlow has no public way back; see the docstring of sightline._keras"
EXCEPTIONS = {
    ("backend.py", "set_num_threads"): RESTORED,
    ("backend.py", "use_deterministic_algorithms"): RESTORED,
    ("backend.py", "set_intra_op_parallelism_threads"): NO_WAY_BACK,
    ("backend.py", "set_inter_op_parallelism_threads"): NO_WAY_BACK,
    ("backend.py", "enable_op_determinism"): NO_WAY_BACK,
    ("cli/__init__.py", "setLevel"): "of the command line's own process",
    ("distributed/cluster.py", "set_random_seed"): "several hosts must start alike; a process of their own",
    ("process.py", "warnings.simplefilter"): "of the command line's own process, where warnings were to be errors",
    ("serve/observing.py", "setLevel"): "restored at the end of observing.set_log_format",
    ("serve/server.py", "os.environ.pop"): "of the command `serve` alone, in its own process",
    ("serve/uploads.py", "setLevel"): "of the reader of forms, called in a process of its own",
}
"""The calls that stay where they are, with the reason."""


def list_own_names(tree: ast.AST) -> set[str]:
    """Return the names that a module defines or imports: functions, classes, variables, attributes of ``self``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.alias(name=name)
            ):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NOT_PRIVATE


def find_private_uses(source: str) -> Iterator[str]:
    """Yield each use of a private name that the module itself does not define, and of a framework's inner modules."""
    tree = ast.parse(source)
    own = list_own_names(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                if is_private(name):
                    yield f"line {node.lineno}: {ast.unparse(node)}"
            case ast.Import(names=aliases):
                yield from (f"line {node.lineno}: {a.name}" for a in aliases if PRIVATE_MODULE.search(a.name))
            case ast.ImportFrom(module=str(module), names=aliases):
                full_names = [f"{module}.{alias.name}" for alias in aliases]
                yield from (f"line {node.lineno}: {name}" for name in full_names if PRIVATE_MODULE.search(name))
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ) if PRIVATE_MODULE.search(name):
                yield f"line {node.lineno}: {name}"
            case ast.Attribute(attr="src", value=ast.Name(id="keras")):
                yield f"line {node.lineno}: keras.src"


def find_process_changes(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each change of the environment, of imports, logging, warnings or global settings."""
    tree = ast.parse(source)
    local_filters = {
        id(call)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and "warnings.catch_warnings" in "".join(map(ast.unparse, block.items))
        for call in ast.walk(block)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=value, ctx=ast.Store() | ast.Del()) if ast.unparse(value) in {
                "os.environ",
                "sys.modules",
            }:
                yield node.lineno, ast.unparse(value)
            case ast.Call(func=ast.Name(id=last_name) | ast.Attribute(attr=last_name)) if last_name in LAST_NAMES:
                name = ast.unparse(node.func)
                if name in {"warnings.simplefilter", "warnings.filterwarnings"} and id(node) not in local_filters:
                    yield node.lineno, name
                calls = {name, name.rpartition(".")[2]} & CHANGES
                yield from ((node.lineno, each) for each in calls)


def test_no_private_name_of_another_module_is_used() -> None:
    uses = [
        f"{module}, {use}"
        for module in MODULES
        for use in find_private_uses((SOURCE / module).read_text(encoding="utf-8"))
    ]
    assert not uses, "\n".join(uses) + "\nAdd a named function to sightline/_keras, with its reason."


def test_the_process_is_not_changed() -> None:
    changes = [
        f"{module}, line {line}: {name}"
        for module in MODULES
        for line, name in find_process_changes((SOURCE / module).read_text(encoding="utf-8"))
        if (module, name) not in EXCEPTIONS
    ]
    assert not changes, "\n".join(changes) + "\nA user would notice; see sightline/_keras."


@pytest.mark.parametrize(("module", "name"), EXCEPTIONS)
def test_every_exception_is_used(module: str, name: str) -> None:
    changes = {change for _, change in find_process_changes((SOURCE / module).read_text(encoding="utf-8"))}
    assert name in changes


@pytest.mark.parametrize(
    "source",
    [
        "model._functional",
        "def f(self):\n    self._nodes_by_depth",
        "optimizer._momentums = []",
        "getattr(model, '_functional', model)",
        "import keras\nkeras.src.backend",
        "from keras.src.backend.common import global_state",
        "from tensorflow.python.eager import context",
        "import jax._src.core",
        "import importlib\nimportlib.import_module('keras.src.utils')",
        "from torch import _dynamo",
    ],
)
def test_a_private_use_is_found(source: str) -> None:
    assert len(list(find_private_uses(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def set(self):\n        self._x = 1\n    def get(self, other):\n        return other._x",
        "from sightline import _io\nimport sightline\nsightline._io.write_atomic",
        "import os\nos._exit(0)\nmodel.__dict__",
        "import keras\nkeras.layers",
    ],
)
def test_own_private_names_may_be_used(source: str) -> None:
    assert list(find_private_uses(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "os.environ['A'] = '1'",
        "del os.environ['A']",
        "os.environ.setdefault('A', '1')",
        "sys.modules['sklearn'] = None",
        "sys.meta_path.insert(0, finder)",
        "logging.disable(30)",
        "logging.getLogger('tensorflow').setLevel(40)",
        "warnings.simplefilter('ignore')",
        "keras.utils.set_random_seed(0)",
        "keras.config.set_dtype_policy('mixed_bfloat16')",
        "np.seterr(all='ignore')",
        "torch.set_num_threads(1)",
    ],
)
def test_a_change_of_the_process_is_found(source: str) -> None:
    assert len(list(find_process_changes(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "with warnings.catch_warnings():\n    warnings.simplefilter('ignore')",
        "os.environ.get('A')\nos.environ['A']",
        "with np.errstate(all='ignore'):\n    pass",
    ],
)
def test_what_is_restored_is_allowed(source: str) -> None:
    assert list(find_process_changes(source)) == []
