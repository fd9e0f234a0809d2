"""Ask a server as clients of the Open Inference Protocol do that others wrote; run by the Python of `.venv-clients`.

    python protocol_clients.py URL MODEL FOLDER

FOLDER holds image files, and `pixels.npy`, the same images as uint8 [N, H, W, C]. Prints, as JSON, the labels and
probabilities that each client returns for each form of a request, by name.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from tritonclient.utils import InferenceServerException

Results = dict[str, Any]


def ask_triton(url: str, model: str, files: list[bytes], pixels: Any) -> Results:
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    metadata = client.get_model_metadata(model)
    version = metadata["versions"][0]
    results: Results = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(model) and client.is_model_ready(model, version),
        "another model ready": client.is_model_ready(model + "x"),
        "extensions": client.get_server_metadata()["extensions"],
        "outputs": [output["name"] for output in metadata["outputs"]],
    }
    image = triton.InferInput("image", [len(files)], "BYTES").set_data_from_numpy(np.array(files, object))
    inputs = {
        "files": image,
        "pixels": triton.InferInput("pixels", list(pixels.shape), "UINT8").set_data_from_numpy(pixels),
        "pixels as JSON": triton.InferInput("pixels", list(pixels.shape), "UINT8").set_data_from_numpy(
            pixels, binary_data=False
        ),
    }
    for name, tensor in inputs.items():
        answer = client.infer(model, [tensor], request_id="7", model_version=version)
        assert answer.get_response()["id"] == "7"
        results[name] = read_triton(answer)
    for encoding in ("gzip", "deflate"):
        options = {"request_compression_algorithm": encoding, "response_compression_algorithm": encoding}
        results[encoding] = read_triton(client.infer(model, [inputs["pixels"]], **options))
    text_outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in ("label", "probabilities")]
    results["JSON outputs"] = read_triton(client.infer(model, [image], outputs=text_outputs))
    top = triton.InferRequestedOutput("probabilities", class_count=1)
    first = client.infer(model, [image], outputs=[top]).as_numpy("probabilities")
    results["classification"] = [text.decode().split(":")[2] for text in first[:, 0]]
    try:
        client.infer(model, [triton.InferInput("image", [1], "BYTES").set_data_from_numpy(np.array([b"x"], object))])
    except InferenceServerException as error:
        results["error"] = error.message()
    return results


def read_triton(answer: Any) -> Results:
    labels = [label.decode() if isinstance(label, bytes) else label for label in answer.as_numpy("label")]
    return {"label": labels, "probabilities": answer.as_numpy("probabilities").tolist()}


async def ask_kserve(url: str, model: str, files: list[bytes], pixels: Any) -> Results:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    results: Results = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model ready": await client.is_model_ready(url, model),
        "another model ready": await client.is_model_ready(url, model + "x"),
    }
    texts = [base64.b64encode(file).decode() for file in files]
    binary_files = InferInput("image", [len(files)], "BYTES")
    binary_files.set_data_from_numpy(np.array(files, object), binary_data=True)
    binary_pixels = InferInput("pixels", list(pixels.shape), "UINT8")
    binary_pixels.set_data_from_numpy(pixels, binary_data=True)
    json_pixels = InferInput("pixels", list(pixels.shape), "UINT8")
    json_pixels.set_data_from_numpy(pixels, binary_data=False)
    binary_outputs = {"parameters": {"binary_data_output": True}}
    requests: dict[str, tuple[Any, Any]] = {
        "files": ([binary_files], {}),
        "files as JSON": ([InferInput("image", [len(files)], "BYTES", texts)], {}),
        "pixels": ([binary_pixels], binary_outputs),
        "pixels as JSON": (
            [json_pixels],
            {"request_outputs": [RequestedOutput("probabilities"), RequestedOutput("label")]},
        ),
    }
    for name, (inputs, options) in requests.items():
        request: Any = InferRequest(model, inputs, request_id="7", **options)
        answer = await client.infer(url, request, model)
        assert answer.id == "7"
        outputs = {output.name: output for output in answer.outputs}
        probabilities = np.array(outputs["probabilities"].data).reshape(outputs["probabilities"].shape)
        results[name] = {"label": list(outputs["label"].data), "probabilities": probabilities.tolist()}
    return results


def main() -> None:
    url, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    files = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
    pixels = np.load(folder / "pixels.npy")
    results = {
        "triton": ask_triton(url, model, files, pixels),
        "kserve": asyncio.run(ask_kserve(url, model, files, pixels)),
    }
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
