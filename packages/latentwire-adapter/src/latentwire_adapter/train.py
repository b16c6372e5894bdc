"""The verbs that make a run (selfcheck, fit, evaluate, phase1, phase2), and the one loop that trains an adapter.

Order and randomness are functions of (seed, step). Adapters train on token types weighted by how often they stand in the
text, since a token's code is the same wherever it stands: the same optimum as on positions, with fewer rows.

Shapes: V token types of the table, U of a batch, K dimensions of a code, D of an embedding.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.config import (
    UNCOMPRESSED,
    EvaluateConfig,
    FitConfig,
    Phase1Config,
    Phase2Config,
    Reading,
    SelfcheckConfig,
)
from latentwire_adapter.core_utils import batch_metrics
from latentwire_adapter.data import Prompts, scored_prompts, tokens_of, training_prompts
from latentwire_adapter.evaluation import Arm, finish, log, make_arm, readers, score, snap_accuracy
from latentwire_adapter.fitting import Fit, TypeRows, code_dimensions, fingerprint, fit_of, load_fit, make_fit, save_fit
from latentwire_adapter.losses import Balance, PromptLosses, gradient_shares
from latentwire_adapter.model import codecs
from latentwire_adapter.model.adapter import Adapter, build_adapter, probe_inputs, replay
from latentwire_adapter.model.language_model import LanguageModel, load_language_model
from latentwire_adapter.model.reader import text_of
from latentwire_adapter.selfcheck import demand, selfcheck as run_checks
from studycore.errors import UserError
from studycore.files import read_json
from studycore.language.pretrained import check_tokens, vocabulary_of
from studycore.models import check_fits, count_parameters
from studycore.run import Run, copied


# ------------------------------------------------------------------------------------------- selfcheck, fit, evaluate
def selfcheck(config: SelfcheckConfig, run: Run) -> None:
    """Every check. UserError names the first that fails, so that what needs this run fails with it."""
    lm, prompts = read(config, run)
    run.begin(data={"scored questions": prompts.fingerprint})
    outcomes = run_checks(lm, prompts, config)
    for name, wrong in outcomes.items():
        run.log({"type": "check", "check": name, "holds": not wrong, "wrong": wrong or "nothing"})
        run.say(f"  {'ok   ' if not wrong else 'FAILS'} {name}{f': {wrong}' if wrong else ''}")
    run.results({"checks": len(outcomes), "failing": sum(bool(wrong) for wrong in outcomes.values())})
    demand(outcomes)


def fit(config: FitConfig, run: Run) -> None:
    """Counts the training text and fits every dimension at once."""
    lm = load_language_model(config, run.device)
    width = lm.table_VD.shape[1]
    fitted = make_fit(config, lm, width)
    run.begin(data={"counts": fingerprint(fitted.counts_V)}, about=fitted.about)
    if run.is_main:
        save_fit(fitted, run.folder)
    variances = fitted.compressor.variances
    kept = {f"kept_{ratio}x": float(variances[: width // ratio].sum() / variances.sum()) for ratio in (2, 4, 8, 16)}
    run.log({"type": "fit", **kept})
    run.results({**fitted.about, **kept}, {"variances": variances})


def evaluate(config: EvaluateConfig, run: Run) -> None:
    """Scores one arm."""
    run.accelerate()
    lm, prompts = read(config, run)
    fitted, adapter = None, None
    whole = sum(len(p.asked_T) for p in prompts.prompts)
    if config.arm not in UNCOMPRESSED:
        folder = phase1_folder(config.phase1, run)
        fitted, adapter = load_fit(folder, lm), Adapter.from_pretrained(folder / "adapter").to(lm.device).eval()
    run.begin(data={"scored questions": prompts.fingerprint})
    check_first(config, lm, prompts, run)
    arm = make_arm(config.arm, lm, prompts, fitted, adapter)
    rows = score(arm, lm, config, codecs.raw(lm.table_VD), run, run.needs.get("raw"))
    parameters = count_parameters(adapter) if adapter is not None and config.arm in ("adapter", "int8", "int4") else 0
    more = snap_accuracy(lm, fitted) if config.arm == "nearest" and fitted is not None else {}
    finish(run, lm, arm, rows, fitted, parameters, more, whole=whole)


def phase1_folder(given: str | None, run: Run) -> Path:
    """Of the phase 1 run that this one needs, or that was named. UserError for none."""
    of_plan = next((path for name, path in run.needs.items() if name.startswith("phase1_")), None)
    if of_plan is None and given is None:
        raise UserError("phase1: null; this arm needs a compressor, so name the folder of a phase 1 run: --phase1 RUN")
    folder = of_plan or Path(str(given))
    if not (folder / "adapter" / "config.json").is_file():
        raise UserError(f"phase1: {folder} holds no adapter; name the folder of a finished phase 1 run")
    return folder


# --------------------------------------------------------------------------------------------------------- the phases
def phase1(config: Phase1Config, run: Run) -> None:
    """Fits the compressor, trains the adapter on reconstruction alone, then answers the questions through it."""
    run.accelerate()
    lm, prompts = read(config, run)
    k = code_dimensions(config, lm.table_VD.shape[1])
    check_room(config, k, lm)
    fitted = fit_of(config, lm, k, run)
    run.begin(
        data={"scored questions": prompts.fingerprint, "counts": fingerprint(fitted.counts_V)}, about=fitted.about
    )
    check_first(config, lm, prompts, run)
    data = TypeRows(lm, fitted, config)
    values = adapter_values(config, k, data.x_UD.shape[1])
    adapter = run.model(
        build_adapter, replay, probe_inputs(k), values, lambda: start_adapter(values, config.seed, data, fitted)
    )
    per_epoch = math.ceil(len(data.ids_U) / config.batch_size)
    terms = Terms("reconstruction", per_epoch * config.epochs, "adapter_lr", {"reconstruction": config.recon_weight})

    def watch(step: int) -> None:
        row = data.measure(adapter)
        log(run, {
            "type": "train_step", "loss": config.recon_weight * row["recon_mse"] / data.mse_unit, **row,
            "lr": learning_rate(step, terms.steps, config.adapter_lr), "compression_ratio": data.x_UD.shape[1] / k,
            "batch_size": config.batch_size, **gpu_memory(),
        }, step // per_epoch)  # fmt: skip
        if config.quick_eval_samples and not run.dry:
            f1 = quick_f1(config, lm, prompts, fitted, adapter)
            log(run, {"type": "quick_eval", "quick_f1": f1}, step // per_epoch)

    def losses(step: int) -> Losses:
        return {"reconstruction": data.loss(adapter, config, step, run)}, {"reconstruction": 0.0}

    train(config, run, adapter, terms, losses, watch)
    decompress = fitted.compressor.decompress
    compared = {f"linear_{name}": value for name, value in data.measure(decompress).items()}
    answer(config, run, lm, prompts, fitted, adapter, "adapter", {**compared, **data.about}, data)


def phase2(config: Phase2Config, run: Run) -> None:
    """Trains phase 1's adapter through the frozen language model, when that is due, then answers the questions."""
    run.accelerate()
    lm, prompts = read(config, run)
    folder = phase1_folder(config.phase1, run)
    fitted = load_fit(folder, lm)
    start = Adapter.from_pretrained(folder / "adapter").to(lm.device)
    before = read_json(folder / "results.json")["metrics"]["f1"]
    # Of each question at least the logits of one token, with their gradient.
    logits = 2 * 4 * config.phase2_batch_size // run.world * vocabulary_of(lm.model)
    what = f"phase2_batch_size: {config.phase2_batch_size}"
    check_fits(lambda: build_adapter(start.arguments), what, "lower it", run.device, logits)
    taught = training_prompts(config, lm.tokenizer, lm.context, max(config.steps * config.phase2_batch_size, 1))
    check_known(tokens_of(taught), lm, "training questions", config)
    run.begin(
        data={
            "scored questions": prompts.fingerprint, "training questions": taught.fingerprint, "counts": fingerprint(fitted.counts_V),
        }
    )  # fmt: skip
    due = before < config.only_below
    run.log({"type": "decision", "due": due, "phase1_f1": before, "only_below": config.only_below})
    if not due:
        run.results({"due": False, "phase1_f1": before})
        return
    check_first(config, lm, prompts, run)
    data = TypeRows(lm, fitted, config)
    probe = probe_inputs(fitted.compressor.output_dim)
    adapter = run.model(build_adapter, replay, probe, start.arguments, lambda: start)
    weights = {"reconstruction": config.recon_weight, config.objective: config.ce_weight}
    terms = Terms("language", config.steps, "phase2_lr", weights, config.balance, config.log_every)

    def watch(step: int) -> None:
        run.log({"type": "reconstruction", **data.measure(adapter)})

    def losses(step: int) -> Losses:
        first, size = step * config.phase2_batch_size, config.phase2_batch_size
        asked = [taught.prompts[i % len(taught.prompts)] for i in range(first, first + size)][run.rank :: run.world]
        through = PromptLosses(lm, asked, taught.prefix_T, config.objective)
        arrived = adapter(fitted.compressor.compress(lm.table_VD[through.ids_BT].float()))
        language, floor = through(arrived, through.uncompressed())
        reconstruction = data.loss(adapter, config, step, run)
        return {"reconstruction": reconstruction, config.objective: language}, {
            "reconstruction": 0.0,
            config.objective: floor,
        }

    train(config, run, adapter, terms, losses, watch)
    answer(config, run, lm, prompts, fitted, adapter, "phase2", {"due": True, "phase1_f1": before}, data)


# ---------------------------------------------------------------------------------------------------------- the loop
@dataclass(frozen=True)
class Terms:
    """What the loop trains on."""

    loop: str
    """Its name, of checkpoints and the progress line."""
    steps: int
    """Updates."""
    rate: str
    """Field of the configuration with the peak learning rate."""
    weights: Mapping[str, float]
    """Name of each term of the loss -> the weight it was given."""
    balance: str = "fixed"
    """How the terms are weighed besides: see `losses.Balance`."""
    log_every: int = 0
    """Updates between rows of losses and gradients' shares; 0: none."""


Losses = tuple[dict[str, Tensor], dict[str, float]]
"""(loss of each term, floor of each: what it has for uncompressed prompts)."""


def train(
    config: Phase1Config, run: Run, adapter: Adapter, terms: Terms, losses: Callable[[int], Losses], watch: Callable[[int], None],
) -> None:  # fmt: skip
    """Trains the adapter on `losses(step)`; `watch(step)` logs how it does. UserError for a loss that is not finite."""
    trained = list(adapter.parameters())
    peak = getattr(config, terms.rate)
    optimizer = run.optimizer(torch.optim.AdamW(trained, peak, weight_decay=config.adapter_weight_decay))
    balance = Balance(terms.balance, terms.weights)
    balance.restore(run.state)
    for step in run.steps(terms.steps, loop=terms.loop):
        # evaluate
        if run.every(config.eval_every):
            watch(step)
        # save
        if run.saving(config.checkpoint_every):
            run.save(balance.state())
        # stop
        if run.ended():
            break
        # step
        adapter.train()
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout's stream: a function of (seed, step)
        rate = learning_rate(step, terms.steps, peak)
        for group in optimizer.param_groups:
            group["lr"] = rate
        made, floors = losses(step)
        values = {name: float(run.accelerator.reduce(loss.detach(), "mean")) for name, loss in made.items()}
        if not all(map(math.isfinite, values.values())):
            raise UserError(run.not_finite(terms.rate, "the loss", sum(values.values())))
        gradients = {name: gradient(loss, trained, run) for name, loss in made.items()}
        norms = {
            name: float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
            for name, grads in gradients.items()
        }
        weights = balance.weigh(values, floors, norms)
        for i, parameter in enumerate(trained):
            parameter.grad = sum(weights[name] * gradients[name][i] for name in gradients)  # type: ignore[assignment]
        norm = torch.nn.utils.clip_grad_norm_(trained, config.grad_clip or math.inf)
        # log
        if terms.log_every and step % terms.log_every == 0:
            named = {
                "recon_loss" if name == "reconstruction" else f"{name}_loss": value for name, value in values.items()
            }
            named |= {f"floor_{name}": value for name, value in floors.items() if name != "reconstruction"}
            named |= {f"weight_{name}": weight for name, weight in weights.items()}
            named |= {f"share_{name}": share for name, share in gradient_shares(norms, weights).items()}
            total = sum(weights[name] * values[name] for name in values)
            log(run, {"type": "train_step", "loss": total, "lr": rate, "gradient_norm": float(norm), **named}, 0)
        optimizer.step()
        optimizer.zero_grad()


def gradient(loss: Tensor, trained: list[torch.nn.Parameter], run: Run) -> list[Tensor]:
    """Of each trained tensor, the mean over the processes; zero where the loss does not depend on it."""
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, trained, strict=True)]
    return filled if run.world == 1 else [run.accelerator.reduce(g, "mean") for g in filled]


def learning_rate(step: int, total: int, peak: float) -> float:
    """Half a cosine from the peak to a hundredth of it."""
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / max(total, 1))))


def gpu_memory() -> dict[str, float]:
    """What the original study logs of each GPU; empty without one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    used = {f"gpu_{i}_allocated_gb": torch.cuda.memory_allocated(i) / 2**30 for i in range(count)}
    return {**used, "gpu_count": count, "total_gpu_memory_gb": sum(used.values())} if count else {}


# -------------------------------------------------------------------------------------------- before and after it
def read(config: Reading, run: Run) -> tuple[LanguageModel, Prompts]:
    """The model and the scored prompts."""
    lm = load_language_model(config, run.device)
    prompts = scored_prompts(config, lm.tokenizer, lm.context)
    check_known(tokens_of(prompts), lm, "scored questions", config)
    return lm, prompts


def check_known(tokens: Iterable[int], lm: LanguageModel, where: str, config: Reading) -> None:
    """UserError for a token that the model does not know."""
    check_tokens(tokens, lm.tokenizer, vocabulary_of(lm.model), where, f"--model: '{config.model}'")


def check_first(config: Reading, lm: LanguageModel, prompts: Prompts, run: Run) -> None:
    """The checks, unless a run that did them is among those that this one needs."""
    if "selfcheck" not in run.needs and not run.dry and run.checkpoint is None:
        few = replace(prompts, prompts=prompts.prompts[: SelfcheckConfig.eval_samples])
        demand(run_checks(lm, few, config))


def adapter_values(config: Phase1Config, k: int, width: int) -> dict[str, Any]:
    """The constructor's arguments."""
    return {
        "d_z": k, "d_model": width, "hidden_mult": config.adapter_hidden_mult, "dropout": config.adapter_dropout, "form": config.adapter_form,
    }  # fmt: skip


def check_room(config: Phase1Config, k: int, lm: LanguageModel) -> None:
    """UserError for an adapter whose training does not fit into memory."""
    values = adapter_values(config, k, lm.table_VD.shape[1])
    # Two hidden layers of a batch, before and after their non-linearity.
    hidden = 4 * 4 * config.batch_size * k * config.adapter_hidden_mult
    what = f"adapter_hidden_mult: {config.adapter_hidden_mult} times {k}"
    check_fits(lambda: build_adapter(values), what, "lower adapter_hidden_mult or batch_size", str(lm.device), hidden)


def start_adapter(values: Mapping[str, Any], seed: int, data: TypeRows, fitted: Fit) -> Adapter:
    """A new adapter, drawn from the seed, begun at the linear inverse."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = Adapter(**values)
    adapter.to(data.x_UD.device).start_at_inverse(fitted.compressor, data.code_rms, data.row_rms)
    return adapter


def quick_f1(config: Phase1Config, lm: LanguageModel, prompts: Prompts, fitted: Fit, adapter: Adapter) -> float:
    """F1, from 0 to 100, of the first questions through the adapter as it is; the same in each process."""
    few = replace(prompts, prompts=prompts.prompts[: config.quick_eval_samples])
    arm = Arm("adapter", few, codecs.adapted(lm.table_VD, fitted.compressor, adapter.eval()))
    reader, _ = readers(arm, lm, config, codecs.raw(lm.table_VD))
    texts = [text_of(lm, tokens) for tokens in reader.answer(few.prompts, config.max_new_tokens)]
    return 100 * batch_metrics(texts, [p.question.answers for p in few.prompts])[1]


def answer(
    config: Phase1Config, run: Run, lm: LanguageModel, prompts: Prompts, fitted: Fit, adapter: Adapter, name: str,
    more: Mapping[str, Any], data: TypeRows,
) -> None:  # fmt: skip
    """Saves the adapter and the fit, answers the questions through them, and writes the results."""
    adapter.eval()
    if run.is_main and not run.dry:
        adapter.save_pretrained(run.folder / "adapter")
        save_fit(fitted, run.folder)
    arm = Arm(name, prompts, codecs.adapted(lm.table_VD, fitted.compressor, adapter), ~fitted.held_V)
    rows = score(arm, lm, config, codecs.raw(lm.table_VD), run)
    arrays = copied(data.arrays(adapter, fitted.compressor))
    finish(run, lm, arm, rows, fitted, count_parameters(adapter), {**data.measure(adapter), **more}, arrays)
