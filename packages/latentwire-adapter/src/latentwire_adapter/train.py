"""The one loop that trains an adapter, from top to bottom: evaluate, save, stop, step, log.

Order and randomness are functions of (seed, step, rank), so that a checkpoint needs no random states.
"""

import math

import torch
from torch import Tensor

from latentwire_adapter.config import Phase1Config
from latentwire_adapter.evaluation import log
from latentwire_adapter.losses import Balance, gradient_shares
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.objectives import Objective, learning_rate
from studycore.errors import UserError
from studycore.run import Run
from studycore.streams import derive_seed


def train(config: Phase1Config, run: Run, adapter: Adapter, objective: Objective) -> None:
    """Trains the adapter on the phase's objective. UserError for a loss that is not finite."""
    trained = list(adapter.parameters())
    peak = getattr(config, objective.rate)
    optimizer = run.optimizer(torch.optim.AdamW(trained, peak, weight_decay=config.adapter_weight_decay))
    balance = Balance(objective.balance, objective.weights)
    balance.restore(run.state)
    for step in run.steps(objective.steps, loop=objective.name):
        # evaluate
        if run.every(config.eval_every):
            objective.evaluate(adapter, step, run)
        # save: the balance has running means, which are no function of the step
        if run.saving(config.checkpoint_every):
            run.save(balance.state())
        # stop
        if run.ended():
            break
        # step
        adapter.train()  # an evaluation leaves it in evaluation mode
        torch.manual_seed(derive_seed(config.seed, "dropout", objective.name, step, run.rank))
        rate = learning_rate(step, objective.steps, peak)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses, floors = objective.losses(adapter, step, run)
        values = {name: float(run.accelerator.reduce(loss.detach(), "mean")) for name, loss in losses.items()}
        if not all(map(math.isfinite, values.values())):
            raise UserError(run.not_finite(objective.rate, "the loss", sum(values.values())))
        # A gradient for each term, since the balance needs their norms before it can weigh them. They are averaged over the
        # processes here, and not by a wrapped model, so that every process weighs by the same norms.
        gradients = {name: gradient(loss, trained, run) for name, loss in losses.items()}
        norms = {
            name: float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
            for name, grads in gradients.items()
        }
        weights = balance.weigh(values, floors, norms)
        for i, parameter in enumerate(trained):
            parameter.grad = sum(weights[name] * gradients[name][i] for name in gradients)  # type: ignore[assignment]
        # Without a bound nothing is clipped, but the norm is still measured.
        norm = torch.nn.utils.clip_grad_norm_(trained, config.grad_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        # log
        if objective.log_every and step % objective.log_every == 0:
            named = {
                "recon_loss" if name == "reconstruction" else f"{name}_loss": value for name, value in values.items()
            }
            named |= {f"floor_{name}": value for name, value in floors.items() if name != "reconstruction"}
            named |= {f"weight_{name}": weight for name, weight in weights.items()}
            named |= {f"share_{name}": share for name, share in gradient_shares(norms, weights).items()}
            total = sum(weights[name] * values[name] for name in values)
            log(
                run,
                {"type": "train_step", "loss": total, "lr": rate, "gradient_norm": float(norm), **named},
                objective.epoch(step),
            )


def gradient(loss: Tensor, trained: list[torch.nn.Parameter], run: Run) -> list[Tensor]:
    """Of each trained tensor, the mean over the processes; zero where the loss does not depend on it."""
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, trained, strict=True)]
    return filled if run.world == 1 else [run.accelerator.reduce(g, "mean") for g in filled]
