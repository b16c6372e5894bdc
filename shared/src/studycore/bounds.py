"""Types of settings that say their own bounds, for the fields of configurations (jsonargparse's restricted types)."""

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, get_args, get_type_hints

if TYPE_CHECKING:
    NonNegativeInt: TypeAlias = int
    PositiveInt: TypeAlias = int
    AtLeast2: TypeAlias = int
    AtLeast3: TypeAlias = int
    Seeds: TypeAlias = int
    Layers: TypeAlias = int
    NonNegativeFloat: TypeAlias = float
    PositiveFloat: TypeAlias = float
    BelowOne: TypeAlias = float
    Share: TypeAlias = float
else:
    from jsonargparse.typing import (
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
        restricted_number_type,
    )

    AtLeast2 = restricted_number_type("AtLeast2", int, (">=", 2))
    AtLeast3 = restricted_number_type("AtLeast3", int, (">=", 3))
    # Each seed is a job and each layer modules, which a plan or a dry run makes: more would take hours to be told of.
    Seeds = restricted_number_type("Seeds", int, [(">=", 1), ("<=", 10_000)])
    Layers = restricted_number_type("Layers", int, [(">=", 1), ("<=", 1000)])
    BelowOne = restricted_number_type("BelowOne", float, [(">=", 0), ("<", 1)])
    Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])

WORDS: dict[Any, str] = {
    NonNegativeInt: "an int of 0 or more",
    PositiveInt: "an int of 1 or more",
    AtLeast2: "an int of 2 or more",
    AtLeast3: "an int of 3 or more",
    Seeds: "an int from 1 to 10000",
    Layers: "an int from 1 to 1000",
    PositiveFloat: "a float above 0",
    NonNegativeFloat: "a float of 0 or more",
    BelowOne: "a float from 0 to below 1",
    Share: "a float above 0 and up to 1",
}


@cache
def bounded_fields(cls: Any) -> dict[str, Any]:
    """Name -> restricted type of every field that has one, alone or beside None."""
    hints = get_type_hints(cls).items()
    return {name: part for name, hint in hints for part in (hint, *get_args(hint)) if part in list(WORDS)}


def check_bounds(config: Any) -> None:
    """For a dataclass's __post_init__. ValueError names the first field outside its bounds, its value and the mend."""
    for name, kind in bounded_fields(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        try:
            if value is not None:
                kind(value)
        except (ValueError, TypeError):
            raise ValueError(f"{name}: {value} does not fit; give {WORDS[kind]}") from None
