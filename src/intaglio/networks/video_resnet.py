"""Residual networks for video (Tran et al., 2018): R3D, MC3 and R(2+1)D of 18 layers, and a small rMC3 of 10."""

from collections.abc import Callable

from torch import Tensor, nn

#: (in_channels, channels, middle channels, stride) -> a convolution over time and place.
Convolution = Callable[[int, int, int, int], nn.Module]

CLASSIC_WIDTH = 64
_STAGES = 4


def over_time_and_place(in_channels: int, channels: int, middle: int, stride: int) -> nn.Module:
    """3 x 3 x 3; `middle` is not used."""
    return nn.Conv3d(in_channels, channels, 3, stride, 1, bias=False)


def over_place(in_channels: int, channels: int, middle: int, stride: int) -> nn.Module:
    """1 x 3 x 3: frame by frame, time is left as it is; `middle` is not used."""
    return nn.Conv3d(in_channels, channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)


def over_place_then_time(in_channels: int, channels: int, middle: int, stride: int) -> nn.Module:
    """1 x 3 x 3 to `middle` channels, then 3 x 1 x 1."""
    return nn.Sequential(
        nn.Conv3d(in_channels, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )


def middle_channels(in_channels: int, channels: int) -> int:
    """How many make the two convolutions of R(2+1)D as large as the one that they replace."""
    return (in_channels * channels * 27) // (in_channels * 9 + 3 * channels)


class VideoBlock(nn.Module):
    """Two convolutions with a shortcut; `conv1`, `conv2` and `downsample` are sequences, as in the well-known weights.

    Both convolutions have the middle channels of the first, as published (not those of its own size for the second).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, convolution: Convolution) -> None:
        super().__init__()
        middle = middle_channels(in_channels, channels)
        self.conv1 = nn.Sequential(
            convolution(in_channels, channels, middle, stride), nn.BatchNorm3d(channels), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(convolution(channels, channels, middle, 1), nn.BatchNorm3d(channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            strides = (1 if convolution is over_place else stride, stride, stride)
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, channels, 1, strides, bias=False), nn.BatchNorm3d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + shortcut)
        return out


class VideoResNet(nn.Module):
    """A stem and four stages of blocks; stage s has `width * 2**s` channels, and every stage but the first halves
    the resolution (and, where its convolutions go over time, the frame rate).

    Input `[N, T, C, H, W]`; output logits `[N, K]`. State-dict names are torchvision's, so at width 64 and with 3
    channels its weights fit.

    Source: Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions for Action Recognition".
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: int,
        stem: nn.Sequential,
        convolutions: tuple[Convolution, ...],
        *,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.stem = stem
        channels = width
        for stage, convolution in enumerate(convolutions):
            out = width * 2**stage
            first = VideoBlock(channels, out, 1 if stage == 0 else 2, convolution)
            more = [VideoBlock(out, out, 1, convolution) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *more))
            channels = out
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(channels, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.transpose(1, 2))  # N C T H W, as convolutions take it
        for stage in range(_STAGES):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _initialise(module: nn.Module) -> None:
    """As published: He's normal initialisation by the number of outputs."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.01)
            nn.init.zeros_(part.bias)


def _basic_stem(channels: int, width: int, kernel: tuple[int, int, int] = (3, 7, 7), stride: int = 2) -> nn.Sequential:
    """One convolution, padded to keep its input's size but for `stride` over place."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(channels, width, kernel, (1, stride, stride), padding, bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def _separate_stem(channels: int, width: int) -> nn.Sequential:
    middle = max(1, 45 * width // CLASSIC_WIDTH)
    return nn.Sequential(
        nn.Conv3d(channels, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, width, (3, 1, 1), 1, (1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def r3d18(input_shape: tuple[int, ...], num_classes: int, width: int = CLASSIC_WIDTH) -> VideoResNet:
    """3 x 3 x 3 throughout; 33,371,472 parameters at width 64 for 3 channels and 400 classes."""
    convolutions = (over_time_and_place,) * _STAGES
    return VideoResNet(input_shape, num_classes, width, _basic_stem(input_shape[1], width), convolutions)


def mc3_18(input_shape: tuple[int, ...], num_classes: int, width: int = CLASSIC_WIDTH) -> VideoResNet:
    """3 x 3 x 3 in the first stage, then frame by frame; 11,695,440 parameters."""
    convolutions = (over_time_and_place, over_place, over_place, over_place)
    return VideoResNet(input_shape, num_classes, width, _basic_stem(input_shape[1], width), convolutions)


def r2plus1d18(input_shape: tuple[int, ...], num_classes: int, width: int = CLASSIC_WIDTH) -> VideoResNet:
    """Place and time apart; 31,505,325 parameters."""
    convolutions = (over_place_then_time,) * _STAGES
    return VideoResNet(input_shape, num_classes, width, _separate_stem(input_shape[1], width), convolutions)


def rmc3_10(input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> VideoResNet:
    """For small clips: stem and first stage frame by frame at full resolution, then 3 x 3 x 3; one block a stage."""
    convolutions = (over_place, *(over_time_and_place,) * (_STAGES - 1))
    stem = _basic_stem(input_shape[1], width, kernel=(1, 3, 3), stride=1)
    return VideoResNet(input_shape, num_classes, width, stem, convolutions, blocks=1)
