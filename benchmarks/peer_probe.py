"""A linear probe: scikit-learn's logistic regression, C by cross-validation, on the features of timm's network."""

from __future__ import annotations

from typing import Any

import peer_lite0


def main() -> None:
    """Compute the features of each split, fit, and predict the test images."""
    job = peer_lite0.read_job()
    torch = peer_lite0.import_torch(job.seed)
    import timm
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from torchvision import transforms

    transform = transforms.Compose(peer_lite0.list_center_transforms())
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(peer_lite0.read_weights())
    model.reset_classifier(0)
    model = model.eval().to(memory_format=torch.channels_last)

    def compute_features(split: str) -> Any:
        batches = torch.utils.data.DataLoader(peer_lite0.Images(job, split, transform), 32, num_workers=2)
        with torch.inference_mode():
            return torch.cat([model(x.contiguous(memory_format=torch.channels_last)) for x, _ in batches])

    features = torch.cat([compute_features("train"), compute_features("validation")]).numpy()
    labels = [*job.labels["train"], *job.labels["validation"]]  # cross-validation needs no validation split
    folds = min(5, *(labels.count(label) for label in set(labels)))
    classifier = LogisticRegressionCV(
        Cs=[10.0**power for power in range(-4, 1)], cv=folds, max_iter=2000, l1_ratios=(0,),
        use_legacy_attributes=False, scoring="neg_log_loss",
    )  # fmt: skip
    probe = make_pipeline(StandardScaler(), classifier).fit(features, labels)
    job.save(probe.predict_proba(compute_features("test").numpy()))


if __name__ == "__main__":
    main()
