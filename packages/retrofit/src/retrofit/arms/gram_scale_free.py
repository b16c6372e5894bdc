"""The Gram penalty with its target at the weight's own scale."""

from typing import Any

from retrofit.arms.base import Arm, StepState
from retrofit.losses import penalty_of_blocks, scale_free_penalty_gradient


class GramScaleFree(Arm):
    summary = "penalty |G / mean eigenvalue - I|^2 on the up projections"

    def penalty(self, state: StepState) -> Any:
        return penalty_of_blocks(state.blocks, state.config.gram_weight, scale_free_penalty_gradient)


ARM = GramScaleFree()
