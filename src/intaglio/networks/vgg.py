"""VGG-like: stacks of 3x3 convolutions with batch normalisation (Simonyan & Zisserman, 2015), kept small."""

from torch import Tensor, nn

from intaglio.errors import RecipeError

SMALLEST = 8


class SmallVGG(nn.Module):
    """Stages of `width`, `2 width`, `4 width` channels, each halved by max pooling, then average pooling.

    The stages hold 1, 2 and 2 convolutions. Input `[N, C, H, W]` with H, W >= 8; output logits `[N, K]`.

    Raises:
        RecipeError: smaller inputs.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, width: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, height, size = input_shape
        if min(height, size) < SMALLEST:
            raise RecipeError(f"vgg needs inputs of {SMALLEST} x {SMALLEST} or more, got {height} x {size}")
        for multiple, convolutions in ((1, 1), (2, 2), (4, 2)):
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(channels, multiple * width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(multiple * width),
                    nn.ReLU(),
                ]
                channels = multiple * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits
