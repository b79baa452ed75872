"""LeNet-like: two 5x5 convolutions with pooling, two linear layers (LeCun et al., 1998)."""

from torch import Tensor, nn

from intaglio.errors import RecipeError

SMALLEST = 12


class LeNet(nn.Module):
    """Two convolution-pool stages of `width` and `2 width` channels, a hidden linear layer of `8 width`.

    Input `[N, C, H, W]` with H, W >= 12; output logits `[N, K]`.

    Raises:
        RecipeError: smaller inputs.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, width: int = 8) -> None:
        super().__init__()
        channels, height, size = input_shape
        if min(height, size) < SMALLEST:
            raise RecipeError(f"lenet needs inputs of {SMALLEST} x {SMALLEST} or more, got {height} x {size}")
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        flat = 2 * width * ((height // 2 - 4) // 2) * ((size // 2 - 4) // 2)
        self.hidden = nn.Sequential(nn.Linear(flat, 8 * width), nn.ReLU())
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.hidden(self.features(x)))
        return logits
