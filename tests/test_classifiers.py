"""Classifiers answer alike whatever they wrap, count what they are asked, and refuse what makes no sense."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classifier_models import CLASSES, SHAPE, lenet, noise
from intaglio.classifiers import (
    Access,
    CallableClassifier,
    Classifier,
    OnnxClassifier,
    Preprocessing,
    TorchClassifier,
    export_onnx,
)
from intaglio.errors import ClassifierError, DataError
from intaglio.networks import Architecture
from intaglio.networks.layout import channels_last_is_safe

torch.set_num_threads(1)


class Softmax(nn.Module):
    def __init__(self, inner: nn.Module, log: bool = False) -> None:
        super().__init__()
        self.inner, self.log = inner, log

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        return z.log_softmax(1) if self.log else z.softmax(1)


class Answers(nn.Module):
    """Answers with a function of its input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def wrap(module: nn.Module | Callable[[Tensor], Any], **options: Any) -> TorchClassifier:
    module = module if isinstance(module, nn.Module) else Answers(module)
    return TorchClassifier(module, **{"input_shape": SHAPE, "num_classes": CLASSES, **options})


@pytest.fixture(scope="module")
def onnx_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("onnx") / "lenet.onnx"
    export_onnx(lenet(), path, input_shape=SHAPE)
    return path.read_bytes()


@pytest.fixture(params=["torch", "onnx", "callable"])
def classifier(request: pytest.FixtureRequest, onnx_bytes: bytes) -> Classifier:
    if request.param == "torch":
        return wrap(lenet(), batch_size=7)
    if request.param == "onnx":
        return OnnxClassifier(onnx_bytes, batch_size=7)
    model = lenet()
    return CallableClassifier(lambda x: model(x).detach().numpy(), input_shape=SHAPE, num_classes=CLASSES, batch_size=7)


def test_every_adapter_answers_as_the_module_does(classifier: Classifier) -> None:
    images = noise(23)
    with torch.no_grad():
        expected = lenet()(images)
    scores = classifier.scores(images)
    assert scores.dtype == torch.float32
    assert not scores.is_inference()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(classifier.log_probs(images), expected.log_softmax(1), atol=1e-5, rtol=0)
    assert torch.equal(classifier.predict(images), expected.argmax(1))
    assert classifier.outputs == "logits"


def test_batches_do_not_change_scores(onnx_bytes: bytes) -> None:
    images = noise(23)
    for make in (lambda size: wrap(lenet(), batch_size=size), lambda size: OnnxClassifier(onnx_bytes, batch_size=size)):
        whole = make(23).scores(images)
        for size in (1, 2, 22, 100):
            torch.testing.assert_close(make(size).scores(images), whole, atol=1e-6, rtol=0)


def test_queries_are_counted_exactly(classifier: Classifier) -> None:
    assert classifier.queries == 0
    classifier.scores(noise(9))
    classifier.predict(noise(8))
    assert classifier.queries == 17
    classifier.reset_queries()
    assert classifier.queries == 0


def test_gradients_are_counted_and_equal_those_of_the_module() -> None:
    preprocessing = Preprocessing(mean=(0.5,), std=(0.25,))
    classifier = wrap(lenet(), preprocessing=preprocessing, batch_size=2)
    images = noise(5).requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.differentiable(images)[:, 1].sum(), images)
    (expected,) = torch.autograd.grad(lenet()((images - 0.5) / 0.25)[:, 1].sum(), images)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().sum() > 0
    assert classifier.queries == 5


def test_a_function_is_probed_only_when_needed_and_that_is_counted() -> None:
    classifier = CallableClassifier(lambda x: torch.ones(len(x), 4) / 4, input_shape=SHAPE, num_classes=4)
    classifier.scores(noise(3))
    assert classifier.queries == 3
    assert classifier.log_probs(noise(3))[0, 0].item() == pytest.approx(-math.log(4))
    assert classifier.queries == 3 + 3 + 4
    assert classifier.outputs == "probabilities"


@pytest.mark.parametrize("log", [False, True])
def test_log_probs_are_the_same_for_logits_probabilities_and_their_logarithm(log: bool) -> None:
    images = noise(12)
    model = wrap(Softmax(lenet(), log))
    assert model.outputs == ("log-probabilities" if log else "probabilities")
    torch.testing.assert_close(model.log_probs(images), wrap(lenet()).log_probs(images), atol=1e-5, rtol=0)


def test_probability_zero_has_a_finite_logarithm() -> None:
    model = wrap(lambda x: torch.eye(CLASSES)[:1].expand(len(x), -1))
    assert model.log_probs(noise(1))[0].tolist() == pytest.approx([0.0] + [-87.3365] * 4, abs=1e-3)


def test_declared_outputs_are_believed() -> None:
    one_hot = wrap(lambda x: torch.eye(CLASSES)[:1].expand(len(x), -1), outputs="logits")
    expected = torch.eye(CLASSES)[0].log_softmax(0)
    torch.testing.assert_close(one_hot.log_probs(noise(2))[1], expected)


def test_labels_only() -> None:
    classifier = CallableClassifier(
        lambda x: x.flatten(1).argmax(1) % 3, input_shape=SHAPE, num_classes=3, access=Access.LABELS
    )
    images = noise(40)
    assert torch.equal(classifier.predict(images), images.flatten(1).argmax(1) % 3)
    with pytest.raises(ClassifierError, match=r"needs SCORES access, but this classifier .* offers LABELS"):
        classifier.scores(images)
    assert classifier.queries == 40


def test_access_is_a_ladder(onnx_bytes: bytes) -> None:
    assert Access.LABELS < Access.SCORES < Access.GRADIENTS < Access.WEIGHTS
    wrap(lenet()).require(Access.WEIGHTS)
    with pytest.raises(ClassifierError, match=r"needs GRADIENTS access, but this classifier .onnx. offers SCORES"):
        OnnxClassifier(onnx_bytes).require(Access.GRADIENTS)


def test_a_module_in_training_mode_is_switched_and_its_weights_are_untouched() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES), nn.Dropout(0.9)).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    classifier = wrap(module)
    assert not module.training
    assert torch.equal(classifier.scores(noise(6)), classifier.scores(noise(6)))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert classifier.module is module


def test_a_module_that_works_in_place_does_not_touch_the_images() -> None:
    images = noise(3)
    before = images.clone()
    wrap(lambda x: x.mul_(-1).flatten(1)[:, :CLASSES]).scores(images)
    assert torch.equal(images, before)


def test_a_module_that_needs_contiguous_memory_gets_it() -> None:
    shape = (3, 4, 4)
    model = wrap(lambda x: x.view(len(x), -1)[:, :CLASSES], input_shape=shape)
    images = noise(4, shape)
    assert torch.equal(model.scores(images), images.flatten(1)[:, :CLASSES])


def test_works_in_inference_mode(classifier: Classifier) -> None:
    with torch.inference_mode():
        inside = classifier.scores(noise(9))
    assert torch.equal(inside, classifier.scores(noise(9)))


@pytest.mark.parametrize("classes", [2, 1000])
def test_any_number_of_classes(classes: int) -> None:
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(144, classes)), num_classes=classes)
    assert model.log_probs(noise(3)).exp().sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_video() -> None:
    shape = (4, 3, 8, 8)
    seen = []

    def answer(x: Tensor) -> Tensor:
        seen.append(x.shape[1:])
        return x.mean(dim=(3, 4)).flatten(1)[:, :CLASSES]

    preprocessing = Preprocessing(resize=(4, 4), channel_order="bgr")
    clips = noise(3, shape)
    scores = wrap(answer, input_shape=shape, preprocessing=preprocessing).scores(clips)
    frames = torch.stack([preprocessing.apply(clip).mean(dim=(2, 3)) for clip in clips])
    torch.testing.assert_close(scores, frames.flatten(1)[:, :CLASSES])
    assert set(seen) == {(4, 3, 4, 4)}


@pytest.mark.parametrize(
    ("shape", "batch"), [((1, 28, 28), 256), ((3, 32, 32), 64), ((3, 224, 224), 1), ((1, 4, 4), 1024)]
)
def test_batch_size_follows_from_the_memory_budget(shape: tuple[int, ...], batch: int) -> None:
    def make(**options: Any) -> Classifier:
        return CallableClassifier(lambda x: x, input_shape=shape, num_classes=2, **options)

    assert make().batch_size == batch
    assert make(memory_budget=1).batch_size == 1
    assert make(batch_size=5).batch_size == 5
    assert make(preprocessing=Preprocessing(resize=(4, 4))).batch_size == batch
    assert make(preprocessing=Preprocessing(resize=(512, 512))).batch_size == 1


def test_the_memory_order_is_chosen_for_what_the_model_sees() -> None:
    """Narrow strided shortcuts with channels last write beyond their memory for images larger than 32 pixels."""
    module = nn.Sequential(nn.Conv2d(1, 8, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    assert wrap(module)._channels_last
    assert not wrap(module, preprocessing=Preprocessing(resize=(64, 64)))._channels_last


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(2, 2, 1, stride=2, padding=1, dilation=2), False),
        (nn.Conv2d(2, 2, 3, stride=2, padding=1), True),
        (nn.Conv2d(2, 2, (3, 1), stride=2, dilation=2), True),
        (nn.Conv2d(2, 2, 3, padding="same", dilation=2), True),
        (nn.Conv2d(2, 2, 1, stride=2), True),
    ],
)
def test_what_channels_last_can_crash_gets_them_first(layer: nn.Module, safe: bool) -> None:
    """The first of these ends the process with its channels last (torch 2.13 on CPUs)."""
    module = nn.Sequential(nn.Conv2d(1, 2, 4), layer, nn.Flatten(), nn.LazyLinear(3))
    module(torch.rand(4, 1, 9, 4))
    assert channels_last_is_safe(module, (9, 4)) == safe
    classifier = TorchClassifier(module, input_shape=(1, 9, 4), num_classes=3)
    images = noise(3, (1, 9, 4))
    torch.testing.assert_close(classifier.scores(images), module(images).detach())


def test_weights_may_be_shortcuts_of_ones_own_making() -> None:
    class Own(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2, channels, 1, 1))

    assert not channels_last_is_safe(Own(3), (8, 8))
    assert channels_last_is_safe(Own(16), (8, 8))


@pytest.mark.parametrize("weights", [False, True])
def test_gradients_reach_the_weights_if_they_are_asked_for(weights: bool) -> None:
    """Where nobody asks, `backward` leaves nothing behind, and the gradients to narrow shortcuts aren't computed."""
    module = Architecture(name="resnet8", input_shape=(1, 12, 12), num_classes=3, width=4).build()
    frozen = next(module.parameters()).requires_grad_(False)
    images = noise(2, (1, 12, 12)).requires_grad_()
    classifier = TorchClassifier(module, input_shape=(1, 12, 12), num_classes=3)
    classifier.differentiable(images, weights=weights).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert bool(images.grad.any())
    learned = [parameter for parameter in module.parameters() if parameter is not frozen]
    assert [parameter.grad is not None for parameter in learned] == [weights] * len(learned)
    assert all(parameter.requires_grad for parameter in learned)
    assert not frozen.requires_grad


def test_a_module_that_asserts_fails_in_one_line() -> None:
    class Particular(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] == 99, "wrong size"
            return x

    with pytest.raises(ClassifierError, match=r"can't answer inputs .*wrong size"):
        TorchClassifier(Particular(), input_shape=SHAPE, num_classes=CLASSES)


def test_a_model_is_tried_with_no_more_at_once_than_it_is_asked() -> None:
    seen = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x.mean(dim=(1, 3))[:, :CLASSES]

    TorchClassifier(Counting(), input_shape=SHAPE, num_classes=CLASSES, preprocessing=Preprocessing(resize=(512, 512)))
    assert set(seen) == {1}


BAD_IMAGES: list[tuple[str, Any, str]] = [
    ("list", [[0.0]], "expected a tensor of float32 images .N, 1, 12, 12., got list"),
    ("uint8", torch.zeros(2, *SHAPE, dtype=torch.uint8), "got torch.uint8"),
    ("float64", torch.zeros(2, *SHAPE, dtype=torch.float64), "got torch.float64"),
    ("one image", torch.zeros(SHAPE), r"got torch.float32 \[1, 12, 12\]"),
    ("three channels", torch.zeros(2, 3, 12, 12), r"got torch.float32 \[2, 3, 12, 12\]"),
    ("none", torch.zeros(0, *SHAPE), "there are no images"),
    ("255", torch.full((2, *SHAPE), 255.0), "span 255..255, expected .0, 1.; divide 8-bit images by 255"),
    ("negative", torch.full((2, *SHAPE), -0.5), "span -0.5..-0.5"),
    ("nan", torch.full((2, *SHAPE), math.nan), "span nan..nan"),
    ("infinite", torch.full((2, *SHAPE), math.inf), "span inf..inf"),
]


@pytest.mark.parametrize(("images", "message"), [case[1:] for case in BAD_IMAGES], ids=[case[0] for case in BAD_IMAGES])
def test_bad_images_are_refused(classifier: Classifier, images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        classifier.scores(images)
    assert classifier.queries == 0


def sometimes_nan(x: Tensor) -> Tensor:
    scores = torch.zeros(len(x), CLASSES)
    scores[x.flatten(1).max(1).values > 0.9999] = math.nan
    return scores


BAD_ANSWERS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("classes", lambda x: torch.zeros(len(x), 7), "declares 5 classes, but answers with 7"),
    ("rank", lambda x: torch.zeros(len(x)), r"expected scores \[4, 5\], got \[4\]"),
    ("batch", lambda x: torch.zeros(len(x) + 1, CLASSES).flatten(), "expected scores"),
    ("short", lambda x: torch.zeros(1, CLASSES), r"expected scores \[4, 5\], got \[1, 5\]"),
    ("nan", lambda x: torch.full((len(x), CLASSES), math.nan), "scores of 4 of 4 images are not finite"),
    ("integers", lambda x: torch.zeros(len(x), CLASSES, dtype=torch.int64), "floating-point scores, got torch.int64"),
]


@pytest.mark.parametrize(("answer", "message"), [c[1:] for c in BAD_ANSWERS], ids=[c[0] for c in BAD_ANSWERS])
def test_bad_answers_are_refused(answer: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        wrap(answer)
    function = CallableClassifier(answer, input_shape=SHAPE, num_classes=CLASSES)
    with pytest.raises(ClassifierError, match=message):
        function.scores(noise(4))


def test_an_answer_that_is_no_array_is_refused() -> None:
    with pytest.raises(ClassifierError, match="expected a tensor of scores, got dict"):
        wrap(lambda x: {"logits": x})
    with pytest.raises(ClassifierError, match=r"the answer \(dict\) is not an array"):
        CallableClassifier(lambda x: {}, input_shape=SHAPE, num_classes=2).scores(noise(1))


def test_nan_for_some_images_only_is_refused_when_it_happens() -> None:
    model = wrap(sometimes_nan)
    images = noise(3) * 0.5
    images[1, 0, 0, 0] = 1.0
    with pytest.raises(ClassifierError, match="scores of 1 of 3 images are not finite"):
        model.scores(images)


@pytest.mark.parametrize("labels", [torch.tensor([0.0]), torch.tensor([7]), torch.tensor([-1]), torch.tensor([[1]])])
def test_bad_labels_are_refused(labels: Tensor) -> None:
    model = CallableClassifier(lambda x: labels, input_shape=SHAPE, num_classes=3, access=Access.LABELS)
    with pytest.raises(ClassifierError, match="label"):
        model.predict(noise(1))


def test_weights_that_are_not_finite_are_refused() -> None:
    module = lenet()
    with torch.no_grad():
        module.get_parameter("features.3.weight")[0, 0] = math.nan
    with pytest.raises(ClassifierError, match=r"25 of \d+ parameters are not finite, first in 'features.3.weight'"):
        wrap(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "single output .* wrap it"),
        ({"num_classes": 0}, "at least 2 classes"),
        ({"input_shape": (12, 12)}, r"must be \(C, H, W\)"),
        ({"input_shape": (1, 0, 12)}, r"must be \(C, H, W\)"),
        ({"input_shape": (3, 10**6, 10**6)}, "more than"),
        ({"input_shape": (3, 12, 12)}, "can't answer inputs .4, 3, 12, 12.: .*channels"),
        ({"classes": ("a", "b")}, "2 class names for 5 classes"),
        ({"batch_size": -1}, "batch size must be at least 1"),
        ({"fixed_batch": (1 << 28) // 144 + 1}, "takes batches of 1864136 images only, 268435584 values in each, over"),
        ({"fixed_batch": 8, "preprocessing": Preprocessing(resize=(8192, 8192))}, "536870912 values in each, over"),
        ({"preprocessing": Preprocessing(resize=(16384, 16384))}, r"makes \(1, 16384, 16384\), over 67108864 values"),
        ({"device": "nowhere"}, "can't use device 'nowhere'"),
        ({"preprocessing": Preprocessing(mean=(1.0, 2.0))}, "mean has 2 values, but images have 1 channels"),
        ({"preprocessing": Preprocessing(channel_order="bgr")}, "bgr needs 3 channels"),
    ],
)
def test_bad_declarations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ClassifierError, match=message):
        wrap(lenet(), **options)


def test_a_function_offers_no_gradients() -> None:
    with pytest.raises(ClassifierError, match="LABELS or SCORES, not WEIGHTS"):
        CallableClassifier(len, input_shape=SHAPE, num_classes=2, access=Access.WEIGHTS)
