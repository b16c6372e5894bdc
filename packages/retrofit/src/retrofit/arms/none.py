"""Nothing is trained: the evaluation at step 0, as a row of its own."""

from retrofit.arms.base import Arm


class None_(Arm):
    summary = "no training: the start, which all arms share"


ARM = None_()
