"""The bundle of a run behind LitServe, as in its guide: a form with an image, in batches of up to 8.

    python benchmarks/peer_litserve.py BUNDLE PORT

It decodes with the same code and runs the same ONNX file as `sightline serve`, which is measured by `serve.py`.
"""

import sys  # no postponed annotations in this file: LitServe evaluates one
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import onnxruntime
from starlette.requests import Request

from sightline.inference import bundle

BATCH_SIZE, BATCH_TIMEOUT = 8, 0.01


class ImageAPI(litserve.LitAPI):  # type: ignore[misc]  # has no types
    """Answers with the class and its probability."""

    def setup(self, device: str) -> None:
        """Open the bundle in the computing process."""
        del device
        path = Path(sys.argv[1])
        manifest = bundle.load(path)[0].manifest
        self._classes, self._preprocess = manifest.classes, manifest.preprocess
        self._session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])

    def decode_request(self, request: Request) -> Any:
        """Return the pixels of the only file in a form."""
        form: Any = request  # LitServe passes a form for this annotation
        return self._preprocess.decode(form["image"].file.read())

    def predict(self, pixels: Any) -> Any:
        """Return the probabilities of a batch."""
        return self._session.run(["probabilities"], {"pixels": np.stack(pixels)})[0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Keep the images as a list."""
        return inputs

    def unbatch(self, output: Any) -> Any:
        """Yield the rows."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Return the answer."""
        best = int(output.argmax())
        return {"label": self._classes[best], "probability": float(output[best])}


if __name__ == "__main__":
    api = ImageAPI(max_batch_size=BATCH_SIZE, batch_timeout=BATCH_TIMEOUT)
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
