"""Everything that relies on private parts of Keras, of a backend or of LiteRT, patches them, or changes this process.

Other modules call the named functions of this package; `tests/_keras/test_isolation.py` refuses private names of other
packages and changes of the process anywhere else. `tests/_keras/test_internals.py` fails if a release of Keras or of a
backend changes what is relied on. `CHECKED_VERSIONS` and the upper bounds in ``pyproject.toml`` are raised together,
after ``make test test-backends`` has passed with the new release.

What stays changed after a call in a user's own process: the variables of `imports.ENVIRONMENT`, for the reasons given
there; the number of TensorFlow's threads (`backend.set_threads`), which cannot be set again once it computes; that its
operations are deterministic, if `device.deterministic` is set, which has no public way back; and Keras' counters of
unnamed layers.
"""

CHECKED_VERSIONS = {
    "keras": "3.15",
    "tensorflow": "2.21",
    "jax": "0.11",
    "torch": "2.13",
    "onnxruntime": "1.31",
    "openvino": "2026.4",
    "ai_edge_litert": "2.3",
}
"""The newest release that each package was checked with."""
