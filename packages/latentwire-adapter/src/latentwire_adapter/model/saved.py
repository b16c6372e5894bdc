"""A module with its constructor's arguments as a folder: config.json and model.safetensors."""

import json
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from studycore.errors import UserError
from studycore.files import read_json, write_atomic

Module = TypeVar("Module", bound="Saved")


class Saved(nn.Module):
    """A module that is saved and loaded as Hugging Face's are; `self.arguments` is what its constructor was given."""

    arguments: dict[str, Any]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the folder."""
        from safetensors.torch import save_file

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / "config.json", json.dumps({"class": type(self).__name__, **self.arguments}, indent=2))
        save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, place / "model.safetensors")

    @classmethod
    def from_pretrained(cls: type[Module], folder: str | Path) -> Module:
        """The module of a folder. UserError when it holds none, or one of another class."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        place = Path(folder)
        arguments = read_json(place / "config.json")
        if (name := arguments.pop("class", None)) != cls.__name__:
            raise UserError(f"{place}: holds a {name} and no {cls.__name__}; name its folder")
        module = cls(**arguments)
        try:
            module.load_state_dict(load_file(place / "model.safetensors"))
        except (SafetensorError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{place}: cannot be loaded ({reason}); restore it or train again") from None
        return module
