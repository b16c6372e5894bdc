"""A control that tells shrinking from conditioning: only the norms of the up projections follow another arm's."""

import torch

from retrofit.arms.base import Arm, StepState


class NormMatched(Arm):
    summary = "continued training with geometry's weight norms in the up projections"

    @torch.no_grad()
    def after_update(self, state: StepState) -> None:
        assert state.reference is not None
        for block, target in zip(state.blocks, state.reference[state.step], strict=True):
            block.up.weight_OI.mul_(target / block.up.weight_OI.norm())


ARM = NormMatched()
