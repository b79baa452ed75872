"""`.pt2` files: interpreted exactly as torch does; code in any part of them never runs."""

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classifier_models import (
    CLASSES,
    Payload,
    edit_json,
    lenet,
    noise,
    rewrite_zip,
    save_exported,
)
from intaglio.classifiers import (
    TorchClassifier,
    open_classifier,
)
from intaglio.classifiers.exported_operators import find_operator
from intaglio.errors import ModelError, UnsafeFileError

torch.set_num_threads(1)

MEMBER = "models/model.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_exported(folder / "net.pt2")
    return folder


class Rich(nn.Module):
    """Most of what classifiers are made of, to be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.PReLU())
        self.norm, self.act = nn.GroupNorm(2, 8), nn.Hardswish(inplace=True)
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.3)
        self.memory = nn.LSTM(8, 8, batch_first=True)
        self.fc = nn.Linear(16, 6)
        self.register_buffer("scale", torch.tensor([2.0, 3.0])[:1])
        self.offset = torch.arange(6.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.stem(x)))
        left, right = nn.functional.interpolate(y, scale_factor=2.0)[:, :, ::2, ::2].chunk(2, 1)
        tokens = torch.cat([right, left], 1).flatten(2).transpose(1, 2)
        states, _ = self.memory(self.mix(tokens))
        pooled = torch.cat([states.mean(1), states.amax(1)], 1).view(x.shape[0], -1)
        scores: Tensor = (self.fc(pooled) * self.scale + self.offset).softmax(1)
        return scores


@pytest.mark.filterwarnings("ignore")
def test_exported_graphs_are_interpreted_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, shape = Rich().eval(), (3, 12, 12)
    save_exported(tmp_path / "rich.pt2", module, shape)
    classifier = open_classifier(tmp_path / "rich.pt2")
    assert isinstance(classifier, TorchClassifier)
    images = noise(9, shape)
    torch.testing.assert_close(classifier.scores(images), module(images).detach(), atol=1e-6, rtol=0)
    assert classifier.outputs == "probabilities"
    assert {key: value.shape for key, value in classifier.module.named_parameters()} == {
        key: value.shape for key, value in module.named_parameters()
    }
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.differentiable(images)[:, 0].sum(), images)
    (expected,) = torch.autograd.grad(module(images)[:, 0].sum(), images)
    torch.testing.assert_close(gradient, expected)


def marker_code(marker: Path) -> str:
    return f"__import__('os').mkdir({str(marker)!r})"


def symbolic(code: str) -> dict[str, Any]:
    return {"as_expr": {"expr_str": code, "hint": {"as_int": 2}}}


def first_node(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"][0]


def call_system(program: Any, marker: Path) -> None:
    argument = {"name": "", "arg": {"as_string": str(marker)}, "kind": 1}
    first_node(program).update(target="torch.serialization.os.mkdir", inputs=[argument])


def rename_input(program: Any, code: str) -> None:
    text = json.dumps(program).replace('"x"', json.dumps(f"x={code}"))
    program.clear()
    program.update(json.loads(text))


def pickled_tensor(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def test_a_pickle_in_the_sample_inputs_of_a_pt2_is_never_opened(models: Path, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pt2"
    bomb = pickle.dumps(Payload(marker))
    rewrite_zip(models / "net.pt2", path, lambda name, c: bomb if name == "data/sample_inputs/model.pt" else c)
    torch.testing.assert_close(open_classifier(path).scores(noise(2)), lenet()(noise(2)))
    assert not marker.exists()


@pytest.mark.parametrize("place", ["guards_code", "symbol", "input", "treespec", "range"])
def test_code_in_the_json_of_a_pt2_is_never_evaluated(models: Path, tmp_path: Path, place: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pt2"
    code = marker_code(marker)

    def change(program: Any) -> None:
        graph_module = program["graph_module"]
        if place == "guards_code":
            program["guards_code"] = [code]
        elif place == "symbol":
            for value in graph_module["graph"]["tensor_values"].values():
                value["sizes"][0] = symbolic(code) if "as_expr" in value["sizes"][0] else value["sizes"][0]
            for value in graph_module["graph"]["sym_int_values"].values():
                value.update(symbolic(code))
        elif place == "input":
            rename_input(program, code)
        elif place == "treespec":
            graph_module["module_call_graph"][0]["signature"]["in_spec"] = code
        else:
            program["range_constraints"] = {code: {"min_val": 0, "max_val": None}}

    rewrite_zip(models / "net.pt2", path, edit_json(MEMBER, change))
    torch.testing.assert_close(open_classifier(path).scores(noise(2)), lenet()(noise(2)))
    assert not marker.exists()


def test_the_symbol_attack_is_a_real_one(models: Path, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pt2"

    def change(program: Any) -> None:
        for value in program["graph_module"]["graph"]["tensor_values"].values():
            if "as_expr" in value["sizes"][0]:
                value["sizes"][0] = symbolic(marker_code(marker))

    rewrite_zip(models / "net.pt2", path, edit_json(MEMBER, change))
    with pytest.raises(Exception):  # noqa: B017 - whatever torch says once the code has run
        torch.export.load(path)
    assert marker.exists()


OPERATORS = [
    "torch.serialization.os.system", "torch.ops.aten.from_file.default", "torch.ops.aten.rand.default", "os.system",
    "torch.ops.aten.relu.__class__", "torch.ops.aten.add.out", "torch.ops.aten.set_.source_Tensor",
    "_operator.methodcaller", "torch.ops.aten.__class__.default", "math.__loader__",
    "#extension:x", "torch.ops.prim.device.default", "",
]  # fmt: skip


@pytest.mark.parametrize("target", OPERATORS)
def test_operators_off_the_list_are_refused(models: Path, tmp_path: Path, target: str) -> None:
    assert find_operator(target) is None
    path = tmp_path / "evil.pt2"
    rewrite_zip(models / "net.pt2", path, edit_json(MEMBER, lambda p: first_node(p).update(target=target)))
    with pytest.raises(UnsafeFileError, match="isn't on the list of allowed operators"):
        open_classifier(path)


def test_a_function_named_as_an_operator_is_not_called(models: Path, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pt2"
    rewrite_zip(models / "net.pt2", path, edit_json(MEMBER, lambda program: call_system(program, marker)))
    with pytest.raises(UnsafeFileError, match=r"calls 'torch\.serialization\.os\.mkdir'"):
        open_classifier(path)
    assert not marker.exists()


@pytest.mark.parametrize("folder", ["weights", "constants"])
def test_pickled_tensors_of_a_pt2_are_refused(tmp_path: Path, folder: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pt2"

    class WithConstant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.constant = lenet(), torch.ones(CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x) + self.constant
            return scores

    save_exported(tmp_path / "good.pt2", WithConstant().eval())
    assert open_classifier(tmp_path / "good.pt2").num_classes == CLASSES
    bomb = pickle.dumps(Payload(marker))
    edit = edit_json(f"data/{folder}/model_{folder}_config.json", pickled_tensor)
    rewrite_zip(
        tmp_path / "good.pt2",
        path,
        lambda name, content: bomb if re.fullmatch(rf"data/{folder}/[a-z]+_0", name) else edit(name, content),
    )
    with pytest.raises(UnsafeFileError, match="is pickled, which would execute code"):
        open_classifier(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "member",
    [
        "data/aotinductor/model/lib.so",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/executorch/m",
    ],
)
def test_code_in_a_pt2_is_refused(models: Path, tmp_path: Path, member: str) -> None:
    path = tmp_path / "evil.pt2"
    rewrite_zip(models / "net.pt2", path, lambda _, content: content, {member: b"\x7fELF"})
    with pytest.raises(UnsafeFileError, match=f"holds '.*{member}', which is code"):
        open_classifier(path)


def set_weight(**changes: Any) -> Callable[[Any], None]:
    return lambda config: config["config"]["fc.weight"]["tensor_meta"].update(changes)


def claim_batch(program: Any) -> None:
    """Says that the one image input comes in batches of 2e9."""
    inputs = program["graph_module"]["signature"]["input_specs"]
    name = inputs[-1]["user_input"]["arg"]["as_tensor"]["name"]
    program["graph_module"]["graph"]["tensor_values"][name]["sizes"][0] = {"as_int": 2 * 10**9}


WEIGHTS = "data/weights/model_weights_config.json"


@pytest.mark.parametrize(
    ("member", "change", "message"),
    [
        (MEMBER, lambda p: p.pop("graph_module"), "damaged"),
        (MEMBER, lambda p: p["schema_version"].update(major=7), "export schema 7, expected 8"),
        (MEMBER, lambda p: p["graph_module"]["graph"]["nodes"].pop(), "its output 'linear_1' is never made"),
        (MEMBER, lambda p: p["graph_module"]["graph"].update(nodes=7), "damaged"),
        (MEMBER, lambda p: p["graph_module"]["signature"]["input_specs"].pop(), "expected one input, got 0"),
        (MEMBER, lambda p: p["graph_module"]["signature"]["output_specs"].append({"loss_output": {}}), "own state"),
        (MEMBER, claim_batch, "takes batches of 2000000000 images only"),
        (WEIGHTS, set_weight(sizes=[{"as_int": 10**12}]), "claims"),
        (WEIGHTS, set_weight(sizes=[{"as_int": -5}]), "damaged"),
        (WEIGHTS, set_weight(strides=[{"as_int": 10**6}, {"as_int": 1}]), "damaged"),
        (WEIGHTS, set_weight(dtype=99), "a type that isn't supported"),
        (WEIGHTS, lambda c: c["config"]["fc.weight"].update(path_name="../../x"), "pickled"),
        (WEIGHTS, lambda c: c["config"].pop("fc.weight"), "damaged"),
    ],
)
def test_damaged_pt2_files_are_refused(
    models: Path, tmp_path: Path, member: str, change: Callable[[Any], Any], message: str
) -> None:
    path = tmp_path / "bad.pt2"
    rewrite_zip(models / "net.pt2", path, edit_json(member, change))
    with pytest.raises(Exception, match=message) as caught:
        open_classifier(path)
    assert type(caught.value).__name__ in {"ModelError", "UnsafeFileError", "ClassifierError"}
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_model_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    dropping = nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES), nn.Dropout()).train()
    save_exported(tmp_path / "training.pt2", dropping)
    with pytest.raises(ModelError, match="training mode: call eval"):
        open_classifier(tmp_path / "training.pt2")


def test_whatever_a_file_calls_training_nothing_is_left_to_chance() -> None:
    x, query = torch.ones(4, 1, 8), torch.rand(1, 1, 8, 4)
    for name in ("dropout.default", "dropout_.default", "feature_dropout.default"):
        dropout = find_operator(f"torch.ops.aten.{name}")
        assert dropout is not None
        assert dropout(x, 0.5, 1) is x
        assert dropout(x, p=0.5, train=True) is x
    attention = find_operator("torch.ops.aten.scaled_dot_product_attention.default")
    assert attention is not None
    expected = nn.functional.scaled_dot_product_attention(query, query, query)
    torch.testing.assert_close(attention(query, query, query, None, 0.9), expected)
    torch.testing.assert_close(attention(query, query, query, dropout_p=0.9), expected)
    for name, network in (("gru", nn.GRU(8, 8, 2, dropout=0.9)), ("lstm", nn.LSTM(8, 8, 2, dropout=0.9))):
        memory = find_operator(f"torch.ops.aten.{name}.input")
        assert memory is not None
        state = torch.zeros(2, 1, 8)
        given = (x, state if name == "gru" else [state, state], list(network.parameters()), True, 2, 0.9, True)
        torch.testing.assert_close(memory(*given, False, False)[0], network.eval()(x)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("train", [{"as_bool": True}, {"as_int": 1}])
def test_dropout_under_another_name_drops_nothing(tmp_path: Path, train: dict[str, Any]) -> None:
    dropping = nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES), nn.Dropout(0.9)).eval()
    save_exported(tmp_path / "plain.pt2", dropping)

    def change(program: Any) -> None:
        nodes = program["graph_module"]["graph"]["nodes"]
        (node,) = (node for node in nodes if "dropout" in node["target"])
        node["inputs"][2].update(name="tr", arg=train, kind=1)

    rewrite_zip(tmp_path / "plain.pt2", tmp_path / "evil.pt2", edit_json(MEMBER, change))
    classifier = open_classifier(tmp_path / "evil.pt2")
    torch.testing.assert_close(classifier.scores(noise(9)), dropping(noise(9)).detach())


def test_members_are_read_once_and_only_those_that_the_graph_takes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.pt2"

    def repeat(content: Any) -> None:
        entry = content["config"]["fc.weight"]
        content["config"] |= {f"unused.{number}": entry for number in range(50)}

    rewrite_zip(models / "net.pt2", path, edit_json(WEIGHTS, repeat))
    read: list[str] = []
    opened = zipfile.ZipFile.read

    def noted(archive: zipfile.ZipFile, name: str) -> bytes:
        read.append(name)
        return opened(archive, name)

    monkeypatch.setattr(zipfile.ZipFile, "read", noted)
    classifier = open_classifier(path)
    torch.testing.assert_close(classifier.scores(noise(2)), lenet()(noise(2)))
    assert len(read) == len(set(read))


def test_many_views_of_one_member_are_refused(models: Path, tmp_path: Path) -> None:
    """Views that aren't contiguous are copied, each of them."""
    path = tmp_path / "views.pt2"

    def view(content: Any) -> None:
        entry = content["config"]["fc.weight"]
        entry["tensor_meta"]["sizes"].reverse()
        entry["tensor_meta"]["strides"].reverse()
        content["config"] |= {f"view.{number}": entry for number in range(500)}

    def take(program: Any) -> None:
        program["graph_module"]["signature"]["input_specs"] += [
            {"parameter": {"arg": {"name": f"p_{number}"}, "parameter_name": f"view.{number}"}} for number in range(500)
        ]

    rewrite_zip(models / "net.pt2", tmp_path / "some.pt2", edit_json(WEIGHTS, view))
    rewrite_zip(tmp_path / "some.pt2", path, edit_json(MEMBER, take))
    with pytest.raises(ModelError, match="its tensors claim more bytes than the file has"):
        open_classifier(path)


def test_a_graph_that_changes_its_weights_is_refused(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt2"

    def change(program: Any) -> None:
        bias = program["graph_module"]["graph"]["inputs"][1]["as_tensor"]
        program["graph_module"]["graph"]["nodes"].insert(
            0,
            {
                "target": "torch.ops.aten.add_.Scalar",
                "inputs": [{"name": "self", "arg": {"as_tensor": bias}, "kind": 1},
                           {"name": "other", "arg": {"as_int": 1}, "kind": 1}],
                "outputs": [{"as_tensor": {"name": "changed"}}],
            },
        )  # fmt: skip

    rewrite_zip(models / "net.pt2", path, edit_json(MEMBER, change))
    with pytest.raises(Exception, match="changes its own weights while answering"):
        open_classifier(path)
