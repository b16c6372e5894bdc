"""The fair reading of the original study's idea: its method without the matrices whose normalisation destroys the model."""

from retrofit.arms.base import StepState
from retrofit.arms.gram import Gram
from retrofit.config import ROLES
from retrofit.transports import gradient_less_transport

LEFT_ALONE = ("embeddings", "down")
"""Roles that are not transported."""


class GeometryFfn(Gram):
    summary = "the Gram penalty, and row and column normalisation of every matrix but embeddings and down projections"
    transports = True

    def transport(self, state: StepState) -> None:
        gradient_less_transport(state.model, [role for role in ROLES if role not in LEFT_ALONE])


ARM = GeometryFfn()
