"""Sightline in 15 lines: from a folder of labeled images to a smaller model in a file of its own.

It needs `photos/`, with a subfolder for each class, and `new.jpg`; and pandas for `to_frame`.
"""

import numpy as np
from PIL import Image

x = np.stack([np.asarray(Image.open("new.jpg").convert("RGB"))])  # uint8 [N, H, W, 3]

import sightline as sl

data = sl.Dataset.from_folder("photos/")          # from_csv, from_arrays(x, y), from_dataframe, from_source("cifar10")
data.check()                                      # findings; shows as a table in a notebook
run = sl.train(data, recipe="transfer", epochs=5, seed=1, out="runs/a")   # progress bar
run.history.to_frame(); run                       # a run shows its report in a notebook
clf = run.classifier                              # or sl.load("runs/a" | "bundle.zip" | "model.onnx" | an exported folder)
clf.predict_proba(x)                              # float32 [N, K]
clf.predict(["new.jpg"]).to_frame()               # path, label, probability, decision
ev = clf.evaluate(target_precision=0.99)          # ev.metrics["macro_f1"]: value and 95% interval
ev.plot_confusion(); ev.errors
clf.explain("new.jpg"); clf.export("model.onnx", precision="int8"); clf.compress(max_drop=0)
