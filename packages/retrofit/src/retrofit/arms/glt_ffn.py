"""The seed study's normalisation on the feed-forward up projections alone, without penalty."""

from retrofit.arms.base import Arm, Moment
from retrofit.transports import glt_ffn


class GltFfn(Arm):
    summary = "row and column normalisation of the up projections"
    transports = True

    def transport(self, now: Moment) -> None:
        glt_ffn(now.blocks)


ARM = GltFfn()
