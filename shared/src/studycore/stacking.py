"""Several runs of one shape in one batched model: what their optimisers do, with a leading run dimension.

Shapes: S stacked runs; W stands for a weight's own dimensions.
"""

from collections.abc import Collection, Mapping, MutableMapping

from torch import Tensor


def per_run(values_S: Tensor, like: Tensor) -> Tensor:
    """[S] as [S, 1, ..] in the type of `like` [S, W]."""
    return values_S.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def adamw_update(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    exp_avg: MutableMapping[str, Tensor],
    exp_avg_sq: MutableMapping[str, Tensor],
    updates: Tensor,
    lr_S: Tensor,
    decay_S: Tensor,
    betas: tuple[float, float],
    eps: float,
    decayed: Collection[str] | None = None,
) -> None:
    """One update of every run, in place (Loshchilov and Hutter 2019, Algorithm 2), as torch.optim.AdamW does it.

    `updates` counts this one as well; rate and decay are each run's own; `decayed` names the weights that decay, all
    where it is None.
    """
    beta1, beta2 = betas
    first, second = 1 - beta1**updates, 1 - beta2**updates
    for name, w in weights.items():
        m, v, g = exp_avg[name], exp_avg_sq[name], gradients[name]
        if decayed is None or name in decayed:
            w.mul_(per_run(1 - lr_S * decay_S, w))
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = (v.sqrt() / second.sqrt().to(v)).add_(eps)
        w.sub_(m / denominator * per_run(lr_S / first, w))
