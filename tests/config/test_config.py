"""The configuration tree: defaults, TOML both ways, layers, assignments, and what each mistake is answered."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import tomllib
import types
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline import config
from sightline.config import RunConfig, StageConfig, parse, recipes, resolve_config, to_dict
from sightline.config.durations import format_duration
from sightline.config.stage_epochs import count_epochs
from sightline.errors import ConfigError, MissingExtraError
from sightline.models.registry import ENTRIES

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)  # no half of a surrogate pair is text


CHECKED = {  # values of settings with a rule of their own, by field
    "encoding": st.sampled_from(["", "big5", "shift_jis", "UTF-8"]),
    "label_pattern": st.sampled_from(["", r"(?P<label>[a-z]+)_", r"(?P<label>\w+)/"]),
    "group": st.sampled_from(["none", "near_duplicates", "folder", r"pattern:(?P<group>\w+)_"])
    | TEXT.filter(str.strip).map(lambda column: f"column:{column}"),
    "time_limit": st.just("") | st.integers(1, 10**6).map(format_duration),
    "stages": st.deferred(lambda: st.lists(config_strategy(StageConfig), max_size=3).map(tuple)).filter(
        lambda stages: not stages or any(stage.epochs != 0 or stage.is_solved for stage in stages)
    ),
}


def value_strategy(hint: Any, low: float | None = None, high: float | None = None) -> st.SearchStrategy[Any]:
    """Every value that a field of this type and range may take."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of([st.none() if a is type(None) else value_strategy(a, low, high) for a in args])
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple and args[-1] is not ...:  # a range: the smaller number first
        ends = value_strategy(args[0], low, high)
        return st.lists(ends, min_size=len(args), max_size=len(args), unique=True).map(lambda v: tuple(sorted(v)))
    if origin is tuple:
        return st.lists(value_strategy(args[0], low, high), max_size=3).map(tuple)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return config_strategy(hint)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-(2**63) if low is None else int(low), 2**63 - 1 if high is None else int(high)),
        float: st.floats(low, high, allow_nan=False, allow_infinity=False),
        str: TEXT,
    }
    return plain[hint]


def config_strategy(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    strategies_by_key = {
        f.name: CHECKED[f.name]
        if f.metadata.get("check")
        else value_strategy(hints[f.name], f.metadata.get("at_least"), f.metadata.get("at_most"))
        for f in dataclasses.fields(cls)
    }
    return st.builds(cls, **strategies_by_key)


def iter_settings(cls: type[Any], where: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Yield the path, the bare type and the field of each setting below `cls`; a list's entry is number 0."""
    hints = get_type_hints(cls)
    for f in dataclasses.fields(cls):
        hint, path = hints[f.name], f"{where}{f.name}"
        inner = [a for a in get_args(hint) if a not in (type(None), ...)]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from iter_settings(hint, f"{path}.")
        elif get_origin(hint) is tuple and dataclasses.is_dataclass(inner[0]):
            assert isinstance(inner[0], type)
            yield path, hint, f
            yield from iter_settings(inner[0], f"{path}.0.")
        else:
            yield path, inner[0] if get_origin(hint) in (Union, types.UnionType) else hint, f


LEAVES = {path: (hint, f) for path, hint, f in iter_settings(RunConfig)}
LISTS = {"input.value_range"}  # names or a list
CHOICES = [p for p, (hint, _) in LEAVES.items() if get_origin(hint) is Literal and p not in LISTS]
NUMBERS = {path: f.metadata for path, (hint, f) in LEAVES.items() if hint in (int, float)}


def nest(path: str, value: Any) -> dict[str, Any]:
    """Return the nested dict that holds `value` at `path`."""
    for key in reversed(path.split(".")):
        value = [value] if key == "0" else {key: value}
    assert isinstance(value, dict)
    return value


def get_setting(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[int(key)] if key.isdigit() else getattr(value, key)
    return value


def next_outside(bound: float, hint: Any, direction: int) -> float:
    return int(bound) + direction if hint is int else math.nextafter(bound, math.inf * direction)


# Into and out of dicts and TOML


def test_defaults_are_valid_and_complete() -> None:
    assert resolve_config(to_dict(RunConfig())) == resolve_config() == RunConfig()
    assert len(LEAVES) > 60


@given(config_strategy(RunConfig))
def test_toml_round_trip(config_value: RunConfig) -> None:
    assert resolve_config(tomllib.loads(config.dump_toml(config_value))) == config_value
    assert resolve_config(to_dict(config_value)) == config_value


def test_toml_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "größe.toml"
    config_value = resolve_config({"recipe": 'a "quoted"\nname', "data": {"sources": ["C:\\images", "ä ö"]}})
    path.write_text(config.dump_toml(config_value), encoding="utf-8")
    assert config.load_config(path) == config_value


def test_dict_is_plain_and_leaves_out_what_is_unset() -> None:
    plain = to_dict(resolve_config({"train": {"stages": [{"epochs": 2}]}, "model": {"hidden_units": [8, 4]}}))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["train"]["stages"] == [
        {"name": "stage", "unfreeze": -1, "epochs": 2, "solver": "gradient", "views": 1}
    ]
    assert plain["model"]["hidden_units"] == [8, 4]
    assert "alpha" not in plain["model"]


@pytest.mark.parametrize("stages", [[], [{}]], ids=["no stage", "one stage"])
def test_dump_states_every_setting_under_its_meaning(stages: list[Any]) -> None:
    """Each line of a setting stands in the table of its own, right below the phrase that explains it."""
    augmentations = [{"name": "solarize"}] if stages else []
    layer = {"train": {"stages": stages}, "augment": {"custom": augmentations}}
    lines = config.dump_toml(resolve_config(layer)).splitlines()
    seen, table, counts = set(), "", {"[[train.stages]]": -1, "[[augment.custom]]": -1}
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("["):
            counts[line] = counts.get(line, 0) + 1
            table = line.strip("[]") + (f".{counts[line]}" if line.startswith("[[") else "") + "."
        elif setting := re.match(r"(?:# (\w+) is unset|(\w+) = )", line):
            path = table + (setting[1] or setting[2])
            assert before == f"# {LEAVES[path][1].metadata['doc']}", path
            seen.add(path)
    in_lists = ("train.stages.0.", "augment.custom.0.")
    expected = {path for path in LEAVES if path.startswith(in_lists) <= bool(stages)}
    assert seen == expected - ({"train.stages", "augment.custom"} if stages else set())


@pytest.mark.parametrize("path", LEAVES)
def test_every_setting_says_what_it_means(path: str) -> None:
    doc = LEAVES[path][1].metadata["doc"]
    assert len(doc) > 5
    assert doc == doc.strip()
    assert doc.endswith("...") or not doc.endswith(".")


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]  # that it cannot is the point


def test_dump_without_tomlkit_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    with pytest.raises(MissingExtraError, match=r"tomlkit.*\.\[train\]"):
        config.dump_toml(RunConfig())


# Mistakes


@pytest.mark.parametrize(
    ("settings", "path", "hint"),
    [
        ({"train": {"epoch": 5}}, "train.epoch", "Did you mean 'train.epochs'?"),
        ({"trian": {}}, "trian", "Did you mean 'train'?"),
        (
            {"train": {"optimizer": {"lr": 1}}},
            "train.optimizer.lr",
            "Valid names: bias_learning_rate, clip_norm, head_learning_rate",
        ),
        (
            {"train": {"stages": [{}, {"unfreze": 1}]}},
            "train.stages.1.unfreze",
            "Did you mean 'train.stages.1.unfreeze'?",
        ),
        ({"zzz": 1}, "zzz", "Valid names: augment, bundle, data, device"),
        ({"mixup": 0.2}, "mixup", "Did you mean 'augment.mixup'?"),
        ({"monitor": 1}, "monitor", "Valid names: train.early_stopping.monitor, train.schedule.monitor."),
    ],
    ids=["near", "table", "far", "in a list", "far at the top", "without its table", "of two tables"],
)
def test_unknown_key_offers_the_nearest(settings: dict[str, Any], path: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(settings)
    assert f"There is no setting {path!r}. {hint}" in str(caught.value)


WRONG = {int: 1.5, float: "0.1", bool: 1, str: 7}


@pytest.mark.parametrize("path", [p for p, (hint, _) in LEAVES.items() if hint in WRONG])
def test_wrong_type_names_the_setting(path: str) -> None:
    hint = LEAVES[path][0]
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)} expects .*, not {re.escape(repr(WRONG[hint]))}\.$"):
        resolve_config(nest(path, WRONG[hint]))


@pytest.mark.parametrize("path", [p for p, (hint, _) in LEAVES.items() if hint in {int, float}])
def test_true_is_rejected_as_a_number(path: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(path)):
        resolve_config(nest(path, True))


@pytest.mark.parametrize("path", CHOICES)
def test_choice_outside_the_list_names_the_choices(path: str) -> None:
    choices = get_args(LEAVES[path][0])
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)} cannot be 'zzz'\. Valid names: ") as caught:
        resolve_config(nest(path, "zzz"))
    assert all(str(choice) in str(caught.value) for choice in choices)


@pytest.mark.parametrize("value", [2, 3.0, True, "3"], ids=repr)
def test_channels_are_the_number_1_or_3(value: Any) -> None:
    assert resolve_config(nest("input.channels", 3)).input.channels == 3
    with pytest.raises(ConfigError, match=r"input\.channels cannot be"):
        resolve_config(nest("input.channels", value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data.sources", "images", "data.sources expects a list, not 'images'."),
        ("model.hidden_units", 512, "model.hidden_units expects a list, not 512."),
        ("model.hidden_units", [1, "x"], "model.hidden_units.1 expects a whole number, not 'x'."),
        ("train.stages", {"0": {}}, "train.stages expects a list, not {'0': {}}."),
        ("train.stages", [3], "train.stages.0 is a table of settings: set one of them, as in train.stages.0.name=..."),
        ("train", 3, "train is a table of settings: set one of them, as in train.epochs=..."),
    ],
    ids=range(6),
)
def test_a_value_of_the_wrong_type_is_reported(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(nest(path, value))
    assert str(caught.value) == message


def test_whole_number_is_a_number_too() -> None:
    rate = resolve_config(nest("train.optimizer.learning_rate", 1)).train.optimizer.learning_rate
    assert rate == 1
    assert isinstance(rate, float)


@pytest.mark.parametrize("path", NUMBERS)
def test_range_ends_are_valid_and_values_beyond_are_rejected(path: str) -> None:
    low, high, hint = NUMBERS[path]["at_least"], NUMBERS[path]["at_most"], LEAVES[path][0]
    assert low is not None, "without a lower end a message cannot say what is expected"
    if path != "train.stages.0.epochs":  # a stage may have none if another one has some
        assert get_setting(resolve_config(nest(path, hint(low))), path) == low
    expected = f"at least {low}" if high is None else f"between {low} and {high}"
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)} must be {expected}, not "):
        resolve_config(nest(path, next_outside(low, hint, -1)))
    if high is None:
        assert get_setting(resolve_config(nest(path, hint(10**6))), path) == 10**6
    else:
        assert get_setting(resolve_config(nest(path, hint(high))), path) == high
        with pytest.raises(ConfigError, match=expected):
            resolve_config(nest(path, next_outside(high, hint, 1)))


@pytest.mark.parametrize("path", [p for p in NUMBERS if LEAVES[p][0] is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_number_must_be_finite(path: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)} must be .*, not -?(nan|inf)\.$"):
        resolve_config(nest(path, value))


@pytest.mark.parametrize("value", [0, -5])
def test_layer_without_units_is_refused(value: int) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.hidden_units\.1 must be at least 1, not {value}\.$"):
        resolve_config(nest("model.hidden_units", [8, value]))


@pytest.mark.parametrize("value", [0, 0.0, -0.1])
@pytest.mark.parametrize("path", ["train.optimizer.learning_rate", "train.stages.0.learning_rate"])
def test_a_learning_rate_that_trains_nothing_is_refused(path: str, value: float) -> None:
    recipe = {"train": {"stages": [{"name": "all"}]}}
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)} must be at least 1e-12, not {value}"):
        resolve_config(recipe, assignments=[f"{path}={value}"])
    assert resolve_config(recipe, assignments=[f"{path}=1e-9"]) != resolve_config(recipe)


def test_whole_numbers_have_64_bits_at_most() -> None:
    assert resolve_config(nest("seed", 2**63 - 1)).seed == 2**63 - 1
    for value in (2**63, 10**400, 10**10_000):
        with pytest.raises(ConfigError, match=r"^seed expects a whole number of at most 64 bits\.$"):
            resolve_config(nest("seed", value))
    with pytest.raises(ConfigError, match=r"train\.l2 must be"):
        resolve_config(nest("train.l2", 10**400))


# Layers and assignments


def test_later_layers_win_table_by_table() -> None:
    config_value = resolve_config(
        {"train": {"epochs": 1, "batch_size": 8}, "data": {"sources": ["a", "b"]}},
        {"train": {"epochs": 2}, "data": {"sources": ["c"]}},
        assignments=["train.epochs=3", "train.epochs=4"],
    )
    assert (config_value.train.epochs, config_value.train.batch_size, config_value.data.sources) == (4, 8, ("c",))
    assert config_value.train.optimizer == RunConfig().train.optimizer


def test_layers_stay_as_they_are() -> None:
    layer = {"train": {"epochs": 1, "stages": [{"epochs": 2}]}}
    config_value = resolve_config(layer, assignments=["train.epochs=5", "train.stages.0.epochs=6", "train.l2=unset"])
    assert (config_value.train.epochs, config_value.train.stages[0].epochs) == (5, 6)
    assert layer == {"train": {"epochs": 1, "stages": [{"epochs": 2}]}}


@pytest.mark.parametrize(
    ("expression", "path", "value"),
    [
        ("train.epochs=5", "train.epochs", 5),
        (" train.epochs = 5 ", "train.epochs", 5),
        ("train.optimizer.learning_rate=1e-4", "train.optimizer.learning_rate", 1e-4),
        ("augment.horizontal_flip=true", "augment.horizontal_flip", True),
        ("model.name=vgg16", "model.name", "vgg16"),
        ('model.name="vgg16"', "model.name", "vgg16"),
        ("model.weights=C:\\weights\\a=b.h5", "model.weights", "C:\\weights\\a=b.h5"),
        ("model.weights=", "model.weights", ""),
        ("model.hidden_units=[512, 10]", "model.hidden_units", (512, 10)),
        ("data.sources=['a', \"b c\"]", "data.sources", ("a", "b c")),
        ("train.stages=[{name='head', unfreeze=0}]", "train.stages", (StageConfig("head", 0),)),
    ],
    ids=range(11),
)
def test_assignment_reads_toml_or_else_text(expression: str, path: str, value: Any) -> None:
    assert get_setting(resolve_config(assignments=[expression]), path) == value


def test_assignment_reaches_into_lists_and_unsets() -> None:
    base = {"train": {"stages": [{"name": "a", "epochs": 1}, {"name": "b", "epochs": 2}]}, "model": {"alpha": 0.5}}
    assignments = ["train.stages.1.epochs=7", "train.stages.0.epochs=unset", "model.alpha=unset", "model.dropout=unset"]
    config_value = resolve_config(base, assignments=assignments)
    assert config_value.train.stages == (StageConfig("a"), StageConfig("b", epochs=7))
    assert config_value.model.alpha is None


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("train.epochs", "--set expects KEY=VALUE such as train.epochs=5, not 'train.epochs'."),
        ("=5", "--set expects KEY=VALUE such as train.epochs=5, not '=5'."),
        ("train..epochs=5", "--set expects KEY=VALUE such as train.epochs=5, not 'train..epochs=5'."),
        ("seed.x=1", "There is no setting 'seed.x': 'seed' is a value, not a table."),
        ("epochz=unset", "There is no setting 'epochz'."),
        ("train.epochz=unset", "There is no setting 'train.epochz'. Did you mean 'train.epochs'?"),
        ("data.columns.lable=unset", "There is no setting 'data.columns.lable'. Did you mean 'data.columns.label'?"),
        ("train.stages.0.epochz=unset", "There is no setting 'train.stages.0.epochz'. Did you mean"),
        ("train.stages.1.epochs=1", "There is no setting 'train.stages.1.epochs': '1' is not one of the 1 entries"),
        ("train.stages.x.epochs=1", "There is no setting 'train.stages.x.epochs': 'x' is not one of the 1 entries"),
        ("train.stages.².epochs=1", "There is no setting 'train.stages.².epochs': '²' is not one of the 1 entries"),
        ("train.stages.0=1", "There is no setting 'train.stages.0': name a field of that entry, as in"),
        ("train.epochs=many", "train.epochs expects a whole number, not 'many'."),
        ("train.epochs=5\nseed=2", r"train.epochs expects a whole number, not '5\nseed=2'."),
        ("train.epoch=5", "There is no setting 'train.epoch'. Did you mean 'train.epochs'?"),
        (
            "recipe=transfer",
            "recipe is the base of all settings, and --set cannot change it: choose it with --recipe.",
        ),
    ],
    ids=range(16),
)
def test_a_wrong_assignment_is_reported(expression: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config({"seed": 1, "train": {"stages": [{}]}}, assignments=[expression])
    assert message in str(caught.value)


def test_epochs_without_their_table_get_a_hint() -> None:  # as of `train photos --set epochs=5`
    with pytest.raises(ConfigError, match=r"There is no setting 'epochs'\. Did you mean 'train\.epochs'\?"):
        resolve_config(assignments=["epochs=5"])


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_any_assignment_is_taken_or_refused_kindly(expression: str) -> None:
    with suppress(ConfigError):  # and nothing else
        assert isinstance(resolve_config(assignments=[expression]), RunConfig)


# TOML files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[train]\nepochs = \n", "line 2"),
        (b"seed = 1\nseed = 2\n", "line 2"),
        (b"name = '\xff'", "UTF-8"),
    ],
    ids=["no value", "twice", "no UTF-8"],
)
def test_unreadable_toml_says_where(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        config.read_toml(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "[" * 80 + "]" * 80, "nested too deeply"),
        ("a." * 30_000 + "a = 1", "a key of more than 64 parts"),
        ("[" + '"a" . ' * 70 + "a]", "a key of more than 64 parts"),
        ("a = " + "9" * 5000, "limit"),
        ("a = 1\n" * 200_000, "larger than 1 MiB"),
    ],
    ids=range(6),
)
def test_toml_made_to_harm_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=reason) as caught:
        config.read_toml(path)
    assert str(path) in str(caught.value)


def test_paths_of_many_levels_are_not_one_long_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[data]\nsources = ['{'../' * 70}x']", encoding="utf-8")
    assert config.load_config(path).data.sources == ("../" * 70 + "x",)


def test_a_wrong_setting_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 'x'", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.toml: seed expects a whole number, not 'x'\."):
        config.load_config(path)


def test_missing_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no TOML file .*absent\.toml: check the path\."):
        config.read_toml(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        config.read_toml(tmp_path)


def test_toml_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "notepad.toml"
    path.write_text("seed = 3\n", encoding="utf-8-sig")
    assert config.load_config(path).seed == 3


# Recipes


def test_recipes_there_are() -> None:
    assert {"auto", "quick", "transfer"} <= set(recipes.names())
    assert list(recipes.names()) == sorted(recipes.names())


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_resolves_and_names_a_model(name: str) -> None:
    config_value = resolve_config(recipes.load(name))
    assert config_value.recipe == name
    assert config_value.model.name in {*ENTRIES, "auto"}
    assert config_value == resolve_config(tomllib.loads(config.dump_toml(config_value)))


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_says_what_it_is_about(name: str) -> None:
    assert recipes.text(name).startswith("# ")
    about = recipes.first_sentence(name)
    assert 20 < len(about) < 120
    assert about[0].isupper()
    assert not about.endswith(".")
    assert "#" not in about


def test_about_is_the_first_sentence_of_the_opening_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# Trains at 0.5 of\n# the size. Then more.\n\n# not this\nseed = 1\n"
    monkeypatch.setattr(recipes, "text", lambda name: text)
    assert recipes.first_sentence("any") == "Trains at 0.5 of the size"


def test_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"There is no recipe 'transfr'. Did you mean 'transfer'\?"):
        recipes.load("transfr")


EFFORTS = {
    "fast": [("head", 0)],
    "balanced": [("head", 0), ("fine-tune", "auto")],
    "best": [("head", 0), ("fine-tune", "auto")],
}


@pytest.mark.parametrize("effort", EFFORTS)
def test_an_effort_sets_what_the_recipe_does(effort: str) -> None:
    config_value = resolve_config(recipes.load("transfer"), assignments=[f"train.effort={effort}"])
    assert [(stage.name, stage.unfreeze) for stage in config_value.train.stages] == EFFORTS[effort]
    assert config_value.augment.horizontal_flip == (effort != "fast")
    assert config_value == resolve_config(tomllib.loads(config.dump_toml(config_value))), "nothing is applied twice"


@pytest.mark.parametrize("recipe", ["transfer", "transfer-mobilenetv2"])
def test_the_effort_is_balanced_unless_set_and_below_what_the_user_sets(recipe: str) -> None:
    assert resolve_config(recipes.load(recipe)).train.effort == "balanced"
    assert resolve_config(recipes.load("quick")).train.effort is None, "from scratch, there is one way"
    own = {"train": {"effort": "best"}, "augment": {"zoom": 0.0}}
    config_value = resolve_config(recipes.load(recipe), own, assignments=["train.epochs=5"])
    assert (config_value.augment.zoom, config_value.augment.translation) == (0.0, 0.1)
    assert sum(count_epochs(config_value.train, stage) for stage in config_value.train.stages) == 5
    assert resolve_config(recipes.load(recipe), own, assignments=["train.effort=fast"]).train.effort == "fast"


def test_a_file_that_began_as_a_recipe_keeps_its_efforts() -> None:
    own = tomllib.loads(recipes.text("transfer"))
    for effort, stages in EFFORTS.items():
        config_value = resolve_config({"recipe": "auto"}, own, assignments=[f"train.effort={effort}"])
        assert [(stage.name, stage.unfreeze) for stage in config_value.train.stages] == stages


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.effort cannot be 'fastt'\. Did you mean 'fast'"):
        resolve_config(recipes.load("transfer"), assignments=["train.effort=fastt"])
    with pytest.raises(ConfigError, match="There is no setting 'efforts'"):
        resolve_config({"efforts": 3})
    with pytest.raises(ConfigError, match=r"efforts\.fast must be a table of settings"):
        resolve_config({"efforts": {"fast": 3}}, assignments=["train.effort=fast"])


def test_merge_leaves_its_arguments() -> None:
    base, over = {"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": {"e": 4}}
    assert parse.merge_tables(base, over) == {"a": {"b": 1, "d": 3}, "c": {"e": 4}}
    assert (base, over) == ({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": {"e": 4}})


def test_a_field_of_a_stage_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"the configuration has no stages yet\. .*\[\[train\.stages\]\]"):
        resolve_config(assignments=["train.stages.0.epochs=5"])
    config_value = resolve_config(recipes.load("transfer"), assignments=["train.stages.0.epochs=5"])
    assert config_value.train.stages[0].epochs == 5


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("quick", ["train.epochs=0"], "train.epochs must be between 1 and 1000000, not 0"),
        ("quick", ["train.stages=[{epochs=0}]"], "train.stages have no epochs, so nothing would be trained"),
        ("cifar10-augmented", ["train.epochs=0"], "train.epochs must be between 1"),
        ("vgg16-finetune", ["train.stages.0.epochs=0", "train.stages.1.epochs=0"], "train.stages have no epochs"),
    ],
)
def test_a_training_of_no_epochs_is_refused(recipe: str, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_config(recipes.load(recipe), assignments=settings)


@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("full", "full"), ("[0, 4095]", (0.0, 4095.0)), ("[-1024.5, 3071]", (-1024.5, 3071.0))],
)
def test_a_setting_of_several_kinds_takes_each(text: str, value: Any) -> None:
    config_value = resolve_config(assignments=[f"input.value_range={text}"])
    assert config_value.input.value_range == value
    assert resolve_config(tomllib.loads(config.dump_toml(config_value))) == config_value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ful", "input.value_range expects auto or full or a list, not 'ful'"),
        ("7", "input.value_range expects auto or full or a list, not 7"),
        ("[1, 2, 3]", "input.value_range expects a list of 2 values, not"),
        ("[5, 5]", r"input.value_range must be \[low, high\] with low < high, not \[5.0, 5.0\]"),
        ("[0, nan]", "input.value_range.1 must be a finite number"),
        ("['a', 2]", "input.value_range.0 expects a number"),
    ],
)
def test_a_wrong_range_of_values_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_config(assignments=[f"input.value_range={text}"])
