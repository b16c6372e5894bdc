"""AdamW for several runs of one shape in one batched model: every weight has a leading run dimension.

Shapes: S stacked runs; W stands for a weight's own dimensions.
"""

from collections.abc import Mapping

from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8
"""As torch.optim.AdamW has them by default."""


def per_run(values_S: Tensor, like: Tensor) -> Tensor:
    """[S] as [S, 1, ..] in the type of `like` [S, W]."""
    return values_S.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def adamw_update(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    updates: Tensor,
    lr_S: Tensor,
    decay_S: Tensor,
) -> None:
    """One update of every run, in place (Loshchilov and Hutter 2019, Algorithm 2), as torch.optim.AdamW does it.

    `moments` are exp_avg and exp_avg_sq; `updates` counts this one as well; rate and decay are each run's own.
    """
    beta1, beta2 = BETAS
    first, second = 1 - beta1**updates, 1 - beta2**updates
    for name, w in weights.items():
        m, v, g = moments["exp_avg"][name], moments["exp_avg_sq"][name], gradients[name]
        w.mul_(per_run(1 - lr_S * decay_S, w))
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = (v.sqrt() / second.sqrt().to(v)).add_(EPS)
        w.sub_(m / denominator * per_run(lr_S / first, w))
