"""The null arm: hidden units permuted; function, spectra and Adam's trajectory stay, so any effect is noise."""

import torch
from torch import Tensor

from retrofit.arms.base import Arm, StepState
from retrofit.transports import glt_permute
from studycore.streams import generator


class GltPerm(Arm):
    summary = "hidden units permuted with their optimizer state: the null"
    transports = True

    def transport(self, state: StepState) -> None:
        def draw(layer: int, width: int) -> Tensor:
            return torch.randperm(width, generator=generator(state.config.seed, "permutation", state.step, layer))

        glt_permute(state.blocks, draw, state.optimizer)


ARM = GltPerm()
