"""The arms that are compared, one file each."""

from importlib import import_module

from retrofit.arms.base import Arm
from retrofit.config import arm_names, arms_in_words


def get_arm(name: str) -> Arm:
    """The arm of a method. ValueError lists those there are."""
    if name not in arm_names():
        raise ValueError(f"method: '{name}' is no method; give one of {arms_in_words()}")
    arm: Arm = import_module(f"retrofit.arms.{name}").ARM
    return arm
