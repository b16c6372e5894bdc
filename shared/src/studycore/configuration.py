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
    classes: Sequence[type], argv: Sequence[str], prog: str, package: str, description: str = "", partial: bool = False
) -> list[dict[str, Any]]:
    """The fields of each dataclass in `classes`, from `argv`.

    Flags may have dashes or underscores and win over `--config FILE` wherever that stands. With `partial` only
    what was given is returned. UserError for whatever does not fit.
    """
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="a YAML file, or the name of a shipped one")
    for cls in classes:
        parser.add_class_arguments(cls, as_group=True)
    try:
        parsed = parser.parse_args(_flags(argv, package), defaults=not partial)
    except (jsonargparse.ArgumentError, argparse_error(), TypeError) as error:
        raise UserError(_sentence(str(error), classes)) from None
    values = parsed.as_dict()
    return [{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values} for cls in classes]


def argparse_error() -> type[Exception]:
    import argparse

    return argparse.ArgumentError


def _flags(argv: Sequence[str], package: str) -> list[str]:
    """`--a-b` as `--a_b`; `--config NAME` found and moved to the front, so that explicit flags win over it."""
    first, rest = [], []
    items = iter(argv)
    for item in items:
        flag, equals, value = item.partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
        if flag == "--config":
            value = value if equals else next(items, "")
            first.append(f"--config={find_config(value, package)}")
        else:
            rest.append(flag + equals + value if item.startswith("--") else item)
    return first + rest


def _sentence(message: str, classes: Sequence[type]) -> str:
    """jsonargparse's message on one line, with the nearest field name where one was misspelt."""
    message = " ".join(message.split())
    unknown = re.search(r"(?:Key|option|Unrecognized arguments:|does not accept (?:option|nested key)|:) '?(?:--)?([A-Za-z_]\w*)'?", message)
    names = [f.name for cls in classes for f in dataclasses.fields(cls)]
    if unknown and unknown.group(1) not in names:
        near = difflib.get_close_matches(unknown.group(1), names, n=1)
        if near:
            message += f" (did you mean '{near[0]}'?)"
    return message


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
