"""A convolutional network on each frame and an LSTM over the frames (Donahue et al., 2015), kept small."""

from torch import Tensor, nn

from intaglio.networks.resnet import BasicBlock

GRID = 4


class CnnLstm(nn.Module):
    """Each frame goes through a 3x3 stem and three residual blocks, is averaged on a grid of 4 x 4 places and becomes
    `8 width` features; an LSTM of `16 width` units reads them in turn, and its last state makes the logits.

    The grid, and not one average, because what moves shows in where things are. Input `[N, T, C, H, W]`; output logits
    `[N, K]`.

    Source: Donahue et al. 2015, "Long-term Recurrent Convolutional Networks for Visual Recognition and Description".
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(input_shape[1], width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            BasicBlock(width, width, 2),
            BasicBlock(width, 2 * width, 2),
            BasicBlock(2 * width, 4 * width, 1),
            nn.AdaptiveAvgPool2d(GRID),
            nn.Flatten(),
            nn.Linear(4 * width * GRID**2, 8 * width),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(8 * width, 16 * width, batch_first=True)
        self.fc = nn.Linear(16 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.cnn(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        states, _ = self.lstm(features)
        logits: Tensor = self.fc(states[:, -1])
        return logits
