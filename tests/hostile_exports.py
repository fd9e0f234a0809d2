"""Exported folders crafted to run code, to read or write other files, or to exhaust memory or time.

Run as a script, it loads folders: it reads one path per line from standard input, loads that folder in a forked process
limited to 8 GiB of address space and 60 s of processor time, and writes one JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sightline.errors import ModelError
from sightline.inference import exported_folder
from sightline.inference.manifest import Manifest
from sightline.preprocessing import PreprocessingSpec

SIDE, CLASSES = 8, ("ant", "bee", "cat")
WIDTH = SIDE * SIDE * 3
MANIFEST = Manifest("hostile", CLASSES, PreprocessingSpec(SIDE, SIDE, 3))
SECONDS, MAX_ADDRESS_SPACE = 60, 8 << 30
Files = Mapping[str, bytes]


def write_folder(folder: Path, form: str, files: Files) -> Path:
    """Write the files with a manifest that has correct hashes, as an untrusted party would."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "manifest.json").write_bytes(exported_folder._encode_manifest(MANIFEST, form, files))
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- OpenVINO -------------------------------------------------------------------------------------------------------


def make_openvino(
    folder: Path, build: Callable[[Any, Any], Any], shape: tuple[int, ...] = (-1, SIDE, SIDE, 3)
) -> Files:
    """Return the files of a model; `build` makes features [N, F] from the module of operations and the flat pixels."""
    from sightline._keras import imports

    openvino = imports.import_openvino()
    ops = openvino.opset13
    pixels = ops.parameter(list(shape), np.uint8, "pixels")
    flat = ops.reshape(ops.convert(pixels, "f32"), np.array([-1, WIDTH]), special_zero=False)
    features = build(ops, flat)
    narrow = ops.reduce_mean(features, np.array([1]), keep_dims=True)
    logits = ops.matmul(narrow, np.ones((1, 3), np.float32), transpose_a=False, transpose_b=False)
    results = {"probabilities": ops.softmax(logits, 1), "logits": logits, "features": features}
    outputs = []
    for name, node in results.items():
        node.output(0).get_tensor().set_names({name})
        outputs.append(ops.result(node))
    pixels.output(0).get_tensor().set_names({"pixels"})
    openvino.save_model(openvino.Model(outputs, [pixels], "hostile"), folder / "model.xml", compress_to_fp16=False)
    return {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}


def _double(count: int) -> Callable[[Any, Any], Any]:
    def build(ops: Any, value: Any) -> Any:
        for _ in range(count):
            value = ops.concat([value, value], 1)
        return value

    return build


def _multiply(count: int) -> Callable[[Any, Any], Any]:
    def build(ops: Any, value: Any) -> Any:
        value = ops.broadcast(ops.reduce_mean(value, np.array([1]), keep_dims=True), np.array([1, 4000]), "NUMPY")
        square = ops.broadcast(ops.constant(np.ones((1, 1), np.float32)), np.array([4000, 4000]), "NUMPY")
        for _ in range(count):
            square = ops.matmul(square, ops.tanh(square), transpose_a=False, transpose_b=False)
        return ops.matmul(value, square, transpose_a=False, transpose_b=False)

    return build


def _fold(ops: Any, value: Any) -> Any:
    """Constants that OpenVINO would compute while it compiles: 256 GB."""
    large = ops.broadcast(ops.constant(np.ones((1, 1), np.float32)), np.array([1 << 18, 1 << 18]), "NUMPY")
    return ops.add(value, ops.reduce_mean(large, np.array([0, 1]), keep_dims=True))


def _count(ops: Any, value: Any) -> Any:
    """The size of the output of `NonZero` depends on the pixels."""
    count = ops.shape_of(ops.non_zero(value), "i32")
    return ops.add(value, ops.convert(ops.reduce_mean(count, np.array([0]), keep_dims=True), "f32"))


OPENVINO_GRAPHS: dict[str, Callable[[Path], Files]] = {
    "memory for the output": lambda folder: make_openvino(folder, _double(30)),
    "memory for a value": lambda folder: make_openvino(
        folder, lambda ops, x: ops.reduce_mean(_double(30)(ops, x), np.array([1]), keep_dims=True)
    ),
    "time": lambda folder: make_openvino(folder, _multiply(60)),
    "memory for constants": lambda folder: make_openvino(folder, _fold),
    "an operation that is not allowed": lambda folder: make_openvino(folder, _count),
    "an input of any size": lambda folder: make_openvino(folder, lambda _, x: x, (-1, -1, -1, 3)),
    "another input": lambda folder: make_openvino(folder, lambda _, x: x, (-1, 3, SIDE, SIDE)),
}


def _replace(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(xml: bytes) -> bytes:
        assert old in xml, old
        return xml.replace(old, new, 1)

    return change


OPENVINO_XML: dict[str, Callable[[bytes], bytes]] = {
    "entities that expand": _replace(
        b"<net ",
        b'<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">'
        + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(12))
        + b"]><net ",
    ),
    "an external entity": _replace(b"<net ", b'<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]><net '),
    "deep nesting": _replace(b"<rt_info>", b"<rt_info>" + b"<a>" * 1_000_000 + b"</a>" * 1_000_000),
    "weights behind the end": _replace(b'offset="0"', b'offset="18446744073709551600"'),
    "a negative offset": _replace(b'offset="0"', b'offset="-64"'),
    "weights of exabytes": _replace(b'size="8"', b'size="9223372036854775807"'),
    "an unknown operation": _replace(b'type="SoftMax"', b'type="Loop"'),
    "an operation of another library": _replace(b'version="opset8"', b'version="../../tmp/evil.so"'),
    "not XML": lambda _: b"\0" * 1000,
    "nothing": lambda _: b"",
    "cut short": lambda xml: xml[: len(xml) // 2],
    "a subgraph": _replace(b"<output>", b"<body><layers/></body><output>"),
    "two million layers": _replace(b"<layers>", b"<layers>" + b'<layer id="9" name="x" type="Relu"/>' * 2_000_000),
}
"""Changes to a valid ``model.xml``."""


# ---- SavedModel -----------------------------------------------------------------------------------------------------

SAVED_MODEL_KINDS = {
    "read a file": "operation '(ReadFile|StringLength)'",
    "write a file": "operation 'WriteFile'",
    "write a file in a function that is called": "operation 'WriteFile'",
    "list files": "operation 'MatchingFiles'",
    "call Python": "operation 'EagerPyFunc'",
    "call NumPy": "operation 'PyFunc'",
    "loop": "operation 'StatelessWhile'",
    "print": "operation '(PrintV2|StringFormat)'",
    "a table from a file": "'saved_model/assets/victim', which Sightline never writes",
    "a table": "object 'tf.StaticHashTable', which Sightline never writes",
    "version 1": "or no objects",
    "an asset": "'saved_model/assets/victim', which Sightline never writes",
}
"""What each kind does, and the message that refuses it."""


def _keep(_tf: Any, x: Any, _victim: Path) -> Any:
    return x


def _write_file(tf: Any, x: Any, victim: Path) -> Any:
    with tf.control_dependencies([tf.io.write_file(str(victim), "changed")]):
        return tf.identity(x)


def _print(tf: Any, x: Any, victim: Path) -> Any:
    tf.print(x, output_stream=f"file://{victim}")
    return x


_CHANGES: dict[str, Callable[[Any, Any, Path], Any]] = {
    "read a file": lambda tf, x, victim: x + tf.cast(tf.strings.length(tf.io.read_file(str(victim))), tf.float32),
    "list files": lambda tf, x, _: x + tf.cast(tf.size(tf.io.matching_files("/*")), tf.float32),
    "write a file": _write_file,
    "write a file in a function that is called": lambda tf, x, victim: tf.function(
        lambda y: _write_file(tf, y, victim)
    )(x),
    "call Python": lambda tf, x, _: tf.ensure_shape(tf.py_function(lambda v: v, [x], tf.float32), [None, WIDTH]),
    "call NumPy": lambda tf, x, _: tf.ensure_shape(tf.numpy_function(lambda v: v, [x], tf.float32), [None, WIDTH]),
    "loop": lambda tf, x, _: tf.while_loop(lambda i, _: i < 1 << 30, lambda i, v: (i + 1, v), [tf.constant(0), x])[1],
    "print": _print,
}
_OBJECTS: dict[str, Callable[[Any, Path], Any]] = {
    "a table": lambda tf, _: tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant([1]), tf.constant([2])), 0
    ),
    "a table from a file": lambda tf, victim: tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(victim), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        ),
        -1,
    ),
    "an asset": lambda tf, victim: tf.saved_model.Asset(str(victim)),
}


def make_saved_model(folder: Path, kind: str, victim: Path) -> Files:
    """Return the files of a SavedModel that does more than compute, or of a valid one if `kind` is empty."""
    from sightline._keras import imports

    tf: Any = imports.import_tensorflow("A hostile model")
    if kind == "version 1":
        _save_version_1(tf, folder / "saved_model", victim)
        return read_files(folder)
    change = _CHANGES.get(kind, _keep)
    module = tf.Module()
    module.weights = tf.Variable(tf.ones([WIDTH, 3]))
    if kind in _OBJECTS:
        module.extra = _OBJECTS[kind](tf, victim)

    def serve(pixels: Any) -> dict[str, Any]:
        features = change(tf, tf.reshape(tf.cast(pixels, tf.float32), [-1, WIDTH]), victim)
        logits = tf.matmul(features, module.weights)
        return {"probabilities": tf.nn.softmax(logits), "logits": logits, "features": features}

    specification = tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8, name="pixels")
    module.serve = tf.function(serve, input_signature=[specification], autograph=False)
    tf.saved_model.save(module, str(folder / "saved_model"), signatures=module.serve)
    return read_files(folder)


def _save_version_1(tf: Any, target: Path, victim: Path) -> None:
    """Save a TensorFlow 1 graph whose initialization writes a file."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        pixels = tf.compat.v1.placeholder(tf.uint8, [None, SIDE, SIDE, 3], "pixels")
        logits = tf.reshape(tf.cast(pixels, tf.float32), [-1, WIDTH])[:, :3]
        outputs = {"probabilities": tf.nn.softmax(logits), "logits": logits, "features": logits}
        describe = tf.compat.v1.saved_model.predict_signature_def
        builder = tf.compat.v1.saved_model.Builder(str(target))
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": describe({"pixels": pixels}, outputs)},
            main_op=tf.io.write_file(str(victim), "changed"),
        )  # fmt: skip
        builder.save()


# ---- LiteRT ---------------------------------------------------------------------------------------------------------


def make_litert(kind: str) -> bytes:
    """Return a LiteRT file with a loop, a TensorFlow operation or a custom one; a valid file if `kind` is empty."""
    from sightline._keras import imports

    tf = imports.import_tensorflow("A hostile model")

    def serve(pixels: Any) -> dict[str, Any]:
        features = tf.reshape(tf.cast(pixels, tf.float32), [-1, WIDTH])
        if kind == "loop":
            features = tf.while_loop(lambda i, _: i < 1 << 30, lambda i, v: (i + 1, v * 1.0), [0, features])[1]
        if kind == "fill":
            rows = tf.cast(tf.reduce_max(features), tf.int32) * 0 + (1 << 30)
            features = features + tf.reduce_mean(tf.fill([rows], 1.0))
        if kind in {"size", "large size"}:
            side = tf.cast(tf.reduce_max(features), tf.int32) * 0 + (1 << 15) if kind == "size" else 1 << 15
            resized = tf.image.resize(tf.cast(pixels, tf.float32), tf.stack([side, side]))
            features = features + tf.reduce_mean(resized)
        if kind == "operation of TensorFlow":
            features = features + tf.cast(tf.strings.length(tf.io.read_file("/etc/passwd")), tf.float32)
        logits = features[:, :3]
        return {"probabilities": tf.nn.softmax(logits), "logits": logits * 1.0, "features": features + 1.0}

    function = tf.function(serve, input_signature=[tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8, name="pixels")])
    module = tf.Module()
    module.serve = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    converter.allow_custom_ops = True
    content: bytes = converter.convert()
    return content


# ---- damage ---------------------------------------------------------------------------------------------------------

WORDS = (
    b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\0\0\0\0", b"-1", b"9" * 19, b"<", b'"', b"\0", b"\xff",
)  # fmt: skip


def damage(content: bytes, seed: int) -> bytes:
    """Return the content with a few bytes flipped or overwritten by wild offsets and sizes, mostly at its ends."""
    rng = np.random.default_rng(seed)
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = int(rng.integers(len(data) if rng.integers(2) else min(len(data), 8000)))
        at = len(data) - 1 - at if rng.integers(2) else at
        if rng.integers(2):
            data[at] ^= 1 << int(rng.integers(8))
        else:
            word = WORDS[rng.integers(len(WORDS))]
            data[at : at + len(word)] = word
    return bytes(data)


# ---- loading in separate processes ----------------------------------------------------------------------------------


def _load(folder: str) -> None:
    code, message = 0, ""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    try:
        exported_folder.load(Path(folder), threads=1)
    except ModelError as error:
        code, message = 2, str(error)
    except BaseException as error:  # noqa: BLE001  # the exit code reports it
        code, message = 3, f"{type(error).__name__}: {error}"
    sys.stdout.write(message.replace("\n", " ") + "\n")
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    """Load each folder named on standard input in a forked process."""
    import_runtime(sys.argv[1])  # before the first fork
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 1)
            _load(line.rstrip("\n"))
        os.close(writer)
        with os.fdopen(reader) as answer:
            message = answer.read().strip()
        _, status, usage = os.wait4(child, 0)
        outcome = {
            "folder": line.strip(), "code": os.waitstatus_to_exitcode(status), "message": message,
            "cpu": usage.ru_utime + usage.ru_stime, "bytes": usage.ru_maxrss * 1024,
        }  # fmt: skip
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


def import_runtime(form: str) -> None:
    """Import the runtime of a format, but create no session of it."""
    from sightline._keras import imports
    from sightline.errors import require

    if form == "openvino":
        imports.import_openvino()
    elif form == "litert":
        require("ai_edge_litert.interpreter", "The format litert")
    else:
        imports.import_tensorflow("The format saved_model")


if __name__ == "__main__":
    main()
