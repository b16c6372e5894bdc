"""The original study's full method: the Gram penalty and its row and column normalisation of every matrix."""

from retrofit.arms.base import StepState
from retrofit.arms.gram import Gram
from retrofit.transports import gradient_less_transport


class Geometry(Gram):
    summary = "the Gram penalty, and row and column normalisation of every matrix"
    transports = True

    def transport(self, state: StepState) -> None:
        gradient_less_transport(state.model)


ARM = Geometry()
