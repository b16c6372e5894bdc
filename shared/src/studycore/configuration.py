"""Configuration: frozen dataclasses, filled from defaults < YAML file < command-line flags, by jsonargparse."""

import argparse
import copy
import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from studycore.errors import UserError
from studycore.files import read_text


def find_config(name: str, package: str) -> Path:
    """The file `name`, or else the package's own `configs/<name>.yaml`. UserError lists the names there are."""
    if Path(name).is_file():
        return Path(name)
    own = Path(str(resources.files(package))) / "configs"
    wanted = own / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    if wanted.is_file() and Path(name).parent in (Path("."), Path("configs")):
        return wanted
    names = ", ".join(sorted(path.stem for path in own.glob("*.yaml")))
    raise UserError(f"--config: no file '{name}' and no configuration of that name; there are {names}")


def read_arguments(
    classes: Sequence[type], argv: Sequence[str], prog: str, package: str, default_config: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the file of --config says, what the flags say) of the fields of `classes`, each value of its field's type.

    Without --config the package's configuration `default_config` is read, if one is named. Flags may have dashes or
    underscores. UserError for whatever does not fit; --help prints the flags and ends the command.
    """
    if {"-h", "--help"} & set(argv):
        _parser(tuple(classes), prog).print_help()
        raise SystemExit(0)
    path, rest = take_config(argv, package, default_config)
    file = {name: check(classes, name, value, f"{path}: ") for name, value in (read_yaml(path) if path else {}).items()}
    return file, {name: check(classes, name, text) for name, text in _flags(rest, classes)}


def check_types(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of `cls`, each of its field's type. UserError for whatever does not fit."""
    return {name: check([cls], name, value) for name, value in values.items()}


def check(classes: Sequence[type], name: str, value: Any, source: str = "") -> Any:
    """The value of one field, of the field's type. UserError if it does not fit.

    Text, such as a flag's, is read as in a file wherever the field takes something else: one number means one thing.
    """
    owner = next((cls for cls in classes if name in _hints(cls)), None)
    if owner is None:
        names = [known for cls in classes for known in _hints(cls)]
        near = difflib.get_close_matches(str(name), names, n=1)
        mend = f"did you mean '{near[0]}'?" if near else "see --help for those there are"
        raise UserError(f"{source}'{name}' is no field here; {mend}")
    is_plain = isinstance(value, str | int | None) or (isinstance(value, float) and value != 0)  # -0.0 is equal to 0.0
    try:
        checked = copy.deepcopy((_one_of_field if is_plain else _of_field)(owner, name, value))
    except ValueError:
        shown = "null" if value is None else value if value != "" else "''"
        raise UserError(f"{source}{name}: {shown} does not fit; give {_words(_hints(owner)[name])}") from None
    if isinstance(checked, float) and not math.isfinite(checked):
        raise UserError(f"{source}{name}: {checked} does not fit; give a finite number")
    return checked


def _of_field(owner: type, name: str, value: Any) -> Any:
    """The value as the field has it. ValueError if it does not fit."""
    hint = _hints(owner)[name]
    if isinstance(value, str):
        value = _value_of(value, hint)
    # What jsonargparse lets pass: null where there must be a value.
    if value is None and type(None) not in (*get_args(hint), hint) and hint is not Any:
        raise ValueError
    if isinstance(value, str) and not _takes_text(hint):
        raise ValueError
    try:
        values = _parser((owner,), "").parse_object({name: copy.deepcopy(value)}, defaults=False)  # which changes it
    except (argparse.ArgumentError, TypeError, KeyError):
        raise ValueError from None
    checked = values.as_dict()[name]
    if not _same_texts(value, checked):
        if not _takes_text(hint):
            raise ValueError
        checked = value
    # The restricted types are subclasses; a configuration holds plain numbers.
    plain = next((kind for kind in (bool, int, float) if isinstance(checked, kind)), None)
    return plain(checked) if plain else checked


_one_of_field = lru_cache(maxsize=4096, typed=True)(_of_field)
"""The same, for what has no parts: of many runs most settings are alike, and jsonargparse takes a millisecond for each."""


def _takes_text(hint: Any) -> bool:
    return hint in (str, Any) or any(isinstance(part, str) or _takes_text(part) for part in get_args(hint))


def _same_texts(given: Any, checked: Any) -> bool:
    """Whether all text within a value is still text: jsonargparse reads numbers from it, by rules of its own."""
    if isinstance(given, list) and isinstance(checked, list):
        return all(map(_same_texts, given, checked))
    if isinstance(given, dict) and isinstance(checked, dict):
        return all(_same_texts(part, checked[key]) for key, part in given.items() if key in checked)
    return isinstance(given, str) == isinstance(checked, str)


def _value_of(text: str, hint: Any) -> Any:
    """What the text means where this type is wanted; text that is no valid YAML stays as it is."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if text == "null" and type(None) in kinds:
        return None
    if all(k in (str, type(None)) or any(isinstance(choice, str) for choice in get_args(k)) for k in kinds):
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """`cls(**values)`; what its __post_init__ finds wrong is the user's mistake."""
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(str(error)) from None


def take_config(argv: Sequence[str], package: str, default: str = "") -> tuple[Path | None, list[str]]:
    """The file of `--config`, found, and the other arguments; without the flag the configuration `default`, if named.

    UserError when it names two: a flag that is added at the end overrides one value, and a file would override many.
    """
    path: Path | None = None
    rest = []
    items = iter(argv)
    for item in items:
        flag, equals, value = item.partition("=")
        if flag == "--config":
            path_given = find_config(value if equals else next(items, ""), package)
            if path not in (None, path_given):
                raise UserError(
                    f"--config: is given twice, as {path} and as {path_given}; give one, which holds all settings"
                )
            path = path_given
        else:
            rest.append(item)
    return path or (find_config(default, package) if default else None), rest


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The type of every field of a dataclass."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


@cache
def _parser(classes: tuple[type, ...], prog: str) -> Any:
    """A parser of the fields of `classes`; building one takes longer than using it."""
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    for cls in classes:
        parser.add_class_arguments(cls)
    if prog:
        parser.add_argument("--config", help="YAML file, or the name of a configuration that comes with the study")
    return parser


def _flags(argv: Sequence[str], classes: Sequence[type]) -> list[tuple[str, str]]:
    """(name, text) of each flag: `--a-b x`, `--a_b=x`, or a bare `--switch`, which is true. UserError for anything else."""
    switches = {name for cls in classes for name, hint in _hints(cls).items() if hint is bool}
    known = {name for cls in classes for name in _hints(cls)}
    flags, items = [], list(argv)
    while items:
        item = items.pop(0)
        flag, equals, text = item.partition("=")
        if not flag.startswith("--") or flag == "--":
            raise UserError(f"'{item}' belongs to no flag; see --help for those there are")
        name = flag[2:].replace("-", "_")
        if name not in known:
            check(classes, name, text)  # says which flag may have been meant
        if not equals:
            following = items[0] if items else "--"
            value_follows = not following.startswith("--") and (
                name not in switches or following.lower() in ("true", "false")
            )
            if not value_follows and name not in switches:
                hint = next(_hints(cls)[name] for cls in classes if name in _hints(cls))
                raise UserError(f"{name}: no value is given; give {_words(hint)}")
            text = items.pop(0) if value_follows else "true"
        flags.append((name, text))
    return flags


def _words(hint: Any) -> str:
    """A type as a user would say it: "float or null", "one of 'a', 'b'"."""
    from studycore.bounds import WORDS

    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if get_origin(hint) is list and (each := get_args(hint)[0]) is not Any:
        return f"a list, each {_words(each)}"
    if get_origin(hint) is dict and (each := get_args(hint)[1]) is not Any:
        return f"a mapping, each value {_words(each)}"
    plain = {
        type(None): "null",
        int: "an int",
        float: "a float",
        bool: "true or false",
        str: "text",
        dict: "a mapping",
        list: "a list",
    }
    return (plain | WORDS).get(get_origin(hint) or hint, str(hint))


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))


def from_dict(cls: type, values: Mapping[str, Any], source: str) -> Any:
    """A `cls` from stored values: every field present and none unknown, else UserError naming `source`."""
    names = {f.name for f in dataclasses.fields(cls)}
    if set(values) != names:
        lacks, extra = sorted(names - set(values)), sorted(set(values) - names)
        raise UserError(f"{source}: fields missing {lacks}, unknown {extra}; it was written by another version")
    try:
        return cls(**check_types(cls, values))
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from None


def config_hash(values: Mapping[str, Any]) -> str:
    """8 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()[:8]


def differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], one: str = "stored", other: str = "given"
) -> list[str]:
    """One phrase per field that differs, with what `one` and `other` have."""
    keys = sorted(set(stored) | set(given))
    none = object()
    return [
        f"{key}: {one} {stored.get(key, 'nothing')!r}, {other} {given.get(key, 'nothing')!r}"
        for key in keys
        if stored.get(key, none) != given.get(key, none)
    ]


def to_yaml(values: Mapping[str, Any]) -> str:
    return str(yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping of plain values, with numbers like 1e-8 read as numbers. UserError for anything else."""
    text = read_text(path)
    try:
        values = yaml.load(text, Loader=_Loader)
        if not isinstance(values, dict):
            raise UserError(f"{path}: holds no mapping; write one 'field: value' a line")
        for name, value in values.items():
            if odd := _not_plain({name: value}):
                where, part = odd
                raise UserError(
                    f"{path}: {where}: {str(part)[:40]} is no value here; use text, finite numbers, true, false, null, lists, mappings"
                )
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}; mend it there") from None
    return values


def _not_plain(value: Any, where: str = "") -> tuple[str, Any] | None:
    """(field, value) of the first part that JSON cannot hold, or None."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                return where or str(key), f"the key {key}"
            if odd := _not_plain(part, f"{where}.{key}".lstrip(".")):
                return odd
        return None
    if isinstance(value, list):
        return next((odd for part in value if (odd := _not_plain(part, where))), None)
    plain = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    return None if plain else (where, value)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 where 010, 0x10, 1_000, 1:30, yes, no and dates are text, and each key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        nodes = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        keys = [(key.tag, key.value) for key in nodes]
        if twice := [key for i, key in enumerate(nodes) if keys[i] in keys[:i]]:
            raise yaml.constructor.ConstructorError(
                None, None, f"'{twice[0].value}' stands there twice", twice[0].start_mark
            )
        return super().construct_mapping(node, deep)


_OTHERS = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "bool", "int", "float")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would take for a number."""


_PLAIN = {
    "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
    "int": r"^[-+]?(?:0|[1-9]\d*)$",
    "float": r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
}
for _class in (_Loader, _Dumper):
    for _kind, _pattern in _PLAIN.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list("-+0123456789.tTfF"))
