"""Function-preserving transport: column scales of the up projection go into the norm before it."""

from retrofit.arms.base import Arm, StepState
from retrofit.transports import glt_fold


class GltFold(Arm):
    summary = "column scales of the up projections folded into the norm before them; the function stays"
    transports = True

    def transport(self, state: StepState) -> None:
        glt_fold(state.blocks, state.optimizer)


ARM = GltFold()
