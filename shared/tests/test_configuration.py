"""Configuration: defaults < YAML < flags, and one sentence for whatever does not fit."""

import contextlib
import random
import re
import string
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import pytest
import yaml

from studycore.configuration import (
    build,
    check_types,
    config_hash,
    differences,
    find_config,
    from_dict,
    read_arguments,
    read_yaml,
    take_config,
    to_dict,
    to_yaml,
)
from studycore.errors import UserError
from studycore.options import TrainOptions


@dataclass(frozen=True)
class Training:
    """A training."""

    learning_rate: float = 1e-3
    """Learning rate."""
    epochs: int = 10
    """Epochs."""
    grad_clip: float | None = None
    """Largest norm."""
    batch_size: Optional[int] = 8  # noqa: UP045 - the older spelling must do as well
    """Pairs a step."""
    kind: Literal["small", "large"] = "small"
    """Which."""
    penalty: Literal["l1", "l2"] | None = "l1"
    """Which penalty."""
    fast: bool = False
    """Takes a short cut."""
    where: int | str = "here"
    """A place."""
    name: str = ""
    """A name."""
    base: dict[str, Any] = field(default_factory=dict)
    """Anything."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Lists."""

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: {self.learning_rate} must be above 0")


@dataclass(frozen=True)
class Options:
    """Others."""

    resume: bool = False
    """Goes on."""
    output_dir: str | None = None
    """Where to."""


def read(*argv, package="toy_package", **kwargs):
    """[training, options]: what the file and, before it, the flags give of each class, over the defaults."""
    given = {}
    for values in read_arguments([Training, Options], argv, "toy", package, **kwargs):
        given |= values
    defaults = (to_dict(Training()), to_dict(Options()))
    assert set(given) <= set(defaults[0]) | set(defaults[1])
    return [values | {name: given[name] for name in values if name in given} for values in defaults]


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "c.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def error(*argv):
    """The one short sentence."""
    with pytest.raises(UserError) as caught:
        read(*argv)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250 or "YAML" in message
    assert "<class" not in message
    assert "Union" not in message
    return message


def test_defaults_file_and_flags_in_that_order_wherever_config_stands(file):
    assert read() == [to_dict(Training()), to_dict(Options())]
    path = file("learning_rate: 1e-8\nepochs: 20\ngrad_clip: null\nbatch_size: null\noutput_dir: there")
    orders = [
        ["--config", str(path), "--epochs", "30"],
        ["--epochs", "30", "--config", str(path)],
        ["--epochs=30", f"--config={path}", "--resume"],
        ["--resume", "--config", str(path), "--epochs=30"],
    ]
    for argv in orders:
        training, options = read(*argv)
        assert (training["epochs"], training["learning_rate"], training["batch_size"]) == (30, 1e-8, None)
        assert training["kind"] == "small"
        assert options == {"resume": "--resume" in argv, "output_dir": "there"}


def test_dashes_and_underscores_and_bare_switches():
    for flag in ("--learning-rate", "--learning_rate"):
        assert read(flag, "0.5")[0]["learning_rate"] == 0.5
        assert read(f"{flag}=5e-1")[0]["learning_rate"] == 0.5
    for argv, value in (
        (["--fast"], True), (["--fast", "true"], True), (["--fast=false"], False), (["--fast", "false"], False),
        (["--fast", "False"], False), (["--fast", "--resume"], True),
    ):  # fmt: skip
        assert read(*argv)[0]["fast"] is value
    assert read("--fast", "--resume")[1]["resume"] is True


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-8", 1e-8), ("learning_rate", "3E2", 300.0), ("learning_rate", ".5", 0.5),
        ("learning_rate", "1", 1.0), ("grad_clip", "null", None), ("grad_clip", "1e-3", 1e-3), ("grad_clip", "2", 2.0),
        ("batch_size", "null", None), ("batch_size", "64", 64), ("penalty", "null", None), ("penalty", "l2", "l2"),
        ("kind", "large", "large"), ("where", "3", 3), ("where", "there", "there"), ("epochs", "-3", -3),
        ("grad_clip", "-1e-3", -1e-3), ("grad_clip", "-.5", -0.5),
    ],
)  # fmt: skip
def test_values_are_read_alike_from_a_flag_and_a_file(file, name, text, value):
    from_flag = read(f"--{name}", text)[0][name]
    from_file = read("--config", str(file(f"{name}: {text}")))[0][name]
    checked = check_types(Training, read_yaml(file(f"{name}: {text}")))[name]
    assert (
        (from_flag, type(from_flag)) == (from_file, type(from_file)) == (checked, type(checked)) == (value, type(value))
    )


def test_text_stays_text_and_mappings_are_read(file):
    assert read("--name", "null")[0]["name"] == "null"
    assert read("--name=a=b")[0]["name"] == "a=b"
    assert read("--base", '{"p": 1e-8}')[0]["base"] == {"p": 1e-8}
    path = file("base: {lr: 1e-8, day: 2001-01-01}\ngrid: {lr: [1e-3, 1], wd: [null]}")
    training = read("--config", str(path))[0]
    assert training["base"] == {"lr": 1e-8, "day": "2001-01-01"}
    assert training["grid"] == {"lr": [1e-3, 1], "wd": [None]}


def test_what_the_file_says_and_what_the_flags_say_are_told_apart(file):
    path = str(file("epochs: 20\nfast: true"))
    classes = [Training, Options]
    assert read_arguments(classes, ["--epochs", "3"], "toy", "toy_package") == ({}, {"epochs": 3})
    assert read_arguments(classes, [], "toy", "toy_package") == ({}, {})
    assert read_arguments(classes, ["--config", path, "--resume", "--epochs=3"], "toy", "toy_package") == (
        {"epochs": 20, "fast": True},
        {"resume": True, "epochs": 3},
    )


def test_a_study_may_have_a_configuration_for_when_none_is_named(tmp_path, monkeypatch, file):
    (tmp_path / "usual_package" / "configs").mkdir(parents=True)
    (tmp_path / "usual_package" / "__init__.py").touch()
    (tmp_path / "usual_package" / "configs" / "usual.yaml").write_text("epochs: 77")
    monkeypatch.syspath_prepend(tmp_path)
    assert read(package="usual_package", default_config="usual")[0]["epochs"] == 77
    assert read("--epochs", "3", package="usual_package", default_config="usual")[0]["epochs"] == 3
    assert read("--config", str(file("fast: true")), package="usual_package", default_config="usual")[0]["epochs"] == 10


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--grad-clip", "abc"], "grad_clip: abc does not fit; give a float or null"),
        (["--batch-size", "1.5"], "batch_size: 1.5 does not fit; give an int or null"),
        (["--penalty", "l3"], "penalty: l3 does not fit; give one of 'l1', 'l2' or null"),
        (["--kind", "huge"], "kind: huge does not fit; give one of 'small', 'large'"),
        (["--learning-rate", "fast"], "learning_rate: fast does not fit; give a float"),
        (["--epochs", "1e3"], "epochs: 1e3 does not fit; give an int"),
        (["--epochs", "true"], "epochs: true does not fit; give an int"),
        (["--epochs", ""], "epochs: '' does not fit; give an int"),
        (["--fast=maybe"], "fast: maybe does not fit; give true or false"),
        (["--learning-rate"], "learning_rate: no value is given; give a float"),
        (["--learning-rate", "nan"], "learning_rate: nan does not fit; give a float"),
        (["--grad-clip", "inf"], "grad_clip: inf does not fit; give a float or null"),
        (["--grid", '{"p": 3}'], 'grid: {"p": 3} does not fit; give a mapping, each value a list'),
        (["--epoch", "3"], "'epoch' is no field here; did you mean 'epochs'?"),
        (["--learning-rat", "3"], "'learning_rat' is no field here; did you mean 'learning_rate'?"),
        (["--frobnicate", "3"], "'frobnicate' is no field here; see --help for those there are"),
        (["loose"], "'loose' belongs to no flag; see --help for those there are"),
        (["--fast", "maybe"], "'maybe' belongs to no flag; see --help for those there are"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_gets_one_short_sentence(argv, expected):
    assert error(*argv) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate: null", ["learning_rate: null", "a float"]),
        ("learning_rate: .nan", ["learning_rate: nan is", "finite"]),
        ("grid: {lr: [0.1, .inf]}", ["grid.lr: inf is", "finite"]),
        ("grid: {1: [2]}", ["grid: the key 1 is"]),
        ("grad_clip: abc", ["grad_clip: abc", "a float or null"]),
        ("epocs: 3", ["'epocs'", "'epochs'"]),
        ("config: other.yaml", ["'config'"]),
        ("__path__: x", ["'__path__'"]),
        ("base.p: 3", ["'base.p'", "'base'"]),
        ("epochs: [1, 2]", ["epochs: [1, 2]", "an int"]),
        ("epochs: 2001-99-99", ["epochs: 2001-99-99"]),
        ("- 1", ["c.yaml", "mapping"]),
        ("3", ["c.yaml", "mapping"]),
        ("", ["c.yaml", "mapping"]),
        ("a: {", ["c.yaml", "not valid YAML"]),
        ("a: !!python/object/apply:os.getcwd []", ["c.yaml", "not valid YAML"]),
        ("base: &a {p: *a}", ["c.yaml", "not valid YAML"]),
        ("base: {1: 2}", ["c.yaml", "base"]),
        ("base: !!binary aGk=", ["c.yaml", "base"]),
        ("1: 2", ["c.yaml"]),
        (b"\xff\xfe", ["c.yaml", "UTF-8"]),
        (b"\x00", ["c.yaml"]),
        ("[" * 5000, ["c.yaml"]),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_does_not_fit_in_a_file_gets_one_short_sentence(file, text, words):
    message = error("--config", str(file(text)))
    for word in words:
        assert word in message


def test_garbage_is_always_the_users_mistake(file):
    """Random bytes, random YAML structures under known and unknown names: a UserError or a valid configuration."""
    draw = random.Random(0)

    def structure(depth):
        kind = draw.randrange(9 if depth else 6)
        if kind > 6:
            return {
                draw.choice(["epochs", "base", "x", 1, None]): structure(depth - 1) for _ in range(draw.randrange(3))
            }
        if kind == 6:
            return [structure(depth - 1) for _ in range(draw.randrange(3))]
        return draw.choice([None, True, 3, -1e300, float("inf"), "text", "1e-8", "{", "\x00", "é", ""])

    names = ["learning_rate", "epochs", "grad_clip", "kind", "penalty", "fast", "where", "name", "base", "grid", "zzz"]
    for turn in range(150):
        if turn % 3 == 0:
            text = bytes(draw.randrange(256) for _ in range(draw.randrange(30)))
        elif turn % 3 == 1:
            text = "".join(draw.choice(string.printable + "{}[]:-&*!") for _ in range(draw.randrange(30)))
        else:
            text = yaml.dump({draw.choice(names): structure(3) for _ in range(2)}, allow_unicode=True)
        path = file(text)
        with contextlib.suppress(UserError):
            values = read("--config", str(path))[0]
            build(Training, values)
            to_dict(Training(**values))
        with contextlib.suppress(UserError):
            from_dict(Training, {**to_dict(Training()), **check_types(Training, read_yaml(path))}, "c.yaml")


def test_help_shows_the_docstrings(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    assert "Largest norm." in capsys.readouterr().out


def test_a_configuration_is_found_by_path_or_name_and_a_missing_one_lists_those_there_are(tmp_path, monkeypatch):
    (tmp_path / "toy_package" / "configs").mkdir(parents=True)
    (tmp_path / "toy_package" / "__init__.py").touch()
    for name in ("quick", "lr0.5"):
        (tmp_path / "toy_package" / "configs" / f"{name}.yaml").write_text("epochs: 77")
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "toy_package" / "configs" / "quick.yaml"
    for name in ("quick", "quick.yaml", "configs/quick.yaml"):
        assert find_config(name, "toy_package") == own
    assert find_config("lr0.5", "toy_package").name == "lr0.5.yaml"
    assert read("--config", "quick")[0]["epochs"] == 77
    for name in ("slow", "quick.json", "elsewhere/quick", "", "..", "configs"):
        with pytest.raises(UserError, match=rf"--config: no file '{name}'.* lr0.5, quick"):
            find_config(name, "toy_package")
    with pytest.raises(UserError, match="--config: no file ''"):
        read("--config")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").write_text("epochs: 88")
    assert read("--config", "quick")[0]["epochs"] == 88
    assert take_config(["--a", "--config", "quick", "3"], "toy_package")[1] == ["--a", "3"]


def test_what_post_init_refuses_is_the_users_mistake():
    with pytest.raises(UserError, match=r"learning_rate: -1.0 must be above 0"):
        build(Training, {"learning_rate": -1.0})
    stored = to_dict(Training())
    for change in ({"learning_rate": -1.0}, {"learning_rate": "x"}, {"kind": "huge"}, {"epochs": None}):
        with pytest.raises(UserError, match=rf"config.yaml: {next(iter(change))}: "):
            from_dict(Training, stored | change, "config.yaml")


def test_stored_fields_must_be_those_there_are():
    stored = to_dict(Training(epochs=3))
    assert from_dict(Training, stored, "config.yaml") == Training(epochs=3)
    del stored["fast"]
    with pytest.raises(UserError, match=r"config.yaml: fields missing \['fast'\], unknown \['slow'\]"):
        from_dict(Training, stored | {"slow": 1}, "config.yaml")
    with pytest.raises(UserError, match=r"config.yaml: fields missing \['fast'\], unknown \[\]"):
        from_dict(Training, stored, "config.yaml")
    with pytest.raises(UserError, match=r"config.yaml: fields missing \[\], unknown \['slow'\]"):
        from_dict(Training, to_dict(Training()) | {"slow": 1}, "config.yaml")


def test_the_hash_is_a_known_one_and_heeds_every_value():
    values = {"lr": 1e-3, "name": "é", "grid": {"a": [1, None]}, "on": True}
    assert config_hash(values) == "e4371474"
    assert config_hash(dict(reversed(values.items()))) == config_hash(values)
    changed = [{"lr": 1.1e-3}, {"name": "e"}, {"grid": {"a": [1]}}, {"on": False}, {"more": 1}]
    assert len({config_hash(values | change) for change in changed} | {config_hash(values)}) == 6
    with pytest.raises(ValueError, match="JSON"):
        config_hash({"lr": float("nan")})


def test_differences_name_each_field_that_differs():
    stored, given = {"a": 1, "b": None, "c": [1]}, {"a": 2, "c": [1], "d": "x"}
    assert differences(stored, stored) == []
    assert differences(stored, given) == [
        "a: stored 1, given 2",
        "b: stored None, given 'nothing'",
        "d: stored 'nothing', given 'x'",
    ]
    assert differences({"a": "stored"}, {"a": "given"}, "run-1", "run-2") == ["a: run-1 'stored', run-2 'given'"]


def test_yaml_comes_back_as_it_was(file):
    values = {
        "b": 1e-8,
        "a": None,
        "c": [True, "1e-8", "null", "2001-01-01"],
        "d": {"x": -1.5e300},
        "e": "1:30",
        "f": 3,
    }
    again = read_yaml(file(to_yaml(values)))
    assert again == values
    assert list(again) == list(values)
    assert read_yaml(file("x: -.5e3\ny: 1E+2\nz: 1e5x")) == {"x": -500.0, "y": 100.0, "z": "1e5x"}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml: there is no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path)


# Numbers of YAML 1.1 that other readers take for something else.
ODD_NUMBERS = ["010", "0x10", "0b11", "1_000", "1:30", "0o17", "+08"]


@pytest.mark.parametrize("text", ODD_NUMBERS)
def test_a_number_means_one_thing_in_a_file_and_as_a_flag(text, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"epochs: {text}\n")
    for argv in (["--epochs", text], ["--config", str(file)]):
        with pytest.raises(UserError, match=rf"epochs: {re.escape(text)} does not fit; give an int"):
            read_arguments([Training], argv, "toy train", "toy_study")
    file.write_text(f"name: {text}\ngrid:\n  a: [{text}]\n")
    assert read_arguments([Training], ["--config", str(file)], "", "toy_study")[0] == {
        "name": text,
        "grid": {"a": [text]},
    }
    file.write_text(to_yaml({"name": text}))
    assert read_yaml(file) == {"name": text}


@pytest.mark.parametrize("text", ["yes", "off", "on", "no"])
def test_truth_is_true_or_false_alone(text, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"fast: {text}\n")
    with pytest.raises(UserError, match=f"fast: {text} does not fit; give true or false"):
        read_arguments([Training], ["--config", str(file)], "toy train", "toy_study")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("epochs: 1\nname: a\nepochs: 2\n", "line 3, column 1"),
        ("grid:\n  a: [1]\n  a: [2]\n", "line 3, column 3"),
        ("base: {x: {b: 1, b: 1}}\n", "line 1, column 18"),
    ],
)
def test_a_key_that_stands_twice_is_refused_where_it_stands_again(text, where, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="stands there twice") as caught:
        read_yaml(file)
    assert where in " ".join(str(caught.value).split())
    file.write_text("epochs: 1\nbase: {epochs: 2, other: {epochs: 3}}\n")
    assert read_yaml(file)["base"]["other"] == {"epochs": 3}


def test_of_a_flag_that_stands_twice_the_last_one_holds():
    """As everywhere: what is added to the end of a command overrides."""
    assert read_arguments([Training], ["--epochs", "3", "--epochs=4"], "", "toy_study")[1] == {"epochs": 4}


def test_two_files_of_settings_are_refused(file, tmp_path):
    path, other = file("epochs: 3"), tmp_path / "other.yaml"
    other.write_text("learning_rate: 0.5\n")
    for second in (["--config", str(other)], [f"--config={other}"]):
        with pytest.raises(UserError, match=rf"^--config: is given twice, as {path} and as {other}; give one"):
            read_arguments([Training], ["--config", str(path), *second], "", "toy_study")
    assert read_arguments([Training], ["--config", str(path), f"--config={path}"], "", "toy_study")[0] == {"epochs": 3}


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(b"\xef\xbb\xbfepochs: 4\n")
    assert read_yaml(file) == {"epochs": 4}


def test_text_within_a_list_of_numbers_is_refused():
    with pytest.raises(UserError, match=r"sizes: .* does not fit; give a list, each an int"):
        read_arguments([Sizes], ["--sizes", "[1, 010]"], "", "toy_study")
    assert read_arguments([Sizes], ["--sizes", "[1, 10]"], "", "toy_study")[1] == {"sizes": [1, 10]}


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf"])
def test_a_number_without_bounds_is_finite_all_the_same(text):
    with pytest.raises(UserError, match=r"^shift: -?(nan|inf) does not fit; give a finite number$"):
        read_arguments([Sizes], ["--shift", text], "", "toy_study")
    assert read_arguments([Sizes], ["--shift", "-1e300"], "", "toy_study")[1] == {"shift": -1e300}


@dataclass(frozen=True)
class Sizes:
    """Widths."""

    shift: float = 0.0
    """Any number."""
    sizes: list[int] = field(default_factory=list)
    """Of layers."""


def test_more_seeds_or_layers_than_a_plan_can_hold_are_refused():
    from studycore.bounds import WORDS, Layers, Seeds

    for kind, most in ((Seeds, 10_000), (Layers, 1000)):
        assert kind(most) == most
        assert str(most) in WORDS[kind]
        for value in (0, most + 1):
            with pytest.raises(ValueError, match=str(value)):
                kind(value)
    with pytest.raises(ValueError, match=r"^seeds: 1000000 does not fit; give an int from 1 to 10000$"):
        TrainOptions(seeds=1_000_000)


def test_a_value_is_itself_whatever_equal_ones_came_before():
    """What is remembered of a value is of its type, and nobody else's."""
    assert check_types(Training, {"fast": True, "epochs": 1, "learning_rate": 1.0}) == {
        "fast": True, "epochs": 1, "learning_rate": 1.0
    }  # fmt: skip
    for changed in ({"fast": 1}, {"fast": 1.0}, {"epochs": True}):
        with pytest.raises(UserError, match="does not fit"):
            check_types(Training, changed)
    assert [str(check_types(Training, {"learning_rate": x})["learning_rate"]) for x in (0.0, -0.0)] == ["0.0", "-0.0"]
    first = check_types(Training, {"base": "{a: [1]}"})["base"]
    first["a"].append(2)
    assert check_types(Training, {"base": "{a: [1]}"})["base"] == {"a": [1]}
