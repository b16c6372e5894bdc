"""Continued training, the control of the other arms."""

from retrofit.arms.base import Arm


class Standard(Arm):
    summary = "continued training"


ARM = Standard()
