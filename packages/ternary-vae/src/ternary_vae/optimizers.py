"""AdamW: torch's for one run (`create_optimizer`), and the same update for many runs at once (`StackedAdamW`).

`train` steps one of them in its loop. Shapes: S runs; W stands for a weight's own dimensions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ternary_vae.config import TrainConfig
from ternary_vae.stages import Stage

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, by torch's names."""
BETAS, EPS = (0.9, 0.999), 1e-8
"""As torch.optim.AdamW has them by default."""


def create_optimizer(trained: Mapping[str, nn.Parameter], config: TrainConfig, stage: Stage) -> torch.optim.AdamW:
    """AdamW with a group for each part of the model; `factor` is the part's own on the learning rate."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        groups.setdefault(name.partition(".")[0], []).append(parameter)
    listed = [{"params": group, "factor": stage.rate_factors.get(part, 1.0)} for part, group in groups.items()]
    return torch.optim.AdamW(listed, lr=config.lr, weight_decay=config.weight_decay)


class StackedAdamW:
    """torch.optim.AdamW (Loshchilov and Hutter 2019, Algorithm 2) on weights [S, W], with each run's own rate and decay."""

    def __init__(self, weights: dict[str, Tensor], moments: dict[str, dict[str, Tensor]], updates: int):
        self.weights, self.moments, self.updates = weights, moments, updates
        self.lr_S = self.decay_S = torch.zeros(())

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of every run from the weights' gradients, in place."""
        self.updates += 1
        count = torch.tensor(float(self.updates), dtype=torch.float64, device=self.lr_S.device)
        first, second = 1 - BETAS[0] ** count, 1 - BETAS[1] ** count
        for name, w in self.weights.items():
            m, v, g = self.moments["exp_avg"][name], self.moments["exp_avg_sq"][name], w.grad
            assert g is not None
            w.mul_(per_run(1 - self.lr_S * self.decay_S, w))
            m.lerp_(g, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            denominator = (v.sqrt() / second.sqrt().to(v)).add_(EPS)
            w.sub_(m / denominator * per_run(self.lr_S / first, w))


def per_run(values_S: Tensor, like: Tensor) -> Tensor:
    """[S] as [S, 1, ..] in the type of `like` [S, W]."""
    return values_S.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
