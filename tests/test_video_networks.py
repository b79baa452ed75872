"""Networks for videos: published sizes and names, layouts, and that each clip is answered on its own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from intaglio.classifiers import Sidecar, TorchClassifier, open_classifier, save_classifier
from intaglio.errors import ModelError, RecipeError
from intaglio.networks import NETWORKS, VIDEO_NETWORKS, Architecture
from intaglio.networks.final_linear import final_linear
from intaglio.networks.i3d import SameConv3d, SameMaxPool3d, same_padding
from intaglio.networks.video_resnet import middle_channels

SHAPE = (4, 3, 32, 40)

#: name -> parameters at full width for 3 channels and 400 classes. The first three as torchvision states them; I3D as
#: OpenVINO does, rounded (12.69 million); the last counted by hand.
PUBLISHED = {
    "r3d18": 33_371_472,
    "mc3_18": 11_695_440,
    "r2plus1d18": 31_505_325,
    "i3d": 12_697_264,
}


def build(name: str, shape: tuple[int, int, int, int] = SHAPE, classes: int = 5, width: int | None = 4) -> nn.Module:
    torch.manual_seed(3)
    return Architecture(name=name, input_shape=shape, num_classes=classes, width=width).build()


def skeleton(name: str) -> nn.Module:
    """At full width, without its memory."""
    with torch.device("meta"):
        return build(name, (16, 3, 112, 112), 400, None)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_names() -> None:
    assert PUBLISHED.keys() | {"rmc3_10", "cnn_lstm"} == VIDEO_NETWORKS.keys()
    assert not VIDEO_NETWORKS.keys() & NETWORKS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    assert count(skeleton(name)) == PUBLISHED[name]


def test_cnn_lstm_by_hand() -> None:
    def convolution(inputs: int, outputs: int, size: int = 3) -> int:
        return inputs * outputs * size**2 + 2 * outputs

    blocks = (
        convolution(4, 4) * 2 + convolution(4, 4, 1)
        + convolution(4, 8) + convolution(8, 8) + convolution(4, 8, 1)
        + convolution(8, 16) + convolution(16, 16) + convolution(8, 16, 1)
    )  # fmt: skip
    lstm = 4 * 64 * (32 + 64 + 2)
    assert count(build("cnn_lstm")) == convolution(3, 4) + blocks + (256 * 32 + 32) + lstm + (64 * 5 + 5)


def test_rmc3_10_by_hand() -> None:
    def convolution(inputs: int, outputs: int, size: int) -> int:
        return inputs * outputs * size + 2 * outputs

    first = 2 * convolution(4, 4, 9)
    others = sum(
        convolution(width, 2 * width, 27) + convolution(2 * width, 2 * width, 27) + convolution(width, 2 * width, 1)
        for width in (4, 8, 16)
    )
    assert count(build("rmc3_10")) == convolution(3, 4, 9) + first + others + (32 * 5 + 5)


def test_rmc3_10_sees_single_pixels_frame_by_frame_at_first() -> None:
    module, x = build("rmc3_10", (8, 3, 16, 16)).eval(), torch.rand(1, 8, 3, 16, 16)
    other = x.clone()
    other[:, 3] = 1 - other[:, 3]
    seen = []
    for clip in (x, other):
        y = module.get_submodule("layer1")(module.get_submodule("stem")(clip.transpose(1, 2)))
        assert tuple(y.shape) == (1, 4, 8, 16, 16)
        seen.append(y)
    differ = (seen[0] != seen[1]).any(dim=1).flatten(2).any(dim=2)[0]
    assert differ.tolist() == [frame == 3 for frame in range(8)]
    y = module.get_submodule("layer2")(seen[0])
    assert tuple(y.shape) == (1, 8, 4, 8, 8)
    assert not torch.equal(module(x), module(x.roll(1, dims=1)))


# --- names and shapes of published weights -----------------------------------------------------------------------

RESIDUAL = {
    "stem.0.weight": (64, 3, 3, 7, 7),
    "stem.1.running_mean": (64,),
    "layer1.0.conv1.0.weight": (64, 64, 3, 3, 3),
    "layer1.0.conv1.1.weight": (64,),
    "layer4.1.conv2.1.num_batches_tracked": (),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1, 1),
    "layer2.0.downsample.1.bias": (128,),
    "fc.weight": (400, 512),
    "fc.bias": (400,),
}
SHAPES = {
    "r3d18": RESIDUAL | {"layer4.1.conv2.0.weight": (512, 512, 3, 3, 3)},
    "mc3_18": RESIDUAL | {"layer4.1.conv2.0.weight": (512, 512, 1, 3, 3)},
    "r2plus1d18": {
        "stem.0.weight": (45, 3, 1, 7, 7),
        "stem.3.weight": (64, 45, 3, 1, 1),
        "stem.4.weight": (64,),
        "layer1.0.conv1.0.0.weight": (144, 64, 1, 3, 3),
        "layer1.0.conv1.0.1.weight": (144,),
        "layer1.0.conv1.0.3.weight": (64, 144, 3, 1, 1),
        "layer2.0.conv1.0.0.weight": (230, 64, 1, 3, 3),
        "layer2.0.conv2.0.0.weight": (230, 128, 1, 3, 3),  # by the first convolution's size, not its own (288)
        "layer2.1.conv1.0.0.weight": (288, 128, 1, 3, 3),
        "layer4.0.downsample.0.weight": (512, 256, 1, 1, 1),
        "fc.weight": (400, 512),
    },
    "i3d": {
        "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
        "Conv3d_1a_7x7.bn.running_var": (64,),
        "Conv3d_2b_1x1.conv3d.weight": (64, 64, 1, 1, 1),
        "Conv3d_2c_3x3.conv3d.weight": (192, 64, 3, 3, 3),
        "Mixed_3b.b1a.conv3d.weight": (96, 192, 1, 1, 1),
        "Mixed_4f.b2b.bn.bias": (128,),
        "Mixed_5c.b0.conv3d.weight": (384, 832, 1, 1, 1),
        "Mixed_5c.b3b.conv3d.weight": (128, 832, 1, 1, 1),
        "logits.conv3d.weight": (400, 1024, 1, 1, 1),
        "logits.conv3d.bias": (400,),
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_state_dict_names_are_the_well_known_ones(name: str) -> None:
    found = {key: tuple(value.shape) for key, value in skeleton(name).state_dict().items()}
    assert {key: found.get(key) for key in SHAPES[name]} == SHAPES[name]
    convolutions = {"r3d18": 20, "mc3_18": 20, "r2plus1d18": 37, "i3d": 57}[name]
    normalised = sum(key.endswith("running_mean") for key in found)
    assert normalised == convolutions
    of_norms = {key.replace("running_mean", "bias") for key in found if key.endswith("running_mean")}
    biases = {key for key in found if key.endswith("bias")} - of_norms
    assert biases == {"fc.bias" if name != "i3d" else "logits.conv3d.bias"}  # no convolution has one


def test_only_mc3_leaves_time_alone_after_its_first_stage() -> None:
    x = torch.rand(1, 8, 3, 16, 16)
    for name, times in (("r3d18", [8, 8, 4, 2, 1]), ("mc3_18", [8, 8, 8, 8, 8]), ("r2plus1d18", [8, 8, 4, 2, 1])):
        module = build(name).eval()
        y = module.get_submodule("stem")(x.transpose(1, 2))
        seen = [y.shape[2]]
        for stage in range(4):
            y = module.get_submodule(f"layer{stage + 1}")(y)
            seen.append(y.shape[2])
        assert seen == times
        assert tuple(y.shape[3:]) == (1, 1)


@pytest.mark.parametrize(("sizes", "middle"), [((64, 64), 144), ((64, 128), 230), ((128, 128), 288), ((256, 512), 921)])
def test_middle_channels(sizes: tuple[int, int], middle: int) -> None:
    assert middle_channels(*sizes) == middle


# --- I3D's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "expected"),
    [(8, 3, 1, (1, 1)), (8, 7, 2, (2, 3)), (7, 7, 2, (3, 3)), (8, 3, 2, (0, 1)), (9, 3, 2, (1, 1)), (5, 2, 2, (0, 1)),
     (4, 1, 2, (0, 0))],
)  # fmt: skip
def test_same_padding_by_hand(length: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    padding = same_padding(torch.Size((1, 1, length, 10, 10)), (kernel, 1, 1), (stride, 1, 1))
    assert padding == (0, 0, 0, 0, *expected)


def test_same_keeps_a_length_of_n_over_the_stride_rounded_up() -> None:
    parts = ((SameConv3d(2, 3, 3, 2), 2), (SameMaxPool3d((3, 3, 3), (2, 2, 2)), 2), (SameConv3d(2, 3, 3), 1))
    for length in range(1, 9):
        for part, stride in parts:
            assert part.eval()(torch.rand(1, 2, length, length, length)).shape[2:] == (-(-length // stride),) * 3


def test_the_last_layer_of_i3d_is_that_convolution() -> None:
    """Averaging features and then a linear layer = a 1 x 1 x 1 convolution at each time and place, then averaging."""
    module = build("i3d", (20, 3, 32, 32)).eval()
    clips = torch.rand(2, 20, 3, 32, 32)
    x = clips.transpose(1, 2)
    for name, part in module.named_children():
        if name not in ("dropout", "logits"):
            x = part(x)
    assert x.shape == (2, 64, 3, 1, 1)
    weight, bias = (module.state_dict()[f"logits.conv3d.{name}"] for name in ("weight", "bias"))
    assert weight.shape == (5, 64, 1, 1, 1)
    pooled = nn.functional.avg_pool3d(x, (2, 1, 1), 1)
    expected = nn.functional.conv3d(pooled, weight, bias).squeeze(-1).squeeze(-1).mean(dim=2)
    assert torch.allclose(module(clips), expected, atol=1e-6)


def test_i3d_takes_weights_of_either_shape() -> None:
    module, other = build("i3d"), build("i3d")
    state = module.state_dict()
    other.load_state_dict(state)
    flat = state | {"logits.conv3d.weight": state["logits.conv3d.weight"].flatten(1) + 1}
    other.load_state_dict(flat)
    assert torch.equal(other.state_dict()["logits.conv3d.weight"], state["logits.conv3d.weight"] + 1)
    assert state["logits.conv3d.weight"].ndim == 5  # the caller's is left alone


# --- every network -----------------------------------------------------------------------------------------------


def logits_one_by_one(module: nn.Module, clips: Tensor) -> Tensor:
    return torch.cat([module(clip[None]) for clip in clips])


@pytest.mark.parametrize("shape", [SHAPE, (2, 1, 32, 32), (9, 3, 33, 47)])
@pytest.mark.parametrize("name", VIDEO_NETWORKS)
def test_output_shapes(name: str, shape: tuple[int, int, int, int]) -> None:
    module = build(name, shape).eval()
    clips = torch.rand(2, *shape)
    with torch.inference_mode():
        logits = module(clips)
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
        assert torch.equal(logits, module(clips))
        assert torch.allclose(logits, logits_one_by_one(module, clips), atol=1e-5)


@pytest.mark.parametrize("name", VIDEO_NETWORKS)
def test_time_and_place_are_not_mixed_up(name: str) -> None:
    """The order of the frames matters to every network, and channels are where they belong."""
    module = build(name, (4, 3, 32, 32)).eval()
    clip = torch.rand(1, 4, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.allclose(module(clip), module(clip.flip(1)), atol=1e-7)
    with pytest.raises(RuntimeError):
        module(clip.transpose(1, 2))


@pytest.mark.parametrize("name", VIDEO_NETWORKS)
def test_every_weight_learns_and_the_seed_decides(name: str) -> None:
    module, again = build(name), build(name)
    assert module.training
    for (key, value), other in zip(module.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    torch.autograd.backward(module(torch.rand(2, *SHAPE)).square().sum())
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", VIDEO_NETWORKS)
def test_through_a_classifier_and_a_file(name: str, tmp_path: Path) -> None:
    architecture = Architecture(name=name, input_shape=SHAPE, num_classes=5, width=4)
    module = build(name)
    clips = torch.rand(3, *SHAPE)
    classifier = TorchClassifier(module, input_shape=SHAPE, num_classes=5)
    with torch.inference_mode():
        assert torch.allclose(classifier.scores(clips), module(clips), atol=1e-5)
    last = final_linear(module, clips)
    assert last == ("logits.conv3d" if name == "i3d" else "fc")
    save_classifier(module, tmp_path / "m.safetensors", Sidecar(architecture=architecture))
    opened = open_classifier(tmp_path / "m.safetensors")
    assert opened.input_shape == SHAPE
    assert torch.equal(opened.scores(clips), classifier.scores(clips))
    images = clips.clone().requires_grad_()
    torch.autograd.backward(classifier.differentiable(images).sum())
    assert images.grad is not None
    assert bool((images.grad.flatten(2).abs().sum(2) > 0).all())  # every frame of every clip has a say


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("r3d18", (3, 32, 32), r"r3d18 takes videos \(T, C, H, W\), not inputs of shape \(3, 32, 32\)"),
        ("lenet", (4, 3, 32, 32), r"lenet takes images \(C, H, W\), not inputs of shape \(4, 3, 32, 32\)"),
    ],
)
def test_images_and_videos_are_told_apart(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Architecture(name=name, input_shape=shape, num_classes=2).build()


def test_unknown_names_say_which_there_are() -> None:
    with pytest.raises(ModelError, match=r"unknown architecture 'c3d'; known are .*; for videos cnn_lstm, i3d, mc3_18"):
        Architecture(name="c3d", input_shape=SHAPE, num_classes=2).build()


def test_video_architectures_survive_json() -> None:
    architecture = Architecture(name="i3d", input_shape=SHAPE, num_classes=4, width=5)
    assert Architecture.model_validate_json(architecture.model_dump_json()) == architecture
