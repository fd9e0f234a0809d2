"""A careful PyTorch script: timm's network, 2 epochs for the head, 6 for the whole network, keeping the best epoch.

AdamW, one-cycle schedule, label smoothing, random resized crops and flips, bfloat16 if the processor supports it,
channels last; images are decoded by two worker processes.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import peer_lite0

HEAD_EPOCHS, EPOCHS, BATCH = 2, 6, 32
HEAD_RATE, RATE, SMOOTHING, DECAY = 3e-3, 5e-4, 0.1, 1e-2


class Trainer:
    """The network, its training and validation images, and its best weights so far."""

    def __init__(self, job: peer_lite0.Job, torch: Any) -> None:
        import timm
        from torchvision import transforms

        self.job, self.torch = job, torch
        augmentation = [transforms.RandomResizedCrop(peer_lite0.SIDE, (0.35, 1.0)), transforms.RandomHorizontalFlip()]
        self.augment = transforms.Compose([*augmentation, *peer_lite0.list_normalizing_transforms()])
        self.center = transforms.Compose(peer_lite0.list_center_transforms())
        model = timm.create_model("tf_efficientnet_lite0", num_classes=len(job.classes), drop_rate=0.2)
        weights = peer_lite0.read_weights()
        backbone = {name: value for name, value in weights.items() if not name.startswith("classifier")}
        model.load_state_dict(backbone, strict=False)
        self.model = model.to(memory_format=torch.channels_last)
        self.autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=peer_lite0.has_bf16())
        self.best_accuracy, self.best_weights = -1.0, copy.deepcopy(model.state_dict())

    def load(self, split: str) -> Any:
        """Return the batches of a split; training batches are augmented and reshuffled each time."""
        trains = split == "train"
        images = peer_lite0.Images(self.job, split, self.augment if trains else self.center)
        build = partial(self.torch.utils.data.DataLoader, batch_size=BATCH, num_workers=2, persistent_workers=True)
        return build(images, shuffle=trains, drop_last=trains and len(images) > BATCH)

    def apply(self, x: Any) -> Any:
        """Return the logits of a batch as float32."""
        with self.autocast():
            return self.model(x.contiguous(memory_format=self.torch.channels_last)).float()

    def predict(self, batches: Any) -> Any:
        """Return the logits of all batches."""
        self.model.eval()
        with self.torch.inference_mode():
            return self.torch.cat([self.apply(x) for x, _ in batches])

    def train(self, parameters: list[Any], epochs: int, rate: float, *, frozen: bool) -> None:
        """Train `parameters`, and keep the weights of the epoch with the best validation result."""
        torch = self.torch
        batches, validation = self.load("train"), self.load("validation")
        expected = torch.tensor(self.job.labels["validation"])
        for parameter in self.model.parameters():
            parameter.requires_grad = not frozen
        for parameter in parameters:
            parameter.requires_grad = True
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(batches))
        for _ in range(epochs):
            self.model.train(not frozen)  # keeps the batch statistics while the backbone is frozen
            for x, y in batches:
                loss = torch.nn.functional.cross_entropy(self.apply(x), y, label_smoothing=SMOOTHING)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
            accuracy = (self.predict(validation).argmax(1) == expected).float().mean().item()
            if accuracy >= self.best_accuracy:
                self.best_accuracy, self.best_weights = accuracy, copy.deepcopy(self.model.state_dict())


def main() -> None:
    """Train, and predict the test images."""
    job = peer_lite0.read_job()
    trainer = Trainer(job, peer_lite0.import_torch(job.seed))
    head = list(trainer.model.get_classifier().parameters())
    trainer.train(head, HEAD_EPOCHS, HEAD_RATE, frozen=True)
    trainer.train(list(trainer.model.parameters()), EPOCHS, RATE, frozen=False)
    trainer.model.load_state_dict(trainer.best_weights)
    job.save(trainer.predict(trainer.load("test")).softmax(1).numpy())


if __name__ == "__main__":
    main()
