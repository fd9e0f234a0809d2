"""One module for each runtime that executes a model: ONNX Runtime, Keras, OpenVINO, LiteRT, SavedModel."""
