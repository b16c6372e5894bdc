"""Configuration: frozen dataclasses, filled from defaults < YAML file < command-line flags, by jsonargparse."""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
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


def parse(
    classes: Sequence[type], argv: Sequence[str], prog: str, package: str, partial: bool = False, file: bool = True
) -> list[dict[str, Any]]:
    """The fields of each dataclass in `classes`, from `argv`.

    Flags may have dashes or underscores and win over `--config FILE` wherever that stands. With `partial` only
    what was given is returned; without `file` there is no --config. UserError for whatever does not fit.
    """
    import argparse

    import jsonargparse

    parser = _parser(classes, prog)
    if file:
        help_text = "YAML file, or the name of a configuration that comes with the study"
        parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help=help_text)
        path, rest = take_config(argv, package)
        if path:
            _check_fields(classes, read_yaml(path), f"{path}: ")
        argv = [*([f"--config={path}"] if path else []), *rest]
    try:
        values = parser.parse_args(_flags(argv, classes), defaults=not partial).as_dict()
    except (argparse.ArgumentError, TypeError) as error:
        raise UserError(_sentence(str(error), classes)) from None
    _check_fields(classes, {name: value for name, value in values.items() if name != "config"})
    return [{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values} for cls in classes]


def check_types(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of `cls`, with the types that `parse` would give them. UserError for whatever does not fit."""
    import argparse

    _check_fields([cls], values)
    try:
        checked = _checker(cls).parse_object(dict(values), defaults=False).as_dict()
    except (argparse.ArgumentError, TypeError) as error:
        raise UserError(_sentence(str(error), [cls])) from None
    return {name: checked[name] for name in values}


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """`cls(**values)`; what its __post_init__ finds wrong is the user's mistake."""
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(str(error)) from None


def take_config(argv: Sequence[str], package: str) -> tuple[Path | None, list[str]]:
    """The file of `--config`, found, and the other arguments."""
    path, rest = None, []
    items = iter(argv)
    for item in items:
        flag, equals, value = item.partition("=")
        if flag == "--config":
            path = find_config(value if equals else next(items, ""), package)
        else:
            rest.append(item)
    return path, rest


def _parser(classes: Sequence[type], prog: str) -> Any:
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)
    for cls in classes:
        parser.add_class_arguments(cls)
    return parser


@cache
def _checker(cls: type) -> Any:
    """The parser that `check_types` uses; building one takes longer than using it."""
    return _parser([cls], "")


def _check_fields(classes: Sequence[type], values: Mapping[str, Any], source: str = "") -> None:
    """What jsonargparse lets pass: unknown names that it keeps for itself, null where there must be a value, NaN."""
    types = {name: hint for cls in classes for name, hint in get_type_hints(cls).items()}
    for name, value in values.items():
        if name not in types:
            raise UserError(f"{source}{_unknown(str(name), classes)}")
        if value is None and type(None) not in (*get_args(types[name]), types[name]) and types[name] is not Any:
            raise UserError(f"{source}{name}: null does not fit; give {_words(types[name])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{source}{name}: {value} does not fit; give a finite number")


def _flags(argv: Sequence[str], classes: Sequence[type]) -> list[str]:
    """`--a-b` as `--a_b`, a bare `--switch` as `--switch=true`, and `--a -1e-3`, which argparse takes for a flag, as one."""
    switches = {f.name for cls in classes for f in dataclasses.fields(cls) if f.type in (bool, "bool")}
    flags: list[str] = []
    for item, following in zip(argv, [*argv[1:], "--"], strict=False):
        flag, equals, value = item.partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
            if flag[2:] in switches and not equals and following.lower() not in ("true", "false"):
                equals, value = "=", "true"
        elif re.match(r"-\.?\d", item) and flags and flags[-1].startswith("--") and "=" not in flags[-1]:
            flags[-1] += f"={item}"
            continue
        flags.append(flag + equals + value)
    return flags


def _sentence(message: str, classes: Sequence[type]) -> str:
    """jsonargparse's message as one short sentence that names field, value and mend."""
    message = " ".join(message.split())
    types = {name: hint for cls in classes for name, hint in get_type_hints(cls).items()}
    wrong = re.search(r'Parser key "(\w+)".*(?:Got|Given) value: ?(.*)', message)
    if wrong and wrong.group(1) in types:
        value = wrong.group(2) or "''"
        return f"{wrong.group(1)}: {value} does not fit; give {_words(types[wrong.group(1)])}"
    if bare := re.search(r"argument --(\w+): expected one argument", message):
        return (
            f"{bare.group(1)}: no value is given; give {_words(types[bare.group(1)])}"
            if bare.group(1) in types
            else message
        )
    if unknown := re.search(r"(?:Option '|unrecognized arguments: --|Key ')([A-Za-z_]\w*)", message):
        return _unknown(unknown.group(1), classes)
    if loose := re.search(r"unrecognized arguments: (.*)", message):
        return f"'{loose.group(1)}' belongs to no flag; see --help for those there are"
    return message


def _unknown(name: str, classes: Sequence[type]) -> str:
    names = [f.name for cls in classes for f in dataclasses.fields(cls)]
    near = difflib.get_close_matches(name, names, n=1)
    return f"'{name}' is no field here; " + (f"did you mean '{near[0]}'?" if near else "see --help for those there are")


def _words(hint: Any) -> str:
    """A type as a user would say it: "float or null", "one of 'a', 'b'"."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
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
    return plain.get(get_origin(hint) or hint, str(hint))


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
            if not _is_plain({name: value}):
                raise UserError(
                    f"{path}: {name}: holds what JSON cannot; use text, finite numbers, true, false, null, lists, mappings"
                )
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}; mend it there") from None
    return values


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of YAML 1.2, and dates left as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )
