"""The verbs that make a run: selfcheck, fit, phase1, phase2, evaluate. The loop that trains an adapter is `train.train`.

Shapes: V token types of the table, K dimensions of a code, D of an embedding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from latentwire_adapter.config import (
    UNCOMPRESSED,
    EvaluateConfig,
    FitConfig,
    Phase1Config,
    Phase2Config,
    Reading,
    SelfcheckConfig,
)
from latentwire_adapter.data import Prompts, scored_prompts, tokens_of, training_prompts
from latentwire_adapter.evaluation import Arm, finish, make_arm, score, snap_accuracy
from latentwire_adapter.fitting import (
    Fit,
    TypeRows,
    check_width,
    code_dimensions,
    f1_of,
    fingerprint,
    fit_of,
    load_adapter,
    load_fit,
    make_fit,
    save_fit,
)
from latentwire_adapter.model import codecs
from latentwire_adapter.model.adapter import Adapter, build_adapter, probe_inputs, replay_probe
from latentwire_adapter.model.language_model import LanguageModel, load_language_model
from latentwire_adapter.objectives import Reconstruction, ThroughModel
from latentwire_adapter.selfcheck import demand, selfcheck as run_checks
from latentwire_adapter.train import train
from studycore.files import copied
from studycore.language.pretrained import check_tokens, vocabulary_of
from studycore.models import check_fits, count_parameters
from studycore.run import Run


def begin(run: Run, lm: LanguageModel, data: Mapping[str, str], **about: Any) -> None:
    """Opens the run's folder, which says by what model and data it was made."""
    run.begin(data={"model": lm.fingerprint, **data}, hub_commit=lm.commit, **about)


# ------------------------------------------------------------------------------------------- selfcheck, fit, evaluate
def selfcheck(config: SelfcheckConfig, run: Run) -> None:
    """Every check. UserError names the first that fails, so that what needs this run fails with it."""
    lm, prompts = read(config, run)
    begin(run, lm, {"scored questions": prompts.fingerprint})
    outcomes = run_checks(lm, prompts, config, run.check_stop)
    for name, wrong in outcomes.items():
        run.log({"type": "check", "check": name, "holds": not wrong, "wrong": wrong or "nothing"})
        run.say(f"  {'ok   ' if not wrong else 'FAILS'} {name}{f': {wrong}' if wrong else ''}")
    run.results({"checks": len(outcomes), "failing": sum(bool(wrong) for wrong in outcomes.values())})
    demand(outcomes)


def fit(config: FitConfig, run: Run) -> None:
    """Counts the training text and fits every dimension at once."""
    lm = load_language_model(config, run.device)
    width = lm.table_VD.shape[1]
    check_width(config, width)
    fitted = make_fit(config, lm, width, run.check_stop)
    begin(run, lm, {"counts": fingerprint(fitted.counts_V)}, about=fitted.about)
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
    if config.arm not in UNCOMPRESSED:
        folder = phase1_folder(config.phase1, run)
        fitted = load_fit(folder, lm)
        adapter = load_adapter(folder, fitted, lm).eval()
    begin(run, lm, {"scored questions": prompts.fingerprint})
    check_first(config, lm, prompts, run)
    arm = make_arm(config.arm, lm, prompts, fitted, adapter)
    rows = score(arm, lm, config, codecs.raw(lm.table_VD), run, run.needs.get("raw"))
    adapted = config.arm in ("adapter", "adapter_paragraph", "int8", "int4")
    parameters = count_parameters(adapter) if adapter is not None and adapted else 0
    more = snap_accuracy(arm, codecs.raw(lm.table_VD)) if config.arm.startswith("nearest") else {}
    finish(run, lm, arm, rows, fitted, parameters, more, whole=prompts)


def phase1_folder(given: str | None, run: Run) -> Path:
    """Of the phase 1 run that this one needs, or that was named. UserError for none."""
    need = next((name for name in run.needs if name.startswith("phase1_")), None)
    return run.folder_of("phase1", given, need, holds="adapter/config.json")


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


# ------------------------------------------------------------------------------------------- before and after training
def read(config: Reading, run: Run) -> tuple[LanguageModel, Prompts]:
    """The model and the scored prompts."""
    lm = load_language_model(config, run.device)
    prompts = scored_prompts(config, lm.tokenizer, lm.context, run.check_stop)
    check_known(tokens_of(prompts), lm, "scored questions", config)
    return lm, prompts


def check_known(tokens: Iterable[int], lm: LanguageModel, where: str, config: Reading) -> None:
    """UserError for a token that the model does not know."""
    check_tokens(tokens, lm.tokenizer, vocabulary_of(lm.model), where, f"--model: '{config.model}'")


def check_first(config: Reading, lm: LanguageModel, prompts: Prompts, run: Run) -> None:
    """The checks, unless a run that did them is among those that this one needs."""
    if "selfcheck" not in run.needs and not run.dry and run.checkpoint is None:
        few = replace(prompts, prompts=prompts.prompts[: SelfcheckConfig.eval_samples])
        demand(run_checks(lm, few, config, run.check_stop))


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
