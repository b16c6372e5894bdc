"""The Gram penalty with its target at the weight's own scale."""

from retrofit.arms.gram import Gram
from retrofit.losses import scale_free_penalty_gradient


class GramScaleFree(Gram):
    summary = "penalty |G / mean eigenvalue - I|^2 on the up projections"
    of_weight = staticmethod(scale_free_penalty_gradient)


ARM = GramScaleFree()
