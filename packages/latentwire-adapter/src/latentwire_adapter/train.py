"""The verbs that train an adapter, phase1 and phase2, and their one loop: evaluate, save, stop, step, log.

What a phase minimises is an `Objective`. Order and randomness are functions of (seed, step, rank), so that a checkpoint
needs no random states.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.config import Phase1Config, Phase2Config
from latentwire_adapter.data import Prompts, tokens_of, training_prompts
from latentwire_adapter.evaluation import Arm, begin, check_known, finish, log, read, score
from latentwire_adapter.fitting import (
    Fit,
    TypeRows,
    adapter_values,
    check_room,
    check_width,
    code_dimensions,
    f1_of,
    fingerprint,
    fit_of,
    load_adapter,
    load_fit,
    phase1_folder,
    save_fit,
    start_adapter,
)
from latentwire_adapter.losses import Balance, gradient_shares
from latentwire_adapter.model import codecs
from latentwire_adapter.model.adapter import Adapter, build_adapter, probe_inputs, replay_probe
from latentwire_adapter.model.language_model import LanguageModel
from latentwire_adapter.objectives import Objective, Reconstruction, ThroughModel, learning_rate
from latentwire_adapter.selfcheck import check_first
from studycore.errors import UserError
from studycore.files import copied
from studycore.language.pretrained import vocabulary_of
from studycore.models import check_fits, count_parameters
from studycore.run import Run
from studycore.streams import derive_seed


# --------------------------------------------------------------------------------------------------------- the phases
def phase1(config: Phase1Config, run: Run) -> None:
    """Fits the compressor, trains the adapter on reconstruction alone, then answers the questions through it."""
    run.accelerate()
    lm, prompts = read(config, run)
    check_width(config, lm.table_VD.shape[1])
    k = code_dimensions(config, lm.table_VD.shape[1])
    check_room(config, k, lm)
    fitted = fit_of(config, lm, k, run)
    begin(
        run, lm, {"scored questions": prompts.fingerprint, "counts": fingerprint(fitted.counts_V)}, about=fitted.about
    )
    check_first(config, lm, prompts, run)
    data = TypeRows(lm, fitted, config)
    values = adapter_values(config, k, data.x_UD.shape[1])
    adapter = run.model(
        build_adapter, replay_probe, probe_inputs(k), values, lambda: start_adapter(values, config.seed, data, fitted)
    )
    objective = Reconstruction(config, data, lm, prompts, fitted)
    train(config, run, adapter, objective)
    linear = {f"linear_{name}": value for name, value in data.measure(fitted.compressor.decompress).items()}
    more = {**linear, **data.about}
    answer(config, run, lm, prompts, fitted, adapter, "adapter", more, data, objective.epoch(objective.steps))


def phase2(config: Phase2Config, run: Run) -> None:
    """Trains phase 1's adapter through the frozen language model, when that is due, then answers the questions."""
    run.accelerate()
    lm, prompts = read(config, run)
    check_width(config, lm.table_VD.shape[1])
    folder = phase1_folder(config.phase1, run)
    fitted = load_fit(folder, lm)
    start = load_adapter(folder, fitted, lm)
    before = f1_of(folder)
    # Of each question at least the logits of one token, with their gradient.
    logits = 2 * 4 * config.phase2_batch_size // run.world * vocabulary_of(lm.model)
    what = f"phase2_batch_size: {config.phase2_batch_size}"
    check_fits(lambda: build_adapter(start.arguments), what, "lower it", run.device, logits)
    # Those that phase 1 counts, and none that no update reaches.
    count = min(max(config.steps * config.phase2_batch_size, 1), config.samples)
    taught = training_prompts(config, lm.tokenizer, lm.context, count, run.check_stop)
    check_known(tokens_of(taught), lm, "training questions", config)
    begin(
        run, lm,
        {
            "scored questions": prompts.fingerprint, "training questions": taught.fingerprint, "counts": fingerprint(fitted.counts_V),
        },
    )  # fmt: skip
    due = before < config.only_below
    run.log({"type": "decision", "due": due, "phase1_f1": before, "only_below": config.only_below})
    if not due:
        run.results({"due": False, "phase1_f1": before})
        return
    check_first(config, lm, prompts, run)
    data = TypeRows(lm, fitted, config)
    probe = probe_inputs(fitted.compressor.output_dim)
    adapter = run.model(build_adapter, replay_probe, probe, start.arguments, lambda: start)
    objective = ThroughModel(config, data, lm, taught, fitted)
    train(config, run, adapter, objective)
    more = {"due": True, "phase1_f1": before}
    answer(config, run, lm, prompts, fitted, adapter, "phase2", more, data, objective.epoch(objective.steps))


# ----------------------------------------------------------------------------------------------------------- the loop
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


# ----------------------------------------------------------------------------------------------------- after training
def answer(
    config: Phase1Config, run: Run, lm: LanguageModel, prompts: Prompts, fitted: Fit, adapter: Adapter, name: str,
    more: Mapping[str, Any], data: TypeRows, epoch: int,
) -> None:  # fmt: skip
    """Saves the adapter and the fit, answers the questions through them, and writes the results; `epoch`: passes made."""
    adapter.eval()
    if run.is_main and not run.dry:
        adapter.save_pretrained(run.folder / "adapter")
        save_fit(fitted, run.folder)
    arm = Arm(name, prompts, codecs.adapted(lm.table_VD, fitted.compressor, adapter), fitted.seen_V)
    rows = score(arm, lm, config, codecs.raw(lm.table_VD), run)
    arrays = copied(data.arrays(adapter, fitted.compressor))
    metrics = {**data.measure(adapter), **more}
    finish(run, lm, arm, rows, fitted, count_parameters(adapter), metrics, arrays, epoch=epoch)
