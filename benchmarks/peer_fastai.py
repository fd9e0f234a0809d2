"""Train with fastai: ``vision_learner(...).fine_tune(4)`` with its defaults, from the packaged weights."""

from __future__ import annotations

import peer_lite0


def main() -> None:
    """Train, and predict the test images."""
    job = peer_lite0.read_job()
    peer_lite0.import_torch(job.seed)
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]
    from fastai.vision import all as fv

    rows = [
        {"path": path, "label": job.classes[label], "is_valid": split == "validation"}
        for split in ("train", "validation")
        for path, label in zip(job.paths[split], job.labels[split], strict=True)
    ]
    normalize = fv.Normalize.from_stats(peer_lite0.MEAN, peer_lite0.STD)
    data = fv.ImageDataLoaders.from_df(
        pd.DataFrame(rows), path="/", valid_col="is_valid", item_tfms=fv.Resize(peer_lite0.SIDE + 32), bs=32,
        batch_tfms=[*fv.aug_transforms(size=peer_lite0.SIDE, min_scale=0.75), normalize], seed=job.seed, num_workers=2,
    )  # fmt: skip
    learner = fv.vision_learner(data, "tf_efficientnet_lite0", pretrained=False, normalize=False, metrics=fv.accuracy)
    backbone = learner.model[0].model
    known = backbone.state_dict()
    backbone.load_state_dict({name: value for name, value in peer_lite0.read_weights().items() if name in known})
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(4)
        test = data.test_dl(job.paths["test"], num_workers=2)
        probabilities, _ = learner.get_preds(dl=test)
    order = [job.classes.index(name) for name in data.vocab]
    job.save(probabilities.numpy()[:, [order.index(number) for number in range(len(order))]])


if __name__ == "__main__":
    main()
