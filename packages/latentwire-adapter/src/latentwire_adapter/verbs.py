"""The verbs that train nothing: selfcheck, fit, evaluate. Those that train, phase1 and phase2, stand in `train.py`."""

from latentwire_adapter import selfcheck as checks
from latentwire_adapter.config import UNCOMPRESSED, EvaluateConfig, FitConfig, SelfcheckConfig
from latentwire_adapter.evaluation import begin, finish, make_arm, read, score, snap_accuracy
from latentwire_adapter.fitting import (
    check_width,
    fingerprint,
    load_adapter,
    load_fit,
    make_fit,
    phase1_folder,
    save_fit,
)
from latentwire_adapter.model import codecs
from latentwire_adapter.model.language_model import load_language_model
from studycore.models import count_parameters
from studycore.run import Run


def selfcheck(config: SelfcheckConfig, run: Run) -> None:
    """Every check. UserError names the first that fails, so that what needs this run fails with it."""
    lm, prompts = read(config, run)
    begin(run, lm, {"scored questions": prompts.fingerprint})
    outcomes = checks.run_checks(lm, prompts, config, run.check_stop)
    for name, wrong in outcomes.items():
        run.log({"type": "check", "check": name, "holds": not wrong, "wrong": wrong or "nothing"})
        run.say(f"  {'ok   ' if not wrong else 'FAILS'} {name}{f': {wrong}' if wrong else ''}")
    run.results({"checks": len(outcomes), "failing": sum(bool(wrong) for wrong in outcomes.values())})
    checks.demand(outcomes)


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
    checks.check_first(config, lm, prompts, run)
    arm = make_arm(config.arm, lm, prompts, fitted, adapter)
    rows = score(arm, lm, config, codecs.raw(lm.table_VD), run, run.needs.get("raw"))
    adapted = config.arm in ("adapter", "adapter_paragraph", "int8", "int4")
    parameters = count_parameters(adapter) if adapter is not None and adapted else 0
    more = snap_accuracy(arm, codecs.raw(lm.table_VD)) if config.arm.startswith("nearest") else {}
    finish(run, lm, arm, rows, fitted, parameters, more, whole=prompts)
