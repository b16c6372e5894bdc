"""The seed study's full method: the Gram penalty and its row and column normalisation of every matrix."""

from retrofit.arms.base import Moment
from retrofit.arms.gram import Gram
from retrofit.transports import gradient_less_transport


class Geometry(Gram):
    summary = "the Gram penalty, and row and column normalisation of every matrix"
    file = "geometry"
    transports = True

    def transport(self, now: Moment) -> None:
        gradient_less_transport(now.model)


ARM = Geometry()
