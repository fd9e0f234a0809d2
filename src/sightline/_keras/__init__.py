"""All code that relies on private parts of Keras, a backend or LiteRT, patches them, or changes this process.

Other modules call the functions of this package; `tests/_keras/test_isolation.py` refuses private names of other
packages and changes of the process anywhere else. `tests/_keras/test_internals.py` fails if a release of Keras or a
backend changes what we rely on. Raise `CHECKED_VERSIONS` and the upper bounds in ``pyproject.toml`` together, after
``make test test-backends`` has passed with the new release.

These changes persist after a call in a user's own process: the variables of `imports.ENVIRONMENT`, for the reasons
given there; TensorFlow's thread count (`backend.set_threads`), which cannot be changed once TensorFlow has run;
deterministic operations with `device.deterministic`, which TensorFlow cannot undo; and Keras' counters of unnamed
layers.
"""

CHECKED_VERSIONS = {
    "keras": "3.15",
    "tensorflow": "2.21",
    "jax": "0.11",
    "torch": "2.13",
    "onnxruntime": "1.32",
    "openvino": "2026.4",
    "ai_edge_litert": "2.3",
}
"""The newest release of each package that has been checked."""
