"""Configuration: frozen dataclasses, filled from defaults < YAML file < command-line flags, by jsonargparse."""

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from studycore.errors import UserError


def find_config(name: str, package: str) -> Path:
    """The file `name`, or else the package's own `configs/<name>.yaml`. UserError lists the names there are."""
    if Path(name).is_file():
        return Path(name)
    own = Path(str(resources.files(package))) / "configs"
    if (own / f"{Path(name).stem}.yaml").is_file() and Path(name).parent in (Path("."), Path("configs")):
        return own / f"{Path(name).stem}.yaml"
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
        argv = [*([f"--config={path}"] if path else []), *rest]
    try:
        values = parser.parse_args(_flags(argv, classes), defaults=not partial).as_dict()
    except (argparse.ArgumentError, TypeError) as error:
        raise UserError(_sentence(str(error), classes)) from None
    return [{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values} for cls in classes]


def check_types(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Some fields of `cls`, with the types that `parse` would give them. UserError for whatever does not fit."""
    import argparse

    try:
        checked = _parser([cls], "").parse_object(dict(values), defaults=False).as_dict()
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
    parser = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False)
    for cls in classes:
        parser.add_class_arguments(cls)
    return parser


def _flags(argv: Sequence[str], classes: Sequence[type]) -> list[str]:
    """`--a-b` as `--a_b`, and a bare `--switch` as `--switch=true`."""
    switches = {f.name for cls in classes for f in dataclasses.fields(cls) if f.type in (bool, "bool")}
    flags = []
    for item, following in zip(argv, [*argv[1:], "--"], strict=False):
        flag, equals, value = item.partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
            if flag[2:] in switches and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
        flags.append(flag + equals + value)
    return flags


def _sentence(message: str, classes: Sequence[type]) -> str:
    """jsonargparse's message as one sentence that names field, value and mend."""
    message = " ".join(message.split())
    wrong = re.search(r'Parser key "(\w+)": (?:Expected an? )?(.*?)\.? Got value: (.*)', message)
    if wrong:
        name, expected, value = wrong.groups()
        expected = re.sub(r"<class '(\w+)'>", r"\1", expected).replace("typing.Literal", "one of ")
        return f"{name}: {value} does not fit; give {expected}"
    unknown = re.search(r"(?:Option '|unrecognized arguments: --|Key ')([A-Za-z_]\w*)", message)
    if unknown is None:
        return message
    names = [f.name for cls in classes for f in dataclasses.fields(cls)]
    near = difflib.get_close_matches(unknown.group(1), names, n=1)
    mend = f"did you mean '{near[0]}'?" if near else "see --help for those there are"
    return f"'{unknown.group(1)}' is no field here; {mend}"


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))


def from_dict(cls: type, values: Mapping[str, Any], source: str) -> Any:
    """A `cls` from stored values: every field present and none unknown, else UserError naming `source`."""
    names = {f.name for f in dataclasses.fields(cls)}
    if set(values) != names:
        lacks, extra = sorted(names - set(values)), sorted(set(values) - names)
        raise UserError(f"{source}: fields missing {lacks}, unknown {extra}; it was written by another version")
    return cls(**values)


def config_hash(values: Mapping[str, Any]) -> str:
    """8 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()[:8]


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One phrase per field that differs."""
    keys = sorted(set(stored) | set(given))
    none = object()
    return [
        f"{key}: stored {stored.get(key, 'nothing')!r}, given {given.get(key, 'nothing')!r}"
        for key in keys
        if stored.get(key, none) != given.get(key, none)
    ]


def to_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, with numbers like 1e-8 read as numbers. UserError for anything else."""
    try:
        values = yaml.load(path.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no mapping of field names to values")
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats of YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
