"""The original study's Gram penalty without transport."""

from typing import Any

from retrofit.arms.base import Arm, StepState
from retrofit.losses import gram_penalty_gradient, penalty_of_blocks


class Gram(Arm):
    summary = "penalty |W W^T - I|^2 on the up projections"
    of_weight = staticmethod(gram_penalty_gradient)
    """The penalty of one weight, with its gradient."""

    def penalty(self, state: StepState) -> Any:
        return penalty_of_blocks(state.blocks, state.config.gram_weight, self.of_weight)


ARM = Gram()
