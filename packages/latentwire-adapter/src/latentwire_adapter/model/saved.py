"""A module with its constructor's arguments as a folder: config.json and model.safetensors."""

from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from studycore.errors import UserError
from studycore.models import load_module, save_module

Module = TypeVar("Module", bound="Saved")


class Saved(nn.Module):
    """A module that is saved and loaded as Hugging Face's are; `self.arguments` is what its constructor was given."""

    arguments: dict[str, Any]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the folder."""
        save_module(self, folder, {"class": type(self).__name__, **self.arguments})

    @classmethod
    def from_pretrained(cls: type[Module], folder: str | Path) -> Module:
        """The module of a folder. UserError when it holds none, or one of another class."""

        def build(arguments: dict[str, Any]) -> Module:
            if (name := arguments.pop("class", None)) != cls.__name__:
                raise UserError(f"{folder}: holds a {name} and no {cls.__name__}; name its folder")
            return cls(**arguments)

        return load_module(folder, build, f"a saved {cls.__name__}")
