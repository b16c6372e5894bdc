"""The original study's normalisation on the feed-forward up projections alone, without penalty."""

from retrofit.arms.base import Arm, StepState
from retrofit.transports import glt_ffn


class GltFfn(Arm):
    summary = "row and column normalisation of the up projections"
    transports = True

    def transport(self, state: StepState) -> None:
        glt_ffn(state.blocks)


ARM = GltFfn()
