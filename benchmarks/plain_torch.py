"""A well-tuned plain PyTorch loop: channels last, float32 or bfloat16 autocast, fused operations where available."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import numpy as np


def is_installed() -> bool:
    """Return whether PyTorch is installed; Sightline does not require it."""
    return importlib.util.find_spec("torch") is not None


def measure_speed(name: str, pixels: Any, labels: Any, batch: int, *, bfloat16: bool, epochs: int) -> float:
    """Train the net on uint8 pixels [N, H, W, C], divided by 255; return the last epoch's images/s."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    channels, side, classes = pixels.shape[-1], pixels.shape[1], int(labels.max()) + 1
    model = NETS[name](channels, side, classes).to(memory_format=torch.channels_last)
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(memory_format=torch.channels_last)
    y = torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, foreach=True)
    model.train()
    seconds = 0.0
    for _ in range(epochs):
        order = torch.randperm(len(x))
        started = time.perf_counter()
        for start in range(0, len(x), batch):
            batch_rows = order[start : start + batch]
            inputs = (x[batch_rows].float() / 255).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = functional.cross_entropy(model(inputs), y[batch_rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - started
    return len(x) / seconds


def _conv(into: int, out: int, padding: int = 1) -> list[Any]:
    from torch import nn

    return [nn.Conv2d(into, out, 3, padding=padding), nn.ReLU(inplace=True)]


def deep(channels: int, side: int, classes: int) -> Any:
    """Return the deep net of the CIFAR-10 tutorial."""
    from torch import nn

    flat = 64 * ((side // 2 - 2) // 2) ** 2
    return nn.Sequential(
        *_conv(channels, 32), *_conv(32, 32), nn.MaxPool2d(2), nn.Dropout(0.25), *_conv(32, 64), *_conv(64, 64, 0),
        nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), nn.Linear(flat, 512), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(512, classes),
    )  # fmt: skip


def fashion(channels: int, side: int, classes: int) -> Any:
    """Return the net of the Fashion-MNIST tutorial."""
    from torch import nn

    layers, into = [], channels
    for width in (32, 64, 128):
        layers += [*_conv(into, width), *_conv(width, width), nn.MaxPool2d(2)]
        into = width
    flat = into * (side // 8) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, classes))


def vgg16(channels: int, side: int, classes: int) -> Any:
    """Return VGG16's convolutions, average pooling and one dense layer, as used for fine-tuning."""
    from torch import nn

    layers, into = [], channels
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += _conv(into, width)
            into = width
        layers.append(nn.MaxPool2d(2))
    assert side >= 32
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, classes))


def mobilenetv2(channels: int, side: int, classes: int) -> Any:
    """Return MobileNetV2 at width 1 (Sandler et al., 2018, table 2), average pooling and one dense layer."""
    stages = (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )  # fmt: skip
    return _inverted_residuals(channels, side, classes, stages)


def efficientnet_lite0(channels: int, side: int, classes: int) -> Any:
    """Return EfficientNet-Lite0 (TensorFlow's repository tpu, efficientnet/lite), pooling and one dense layer."""
    stages = (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )  # fmt: skip
    return _inverted_residuals(channels, side, classes, stages)


def _inverted_residuals(
    channels: int, side: int, classes: int, stages: tuple[tuple[int, int, int, int, int], ...]
) -> Any:
    """Return a network of stages (expansion, channels, blocks, stride, kernel)."""
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]  # PyTorch is not in the lock file, so mypy lacks the class
        def __init__(self, into: int, out: int, stride: int, factor: int, kernel: int) -> None:
            super().__init__()
            wide = into * factor
            layers: list[Any] = []
            if factor > 1:
                layers += [nn.Conv2d(into, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)]
            depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
            layers += [depthwise, nn.BatchNorm2d(wide)]
            layers += [nn.ReLU6(inplace=True), nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)]
            self.body, self.adds = nn.Sequential(*layers), stride == 1 and into == out

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    layers: list[Any] = [nn.Conv2d(channels, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)]
    into = 32
    for factor, out, count, stride, kernel in stages:
        for number in range(count):
            layers.append(Block(into, out, stride if number == 0 else 1, factor, kernel))
            into = out
    layers += [nn.Conv2d(into, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True)]
    assert side >= 32
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes))


def resnet50(channels: int, side: int, classes: int) -> Any:
    """Return ResNet50 (He et al., 2015, table 1) with strides in the first convolution of a block, as in Keras."""
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]  # see `_inverted_residuals`
        def __init__(self, into: int, width: int, stride: int) -> None:
            super().__init__()
            layers: list[Any] = []
            for here, out, kernel, step in ((into, width, 1, stride), (width, width, 3, 1), (width, 4 * width, 1, 1)):
                layers += [nn.Conv2d(here, out, kernel, step, kernel // 2), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            self.body = nn.Sequential(*layers[:-1])
            shortcut = nn.Sequential(nn.Conv2d(into, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))
            self.shortcut = nn.Identity() if into == 4 * width else shortcut
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Any) -> Any:
            return self.relu(self.body(x) + self.shortcut(x))

    layers: list[Any] = [nn.Conv2d(channels, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    into = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for number in range(count):
            layers.append(Block(into, width, stride if number == 0 else 1))
            into = 4 * width
    assert side >= 32
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, classes))


NETS = {
    "cifar10-deep": deep, "fashion-cnn": fashion, "vgg16": vgg16, "mobilenetv2": mobilenetv2, "resnet50": resnet50,
    "efficientnet-lite0": efficientnet_lite0,
}  # fmt: skip
