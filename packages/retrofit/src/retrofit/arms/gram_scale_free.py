"""The Gram penalty with its target at the weight's own scale."""

from typing import Any

from retrofit.arms.base import Arm, Moment
from retrofit.penalty import penalty_of_blocks, scale_free_penalty_gradient


class GramScaleFree(Arm):
    summary = "penalty |G / mean eigenvalue - I|^2 on the up projections"

    def penalty(self, now: Moment) -> Any:
        return penalty_of_blocks(now.blocks, now.config.gram_weight, scale_free_penalty_gradient)


ARM = GramScaleFree()
