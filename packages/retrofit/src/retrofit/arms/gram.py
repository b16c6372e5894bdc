"""The seed study's Gram penalty without transport."""

from typing import Any

from retrofit.arms.base import Arm, Moment
from retrofit.penalty import gram_penalty_gradient, penalty_of_blocks


class Gram(Arm):
    summary = "penalty |W W^T - I|^2 on the up projections"
    file = "gram_only"

    def penalty(self, now: Moment) -> Any:
        return penalty_of_blocks(now.blocks, now.config.gram_weight, gram_penalty_gradient)


ARM = Gram()
