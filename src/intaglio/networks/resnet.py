"""Residual networks (He et al., 2016): ResNet-8/14 for small images, ResNet-18 with the 3x3 CIFAR stem."""

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; attribute names are the well-known ones (`conv1`, `bn1`, `downsample`)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(y + shortcut)
        return out


class ResNet(nn.Module):
    """Residual network with a 3x3 stem of stride 1 and one stage per entry of `blocks`.

    Stage s has `width * 2**s` channels; every stage but the first halves the resolution.
    Input `[N, C, H, W]`; output logits `[N, K]`.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], num_classes: int, width: int, blocks: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        channels = width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            layers = [BasicBlock(channels, out, 1 if stage == 0 else 2)]
            layers += [BasicBlock(out, out, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            channels = out
        self.stages = len(blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def resnet8(input_shape: tuple[int, int, int], num_classes: int, width: int = 8) -> ResNet:
    """Three stages of one block each."""
    return ResNet(input_shape, num_classes, width, (1, 1, 1))


def resnet14(input_shape: tuple[int, int, int], num_classes: int, width: int = 8) -> ResNet:
    """Three stages of two blocks each."""
    return ResNet(input_shape, num_classes, width, (2, 2, 2))


def resnet18(input_shape: tuple[int, int, int], num_classes: int, width: int = 64) -> ResNet:
    """Four stages of two blocks; 11,173,962 parameters at width 64 for 3 channels and 10 classes."""
    return ResNet(input_shape, num_classes, width, (2, 2, 2, 2))
