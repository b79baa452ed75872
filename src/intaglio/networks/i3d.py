"""I3D: Inception-v1 with every kernel inflated to three dimensions (Carreira & Zisserman, 2017)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSIC_WIDTH = 64

#: Output channels: branch 0; branch 1, reduced and full; branch 2, reduced and full; branch 3.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
#: Kernel and stride of the pooling before a module, and its name.
_POOLS = {
    "Mixed_3b": ("MaxPool3d_3a_3x3", (1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ("MaxPool3d_4a_3x3", (3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ("MaxPool3d_5a_2x2", (2, 2, 2), (2, 2, 2)),
}
Size = tuple[int, int, int]


def same_padding(shape: torch.Size, kernel: Size, stride: Size) -> tuple[int, ...]:
    """TensorFlow's "SAME", by which the published weights were trained: more at the end where it isn't even."""
    padding: list[int] = []
    for length, side, step in zip(shape[-3:], kernel, stride, strict=True):
        total = max(side - (length % step or step), 0)
        padding = [total // 2, total - total // 2, *padding]
    return tuple(padding)


class SameConv3d(nn.Module):
    """A convolution (`conv3d`), batch normalisation (`bn`) and ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(in_channels, channels, kernel, stride, bias=False)
        nn.init.kaiming_normal_(self.conv3d.weight, mode="fan_out", nonlinearity="relu")
        self.bn = nn.BatchNorm3d(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv3d(functional.pad(x, same_padding(x.shape, self.kernel, self.stride)))))


class SameMaxPool3d(nn.Module):
    """Max pooling; what is padded is 0, which after a ReLU is never more than what is there."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool3d(
            functional.pad(x, same_padding(x.shape, self.kernel, self.stride)), self.kernel, self.stride
        )


class Mixed(nn.Module):
    """An Inception module of four branches, side by side: `b0`, `b1a` `b1b`, `b2a` `b2b`, `b3a` `b3b`."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = SameConv3d(in_channels, channels[0])
        self.b1a = SameConv3d(in_channels, channels[1])
        self.b1b = SameConv3d(channels[1], channels[2], 3)
        self.b2a = SameConv3d(in_channels, channels[3])
        self.b2b = SameConv3d(channels[3], channels[4], 3)
        self.b3a = SameMaxPool3d((3, 3, 3), (1, 1, 1))
        self.b3b = SameConv3d(in_channels, channels[5])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class PointwiseLinear(nn.Linear):
    """A linear layer whose weight is kept in files as that of a 1 x 1 x 1 convolution, `[K, D, 1, 1, 1]`.

    Published I3D weights have one, applied at each time and averaged, which is the same as this layer on the averaged
    features; and as a linear layer it is found by whatever looks for the layer that makes the logits.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_state_dict_post_hook(_unfold)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fold)  # type: ignore[no-untyped-call]


def _unfold(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Mapping[str, Any]) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"][..., None, None, None]


def _fold(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    weight = state.get(f"{prefix}weight")
    if weight is not None and weight.ndim == 5:
        state[f"{prefix}weight"] = weight.flatten(1)


class I3D(nn.Module):
    """Input `[N, T, C, H, W]`; output logits `[N, K]`, the mean over time.

    State-dict names are those of the well-known PyTorch port, whose weights fit at width 64; it expects pixels in
    [-1, 1] (as a preprocessing: mean and std of 0.5).

    Source: Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?".
    """

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, width: int = CLASSIC_WIDTH, dropout: float = 0.5
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, channels * width // CLASSIC_WIDTH)

        self.Conv3d_1a_7x7 = SameConv3d(input_shape[1], scaled(64), 7, 2)
        self.MaxPool3d_2a_3x3 = SameMaxPool3d((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = SameConv3d(scaled(64), scaled(64))
        self.Conv3d_2c_3x3 = SameConv3d(scaled(64), scaled(192), 3)
        channels = scaled(192)
        for name, wanted in _MIXED.items():
            if name in _POOLS:
                pool, kernel, stride = _POOLS[name]
                self.add_module(pool, SameMaxPool3d(kernel, stride))
            out = tuple(scaled(each) for each in wanted)
            self.add_module(name, Mixed(channels, out))
            channels = out[0] + out[2] + out[4] + out[5]
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.ModuleDict({"conv3d": PointwiseLinear(channels, num_classes)})

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for name, part in self.named_children():
            if name not in ("dropout", "logits"):
                x = part(x)
        # As published: over two neighbouring times and all places, then over times.
        x = functional.avg_pool3d(x, (min(2, x.shape[2]), *x.shape[3:]), 1).mean(dim=(2, 3, 4))
        logits: Tensor = self.logits["conv3d"](self.dropout(x))
        return logits
