"""An ONNX file as a `Predictor`, through ONNX Runtime: the runtime of bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sightline._keras import imports
from sightline.errors import ModelError, UsageError, first_line, plural
from sightline.inference.predictor import Outputs, PicklablePredictor
from sightline.inference.runner import choose_streams
from sightline.inference.runtimes.onnx_sessions import MAX_STREAMED_BYTES, StreamedSession, create_session
from sightline.inference.safety import onnx_file
from sightline.inference.safety.limits import read_scale
from sightline.models.head import OUTPUTS, PROBABILITIES
from sightline.preprocessing import PreprocessingSpec

GPU_PROVIDER = "CUDAExecutionProvider"
GPU_ARENA_BYTES = 4 << 30  # limit on the model's GPU memory, times the scale of `safety.limits`
GPU_INSTALL = 'pip uninstall onnxruntime, then pip install "onnxruntime-gpu[cuda,cudnn]"'  # both install one folder


def create_gpu_session(model: bytes) -> Any:
    """Create an ONNX Runtime session for a file on the first NVIDIA GPU, in full float32.

    Raises `UsageError`, which says what to install, if ONNX Runtime cannot use a GPU and would fall back to the CPU.
    """
    onnxruntime = imports.import_onnx_runtime()
    if GPU_PROVIDER not in onnxruntime.get_available_providers():
        raise UsageError(f"The installed ONNX Runtime has no support for GPUs: {GPU_INSTALL}, or use the device cpu.")
    imports.load_cuda_libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    cause = ""
    try:
        with imports.suppress_stderr():  # C++ code logs which library is missing, in several lines
            session = onnxruntime.InferenceSession(
                model, options, providers=[(GPU_PROVIDER, _list_gpu_options()), "CPUExecutionProvider"],
                enable_fallback=0,
            )  # fmt: skip
        if session.get_providers()[0] == GPU_PROVIDER:
            session.disable_fallback()
            return session
    except Exception as error:  # noqa: BLE001  # a dozen types come from C++; reported below
        cause = f" ({first_line(error)})"
    raise UsageError(
        f"ONNX Runtime cannot use a GPU here{cause}: check that nvidia-smi lists one, and that CUDA and cuDNN are "
        f"installed ({GPU_INSTALL}), or use the device cpu."
    )


def _list_gpu_options() -> dict[str, str]:
    """Return the options of the provider.

    cuDNN chooses its kernels by heuristics, since choosing them by timing changes the last digits in each process.
    """
    return {
        "device_id": "0",  # index into CUDA_VISIBLE_DEVICES
        "gpu_mem_limit": str(int(GPU_ARENA_BYTES * max(1.0, read_scale()))),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }


class OnnxPredictor(PicklablePredictor):
    """Predicts with the bytes of an ONNX file whose input is uint8 pixels [N, H, W, C]."""

    def __init__(
        self,
        model: bytes,
        classes: Sequence[str],
        preprocess: PreprocessingSpec,
        threads: int = 0,
        *,
        device: Literal["cpu", "gpu"] = "cpu",
    ) -> None:
        """`threads` 0 means one per core.

        Raises `ModelError` for a file that cannot be run or does not match, `UsageError` if the GPU is not available.
        """
        self.device = device
        self.device_reason = ""  # set if the device was chosen automatically
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self._threads = threads
        self._model = model  # shared with the session, so it takes no extra memory
        self._choose_streams()
        _ = self._session  # raises errors early

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        onnx_file.check_graph(self._model)  # as when loading the file
        self._choose_streams()  # for the cores of this process

    def _choose_streams(self) -> None:
        is_streamed = self.device == "cpu" and len(self._model) <= MAX_STREAMED_BYTES
        self.streams = choose_streams(self.preprocess.shape, self._threads) if is_streamed else None

    @cached_property
    def _session(self) -> Any:
        if self.device == "gpu":
            runtime_session = create_gpu_session(self._model)
        elif self.streams is not None:
            runtime_session = StreamedSession(self._model, self.streams, self._threads)
        else:
            runtime_session = create_session(self._model, self._threads)
        self._check_signature(runtime_session)
        return runtime_session

    @property
    def file(self) -> bytes:
        """The bytes of the ONNX file."""
        return self._model

    def open_value(self, name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """Return a function of pixels [N, H, W, C] that computes the value `name` inside the graph, [N, ...].

        It has a session of its own, and raises `ModelError` as `probabilities` does.
        """
        file = onnx_file.add_output(self._model, name)
        session = create_gpu_session(file) if self.device == "gpu" else create_session(file, self._threads)
        return lambda pixels: _run_session(session, [name], pixels)[0]

    def on_gpu(self) -> Self:
        """Return a predictor for the same model on the GPU; raises `UsageError` if there is none."""
        return type(self)(self._model, self.classes, self.preprocess, self._threads, device="gpu")

    def _check_signature(self, runtime_session: Any) -> None:
        preprocess = self.preprocess
        inputs = [(i.name, i.type, i.shape[1:]) for i in runtime_session.get_inputs()]
        expected = [("pixels", "tensor(uint8)", [preprocess.height, preprocess.width, preprocess.channels])]
        outputs = {o.name: o.shape for o in runtime_session.get_outputs()}
        batch = next((i.shape[0] for i in runtime_session.get_inputs() if i.shape), None)
        if inputs != expected:
            raise ModelError(f"its input is {inputs}, but its preprocessing gives {expected}")
        if set(outputs) != set(OUTPUTS) or outputs[PROBABILITIES][1:] not in (
            [len(self.classes)], [preprocess.height, preprocess.width, len(self.classes)]
        ):  # fmt: skip
            raise ModelError(f"its outputs are {outputs}, which do not match its {len(self.classes)} classes")
        if isinstance(batch, int):
            raise ModelError(f"it takes a fixed batch of {plural(batch, 'image')}, not a batch of any size")

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K] for uint8 pixels [N, H, W, C]; raises `ModelError` if the graph fails on them."""
        return self._run([PROBABILITIES], pixels)[0]

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        return Outputs(*self._run(OUTPUTS, pixels))

    def _run(self, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return _run_session(self._session, names, pixels)


def _run_session(session: Any, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    try:
        return list(session.run(list(names), {"pixels": np.ascontiguousarray(pixels)}))
    except Exception as error:  # a dozen types come from C++
        raise ModelError(
            f"ONNX Runtime cannot run the model on {plural(len(pixels), 'image')}: {first_line(error)}"
        ) from error
