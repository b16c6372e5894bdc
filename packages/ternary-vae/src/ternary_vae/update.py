"""One update of runs that are trained together, as the loop in `train` makes it and a dry run times it."""

from collections.abc import Sequence

from torch import Tensor

from ternary_vae.lanes import Lane, WholeModel
from ternary_vae.losses import total
from ternary_vae.stacked import StackedRadii


def update(
    models: WholeModel | StackedRadii, lanes: Sequence[Lane], positions: Sequence[Tensor], index: int, per_epoch: int
) -> dict[str, Tensor]:
    """Update `index` of a stage with `per_epoch` an epoch, each lane on the operations at its own batch's positions [B].

    Returns the terms of the losses before it, each [lanes]. UserError where the loss of a lane by itself is not finite.
    """
    terms = models.terms(positions, index, index // per_epoch)
    models.backward(total(terms))
    if (largest := lanes[0].config.grad_clip) is not None:  # the same in all lanes
        models.clip_gradients(largest)
    models.set_rates([lane.stage.rate(index, per_epoch) for lane in lanes])
    models.optimizer.step()
    models.optimizer.zero_grad()
    return terms
