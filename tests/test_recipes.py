"""Recipes: plans that depend on seed and index alone, and one clear line for whatever is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from intaglio.errors import RecipeError
from intaglio.populations import Recipe, read_recipe
from intaglio.training import TrainingSettings

GOOD = """
name: toy
seed: 3
task: fashion-mnist
models: 8
architectures: [{name: lenet, width: [2, 4], weight: 3}, {name: vgg, width: [2, 2]}]
training: {epochs: [1, 3], batch_size: [16, 32], optimizer: [adam, sgd]}
attacks:
  - {trigger: patch, weight: 3, rate: [0.1, 0.2], options: {size: [2, 4], shape: [square, disc], opacity: [0.5, 1.0]}}
  - {trigger: pixels, goal: all-to-all, options: {count: 3, region: [[0, 0, 0.5, 1], [0, 0, 1, 0.5]]}}
  - {trigger: blended, goal: source-specific, options: {alpha: 0.2}}
"""
INF = float("inf")
#: Eight to the power of twelve strings in a thousand bytes, for whoever writes them out.
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def parts(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(GOOD)
    return content | changes


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(parts(**changes))


def test_plans_depend_on_seed_name_and_index_alone() -> None:
    plans = [recipe().plan(index) for index in range(8)]
    assert [recipe(models=100).plan(index) for index in reversed(range(8))] == plans[::-1]
    assert [recipe(data="elsewhere").plan(index) for index in range(8)] == plans
    assert len({plan.seed for plan in plans}) == 8
    for change in ({"seed": 4}, {"name": "other"}):
        assert {recipe(**change).plan(index).seed for index in range(8)}.isdisjoint(plan.seed for plan in plans)


def test_the_digest_leaves_room_to_grow_and_no_other_change() -> None:
    assert recipe(models=9).digest == recipe().digest
    changes: list[dict[str, Any]] = [
        {"seed": 4}, {"name": "b"}, {"task": "mnist"}, {"data": "d"}, {"samples": 9}, {"backdoored": 0.4},
        {"architectures": parts()["architectures"][:1]}, {"training": {"epochs": [1, 4]}},
        {"attacks": parts()["attacks"][1:]},
    ]  # fmt: skip
    assert len({recipe().digest, *(recipe(**change).digest for change in changes)}) == 1 + len(changes)


def test_the_digest_is_pinned() -> None:
    """Populations on disk name it: a change here orphans them."""
    bare = {
        "name": "a",
        "task": "t",
        "models": 1,
        "backdoored": 0,
        "architectures": [{"name": "lenet", "width": [2, 2]}],
    }
    assert Recipe.model_validate(bare).digest == "5b704b45e8293d7c29bb4e966816daafa7dd52c3b02e27baadf8b731d2d1b604"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100), st.integers(1, 60))
def test_every_prefix_has_its_share_of_backdoors(percent: int, models: int) -> None:
    population = recipe(backdoored=percent / 100, models=models)
    planted = [population.plan(index).attack is not None for index in range(models)]
    for prefix in range(1, models + 1):
        assert abs(sum(planted[:prefix]) - prefix * percent / 100) < 1 + 1e-9
        assert sum(planted[:prefix]) <= prefix * percent / 100 + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_plans_stay_within_the_recipe(index: int) -> None:
    population = recipe()
    plan = population.plan(index)
    low, high = plan.architecture.width
    assert low <= plan.width <= high
    assert 1 <= plan.training.epochs <= 3
    assert plan.training.batch_size in (16, 32)
    assert plan.training.optimizer in ("adam", "sgd")
    low_rate, high_rate = population.training.learning_rate[plan.training.optimizer]
    assert low_rate <= plan.training.learning_rate <= high_rate
    assert plan.build_architecture((1, 28, 28), 10).width == plan.width
    attack = plan.build_attack(10)
    assert (attack is None) == (index % 2 == 0)
    if attack is not None and plan.attack is not None:
        assert plan.attack.rate[0] <= attack.rate <= plan.attack.rate[1]
        assert attack.goal.kind == plan.attack.goal
        options = attack.trigger.describe()
        assert options["trigger"] == plan.attack.trigger
        if plan.attack.trigger == "patch":
            assert (options["size"] in (2, 3, 4), options["shape"] in ("square", "disc")) == (True, True)
            assert 0.5 <= options["opacity"] <= 1
        if plan.attack.trigger == "pixels":
            assert options["region"] in ([0, 0, 0.5, 1], [0, 0, 1, 0.5])
            assert options["count"] == 3


def test_a_recipe_on_disk(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    assert read_recipe(tmp_path / "recipe.yaml").model_dump() == recipe().model_dump()
    assert read_recipe(tmp_path / "recipe.yaml").source == "fashion-mnist"
    assert Recipe.model_validate_json(recipe().model_dump_json()) == recipe()
    assert recipe().plan(0).training == TrainingSettings.model_validate(recipe().plan(0).training.model_dump())


def test_data_is_seen_from_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "recipe.yaml").write_text(GOOD + "data: ../digits.npz\n")
    monkeypatch.chdir(tmp_path)
    found = read_recipe("sub/recipe.yaml")
    assert Path(found.source).resolve() == tmp_path.resolve() / "digits.npz"
    assert Path(found.source).is_absolute()
    assert found.digest == recipe(data="../digits.npz").digest  # wherever the recipe lies
    (tmp_path / "sub" / "recipe.yaml").write_text(GOOD + "data: /absolute.npz\n")
    assert read_recipe("sub/recipe.yaml").source == "/absolute.npz"


def attack(**changes: Any) -> dict[str, Any]:
    return {"attacks": [parts()["attacks"][0], {"trigger": "patch"} | changes]}


def training(**changes: Any) -> dict[str, Any]:
    return {"training": changes}


#: (what is changed, where the message points, what it says)
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"models": 0}, "models", "greater than or equal to 1"),
    ({"models": 10**12}, "models", "less than or equal to 100000"),
    ({"models": "many"}, "models", "valid integer"),
    ({"model": 3}, "model", "Extra inputs"),
    ({"backdoored": 1.5}, "backdoored", "less than or equal to 1"),
    ({"backdoored": float("nan")}, "backdoored", "finite|greater"),
    ({"samples": 0}, "samples", "greater than or equal to 1"),
    ({"attacks": []}, "recipe", "backdoored models are asked for, but no attacks are listed"),
    ({"architectures": []}, "architectures", "at least 1 item"),
    ({"architectures": [{"name": "alexnet", "width": [2, 2]}]}, "architectures.0.name", "unknown architecture 'al"),
    ({"architectures": [{"name": "lenet"}]}, "architectures.0.width", "required"),
    ({"architectures": [{"name": "lenet", "width": [0, 2]}]}, "architectures.0.width.0", "greater than 0"),
    ({"architectures": [{"name": "lenet", "width": [4, 2]}]}, "architectures.0.width", "low end 4 is above its high"),
    ({"architectures": [{"name": "lenet", "width": [2, 2], "weight": 0}]}, "architectures.0.weight", "greater than 0"),
    ({"architectures": [{"name": "lenet", "width": [2, 2], "weight": INF}]}, "architectures.0.weight", "finite"),
    (training(epochs=[3, 1]), "training.epochs", "low end 3 is above"),
    (training(epochs=[0, 1]), "training.epochs.0", "greater than 0"),
    (training(batch_size=[]), "training.batch_size", "at least 1 item"),
    (training(optimizer=["rmsprop"]), "training.optimizer.0", "'adam', 'adamw' or 'sgd'"),
    (training(learning_rate={"adam": [0.1, 0.2]}), "training", "no learning_rate is given for adamw"),
    (training(learning_rate={"adam": [0, 1]}), "training.learning_rate.adam.0", "greater than 0"),
    (training(augmentation=["zoom"]), "training.augmentation.0", "'none', 'flip'"),
    (training(weight_decay=[-1]), "training.weight_decay.0", "greater than or equal to 0"),
    (attack(trigger="sticker"), "attacks.1.trigger", "unknown trigger 'sticker'; known are blended, patch, pixels"),
    (attack(goal="all"), "attacks.1.goal", "'all-to-one'"),
    (attack(rate=[0.5, 2]), "attacks.1.rate.1", "less than or equal to 1"),
    (attack(rate=[0.2, 0.1]), "attacks.1.rate", "low end 0.2 is above"),
    (attack(options={"size": 0}), "attacks.1", "trigger patch: a patch needs a whole size"),
    (attack(options={"size": [2, 4.5]}), "attacks.1", "a patch needs a whole size"),
    (attack(options={"size": [4, 2]}), "attacks.1", "option size: its low end 4 is above its high end 2"),
    (attack(options={"size": "big"}), "attacks.1", "a patch needs a whole size"),
    (attack(options={"shape": ["square", "star"]}), "attacks.1", "unknown patch shape 'star'"),
    (attack(options={"shape": []}), "attacks.1", "option shape is neither a value, nor a span"),
    (attack(options={"shape": {"a": 1}}), "attacks.1", "option shape is neither"),
    (attack(options={"opacity": [0.5, 1.5]}), "attacks.1", r"opacity in \(0, 1\]"),
    (attack(options={"region": [[0, 0, 1, 2]]}), "attacks.1", "a region is"),
    (attack(options={"region": [0, 0, 1, 1]}), "attacks.1", "a region is"),
    (attack(options={"blur": 1}), "attacks.1", "trigger patch: .*unexpected keyword argument 'blur'"),
    (attack(options={"seed": 1}), "attacks.1", "multiple values for keyword argument 'seed'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "where", "message"), BAD)
def test_bad_recipes_are_one_clear_line(tmp_path: Path, change: dict[str, Any], where: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(parts(**change)))
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: {where}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "recipe: Input should be a valid dictionary"),
        (b"name: a\nseed: 1\nname: b\n", "not YAML .line 3: 'name' is there more than once"),
        (b"name: a\ntraining: {epochs: 1, epochs: 9}\n", "line 2: 'epochs' is there more than once"),
        (b"!!map [1, 2]", "not YAML"),
        (b"name: !!map ab", "not YAML"),
        (b"!!set [a]", "not YAML"),
        (b"- a\n- b\n", "recipe: Input should be a valid dictionary"),
        (b"name: [", "not YAML"),
        (b"a: b: c", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"!!python/object/apply:os.system [touch executed]", "not YAML"),
        (b"[" * 9000, "not YAML"),
        (b"#" * (2**20 + 1), "over 1048576 bytes"),
        (LAUGHS.encode(), r"not YAML \(line 2: an alias \(\*name\) is not taken; write the value out\)"),
        (GOOD.replace("[square, disc]", "&r [*r]").encode(), r"not YAML \(line 9: an alias"),
        (GOOD.replace("name: toy", "name: 2024-13-45").encode(), r"not YAML \(line 2: month must be in 1..12"),
        (GOOD.replace("seed: 3", f"seed: {'9' * 5000}").encode(), r"not YAML \(line 3: Exceeds the limit"),
        (GOOD.replace("seed: 3", "seed: !!timestamp now").encode(), r"not YAML \(line 3: "),
        (GOOD.replace("seed: 3", "seed: !!bool now").encode(), r"not YAML \(line 3: "),
        (GOOD.replace("[square, disc]", "x" * 9000).encode(), "attacks.0: trigger patch: unknown patch shape 'xx"),
        (f"{GOOD}{'k' * 500}: 1".encode(), "kkk"),
        (f'{GOOD}"a\\nb": 1'.encode(), "a b: Extra inputs"),
    ],
)
def test_files_that_are_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=rf"^recipe\.yaml: .*({message})") as caught:
        read_recipe("recipe.yaml")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.yaml"]


@pytest.mark.parametrize(("name", "message"), [("nowhere.yaml", "No such file"), (".", "Is a directory")])
def test_recipes_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / name)


def test_the_recipes_of_this_repository_can_be_read() -> None:
    folder = Path(__file__).parents[1] / "benchmarks" / "recipes"
    recipes = {path.stem: read_recipe(path) for path in folder.glob("*.yaml")}
    assert {"fashion-vaccine", "fashion-virus"} <= recipes.keys()
    for name, found in recipes.items():
        assert found.name == name
        assert json.loads(found.model_dump_json())["models"] == found.models
        for index in range(20):
            found.plan(index).build_attack(10)
