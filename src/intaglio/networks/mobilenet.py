"""Depthwise-separable network (Howard et al., 2017), kept small."""

from torch import Tensor, nn


def separable(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """A 3x3 depthwise and a 1x1 pointwise convolution, each with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class SmallMobileNet(nn.Module):
    """A strided 3x3 stem and four separable blocks. Input `[N, C, H, W]`; output logits `[N, K]`."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            separable(width, 2 * width, 1),
            separable(2 * width, 2 * width, 2),
            separable(2 * width, 4 * width, 1),
            separable(4 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits
