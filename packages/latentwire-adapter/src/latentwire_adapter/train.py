"""The verbs that make a run: selfcheck, fit, phase1, phase2, evaluate. Each reads from top to bottom.

Order and randomness are functions of (seed, step). Adapters train on token types weighed by how often they stand in the
text, since a token's code is the same wherever it stands: the same optimum as on positions, with fewer rows.

Shapes: V token types of the table, U of a batch or of those the fits see, K dimensions of a code, D of an embedding.
"""

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire_adapter.config import (
    EvaluateConfig,
    FitConfig,
    Phase1Config,
    Phase2Config,
    Reading,
    SelfcheckConfig,
)
from latentwire_adapter.core_utils import batch_metrics, log_diagnostics
from latentwire_adapter.data import (
    Prompts,
    fewer_tokens,
    held_out_types,
    scored_prompts,
    shuffled_contexts,
    training_counts,
    training_prompts,
    without_contexts,
)
from latentwire_adapter.evaluation import Arm, readers, score, summary
from latentwire_adapter.losses import Balance, PromptLosses, gradient_shares, reconstruction_loss
from latentwire_adapter.metrics.ledger import ledger, references
from latentwire_adapter.metrics.reconstruction import reconstruction_metrics
from latentwire_adapter.model import codecs
from latentwire_adapter.model.adapter import Adapter, count_parameters
from latentwire_adapter.model.compressor import EmbeddingCompressor
from latentwire_adapter.model.language_model import LanguageModel, load_language_model
from latentwire_adapter.model.reader import text_of
from latentwire_adapter.selfcheck import demand, selfcheck as run_checks
from studycore.errors import UserError
from studycore.files import read_json
from studycore.run import Run, copied
from studycore.streams import generator

CHECKED_QUESTIONS = SelfcheckConfig.eval_samples


@dataclass
class Fit:
    """Counts of the training text, and the compressor that was fitted on them."""

    counts_V: Tensor
    held_V: Tensor
    compressor: EmbeddingCompressor
    about: dict[str, Any]

    def weights(self, alpha: float) -> Tensor:
        """weights_V = count^alpha of the types that the fits see, else 0; their mean over these is 1."""
        seen_V = (self.counts_V > 0) & ~self.held_V
        weights_V = torch.where(seen_V, self.counts_V.clamp(min=1e-12) ** alpha, 0.0)
        return weights_V / weights_V.sum() * seen_V.sum()


# ------------------------------------------------------------------------------------------------------- selfcheck
def selfcheck(config: SelfcheckConfig, run: Run) -> None:
    """Every check. UserError names the first that fails, so that what needs this run fails with it."""
    lm, prompts = read(config, run)
    run.begin(data={"scored questions": prompts.fingerprint})
    found = run_checks(lm, prompts, config)
    for name, wrong in found.items():
        run.log({"type": "check", "check": name, "holds": not wrong, "wrong": wrong or "nothing"})
        run.say(f"  {'ok   ' if not wrong else 'FAILS'} {name}{f': {wrong}' if wrong else ''}")
    run.results({"checks": len(found), "failing": sum(bool(wrong) for wrong in found.values())})
    demand(found)


def read(config: Reading, run: Run) -> tuple[LanguageModel, Prompts]:
    """The model and the scored prompts."""
    lm = load_language_model(config, run.device)
    return lm, scored_prompts(config, lm.tokenizer, lm.context)


def check_first(config: Reading, lm: LanguageModel, prompts: Prompts, run: Run) -> None:
    """The checks, unless a run that did them is among those that this one needs."""
    if "selfcheck" not in run.needs and not run.dry and run.checkpoint is None:
        demand(run_checks(lm, replace(prompts, prompts=prompts.prompts[:CHECKED_QUESTIONS]), config))


# ------------------------------------------------------------------------------------------------------------- fit
def fit(config: FitConfig, run: Run) -> None:
    """Counts the training text and fits every dimension at once."""
    lm = load_language_model(config, run.device)
    width = lm.table_VD.shape[1]
    found = make_fit(config, lm, width)
    run.begin(data={"counts": fingerprint(found.counts_V)}, about=found.about)
    if run.is_main:
        save_fit(found, run.folder)
    variances = found.compressor.variances
    kept = {f"kept_{ratio}x": float(variances[: width // ratio].sum() / variances.sum()) for ratio in (2, 4, 8, 16)}
    run.log({"type": "fit", **kept})
    run.results({**found.about, **kept}, {"variances": variances})


def make_fit(config: FitConfig, lm: LanguageModel, dimensions: int) -> Fit:
    """The fit of `dimensions` of the language model's table."""
    types = len(lm.table_VD)
    counts_V, about = training_counts(config, lm.tokenizer, types, lm.context)
    pca_samples = getattr(config, "pca_samples", None)
    fewer = (
        counts_V
        if pca_samples is None
        else training_counts(replace(config, samples=pca_samples), lm.tokenizer, types, lm.context)[0]
    )
    held_V = held_out_types(counts_V, config.held_out_types, config.always_seen)
    compressor = EmbeddingCompressor(lm.table_VD.shape[1], dimensions, config.compress_method, config.seed)
    found = Fit(fewer, held_V, compressor, about)
    began = time.perf_counter()
    compressor.to(lm.device).fit_counts(lm.table_VD, found.weights(config.alpha).to(lm.device))
    found.counts_V = counts_V
    present = counts_V > 0
    about |= {
        "fit_seconds": time.perf_counter() - began, "types_seen": int((present & ~held_V).sum()),
        "types_held_out": int((present & held_V).sum()), **references(counts_V, characters_per_token(lm, counts_V)),
    }  # fmt: skip
    return found


def characters_per_token(lm: LanguageModel, counts_V: Tensor) -> float:
    """Bytes of a token's text, mean over the counted text."""
    types = counts_V.nonzero().flatten().tolist()
    sizes = torch.tensor([len(lm.tokenizer.decode([token]).encode()) for token in types], dtype=torch.float64)
    return float((counts_V[types] * sizes).sum() / counts_V.sum())


def save_fit(found: Fit, folder: Path) -> None:
    """compressor/ and counts.safetensors."""
    from safetensors.torch import save_file

    found.compressor.save_pretrained(folder / "compressor")
    tensors = {"counts": found.counts_V.float(), "held_out": found.held_V}
    save_file(tensors | {"positions": torch.tensor(found.about["positions"])}, folder / "counts.safetensors")


def load_fit(folder: Path, device: torch.device) -> Fit:
    """What `save_fit` wrote. UserError when it is not there."""
    from safetensors.torch import load_file

    path = folder / "counts.safetensors"
    if not path.is_file():
        raise UserError(f"phase1: {folder} holds no counts.safetensors; name the folder of a finished phase 1 run")
    stored = load_file(path)
    return Fit(
        stored["counts"].double(),
        stored["held_out"],
        EmbeddingCompressor.from_pretrained(folder / "compressor").to(device),
        {"positions": int(stored["positions"])},
    )


def fingerprint(counts_V: Tensor) -> str:
    """SHA-256 of the counts."""
    return hashlib.sha256(counts_V.float().numpy().tobytes()).hexdigest()


def code_dimensions(config: Phase1Config, width: int) -> int:
    """Dimensions of the code. UserError for none, or more than an embedding has."""
    found = config.compress_dim or round(width / config.ratio)
    if not 1 <= found <= width:
        field, value = ("compress_dim", config.compress_dim) if config.compress_dim else ("ratio", config.ratio)
        raise UserError(f"{field}: {value} leaves {found} of {width} dimensions; give 1 to {width} dimensions")
    return found


# ---------------------------------------------------------------------------------------------------------- phase 1
def phase1(config: Phase1Config, run: Run) -> None:
    """Fits the compressor, trains the adapter on reconstruction alone, then answers the questions through it."""
    # -------------------------------------------------------------------------------------------------- set-up
    run.accelerate()
    lm, prompts = read(config, run)
    k = code_dimensions(config, lm.table_VD.shape[1])
    found = fit_of(config, lm, k, run)
    run.begin(data={"scored questions": prompts.fingerprint, "counts": fingerprint(found.counts_V)}, about=found.about)
    check_first(config, lm, prompts, run)
    data = TypeRows(lm, found, config)

    # --------------------------------------------------------------------------------------- model and optimizer
    adapter = run.model(
        build_adapter,
        replay,
        probe_inputs(k),
        adapter_values(config, k, data.x_UD.shape[1]),
        lambda: start_adapter(config, k, data, found),
    )
    optimizer = run.optimizer(
        torch.optim.AdamW(adapter.parameters(), config.adapter_lr, weight_decay=config.adapter_weight_decay)
    )
    forward, prepared = run.accelerator.prepare(adapter, optimizer)
    per_epoch = math.ceil(len(data.ids_U) / config.batch_size)
    total = per_epoch * config.epochs

    # -------------------------------------------------------------------------------------------------------- loop
    for step in run.steps(total, loop="reconstruction"):
        # evaluate
        if run.every(config.eval_every):
            row = data.measure(adapter)
            loss = config.recon_weight * row["recon_mse"] / data.mse_unit
            log(run, {
                "type": "train_step", "epoch": step // per_epoch, "loss": loss, **row, "lr": learning_rate(step, total, config.adapter_lr),
                "compression_ratio": data.x_UD.shape[1] / k, "batch_size": config.batch_size, **gpu_memory(),
            }, step // per_epoch)  # fmt: skip
            if config.quick_eval_samples and not run.dry:
                log(
                    run,
                    {"type": "quick_eval", "quick_f1": quick_f1(config, lm, prompts, found, adapter)},
                    step // per_epoch,
                )
        # save
        if run.saving(config.checkpoint_every):
            run.save()
        # stop
        if run.ended():
            break
        # step
        forward.train()
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout's stream: a function of (seed, step)
        for group in prepared.param_groups:
            group["lr"] = learning_rate(step, total, config.adapter_lr)
        mine, weight = data.batch(config, step, per_epoch, run.rank, run.world)
        loss = config.recon_weight * reconstruction_loss(
            forward(data.z_UK[mine]), data.x_UD[mine], data.w_U[mine], data.variance, weight
        )
        run.backward(loss, "adapter_lr")
        if config.grad_clip is not None:
            run.accelerator.clip_grad_norm_(adapter.parameters(), config.grad_clip)
        prepared.step()
        prepared.zero_grad()

    # ---------------------------------------------------------------------------------------------------- answers
    adapter.eval()
    if run.is_main and not run.dry:
        adapter.save_pretrained(run.folder / "adapter")
        save_fit(found, run.folder)
    arm = Arm("adapter", prompts, codecs.adapted(lm.table_VD, found.compressor, adapter), ~found.held_V)
    rows = score(arm, lm, config, codecs.raw(lm.table_VD), run)
    compare = {f"linear_{name}": value for name, value in data.measure(found.compressor.decompress).items()}
    finish(
        run,
        lm,
        arm,
        rows,
        found,
        count_parameters(adapter),
        {**data.measure(adapter), **compare, **data.about},
        data.arrays(adapter, found.compressor),
    )


def quick_f1(config: Phase1Config, lm: LanguageModel, prompts: Prompts, found: Fit, adapter: Adapter) -> float:
    """F1, from 0 to 100, of the first questions through the adapter as it is; the same in each process."""
    few = replace(prompts, prompts=prompts.prompts[: config.quick_eval_samples])
    arm = Arm("adapter", few, codecs.adapted(lm.table_VD, found.compressor, adapter.eval()))
    reader, _ = readers(arm, lm, config, codecs.raw(lm.table_VD))
    texts = [text_of(lm, tokens) for tokens in reader.answer(few.prompts, config.max_new_tokens)]
    return 100 * batch_metrics(texts, [p.question.answers for p in few.prompts])[1]


def fit_of(config: Phase1Config, lm: LanguageModel, k: int, run: Run) -> Fit:
    """The fit with k dimensions: of the run that this one needs, or made here."""
    if "fit" not in run.needs:
        return make_fit(config, lm, k)
    found = load_fit(run.needs["fit"], lm.device)
    if config.compress_method == "pca":
        found.compressor = found.compressor.truncated(k).to(lm.device)
    else:
        compressor = EmbeddingCompressor(lm.table_VD.shape[1], k, config.compress_method, config.seed)
        found.compressor = compressor.to(lm.device).fit_counts(lm.table_VD, found.weights(config.alpha).to(lm.device))
    return found


class TypeRows:
    """The token types that the adapter trains on, with their codes and weights, and those that were held out."""

    def __init__(self, lm: LanguageModel, found: Fit, config: Phase1Config):
        weights_V = found.weights(config.adapter_alpha)
        self.ids_U = weights_V.nonzero().flatten().to(lm.device)
        self.w_U = weights_V.to(lm.device)[self.ids_U].float()
        self.x_UD = lm.table_VD[self.ids_U].float()
        self.z_UK = found.compressor.compress(self.x_UD)
        held_U = ((found.counts_V > 0) & found.held_V).nonzero().flatten().to(lm.device)
        self.held_x_UD = lm.table_VD[held_U].float()
        self.held_z_UK = found.compressor.compress(self.held_x_UD)
        counts_V = found.counts_V.to(lm.device)
        self.seen_count_U, self.held_count_U = counts_V[self.ids_U], counts_V[held_U]
        self.mean_D = found.compressor.mean
        share_U = self.w_U / self.w_U.sum()
        self.variance = float(share_U @ (self.x_UD - self.mean_D).square().sum(1))
        self.mse_unit = self.variance / self.x_UD.shape[1]
        self.code_rms = float((share_U @ self.z_UK.square().mean(1)).sqrt())
        self.row_rms = float(self.mse_unit**0.5)
        self.about = {
            "rows_per_epoch": len(self.ids_U), "positions": found.about["positions"],
            "positions_per_row": found.about["positions"] / len(self.ids_U),
        }  # fmt: skip

    def batch(self, config: Phase1Config, step: int, per_epoch: int, rank: int, world: int) -> tuple[Tensor, float]:
        """(this process's rows of update `step`, the weight that makes the mean over processes that of the batch)."""
        epoch, number = divmod(step, per_epoch)
        order = torch.randperm(len(self.ids_U), generator=generator(config.seed, "types", epoch)).to(self.ids_U.device)
        whole = order[number * config.batch_size : (number + 1) * config.batch_size]
        return whole[rank::world], float(self.w_U[whole].sum()) / world

    @torch.no_grad()
    def measure(self, decode: Any) -> dict[str, float]:
        """Reconstruction of seen types by their counts, and of held-out ones under names that start with held_out_."""
        if isinstance(decode, torch.nn.Module):
            decode.eval()
        seen = reconstruction_metrics(decode(self.z_UK), self.x_UD, self.seen_count_U, self.mean_D)
        if not len(self.held_x_UD):
            return seen
        held = reconstruction_metrics(decode(self.held_z_UK), self.held_x_UD, self.held_count_U, self.mean_D)
        return seen | {f"held_out_{name}": value for name, value in held.items()}

    @torch.no_grad()
    def arrays(self, adapter: Adapter, compressor: EmbeddingCompressor) -> dict[str, Tensor]:
        """By token type: count, squared distance from the mean, squared errors of adapter and linear inverse."""
        found: dict[str, Tensor] = {}
        for name, x_UD, z_UK, count_U in (
            ("seen", self.x_UD, self.z_UK, self.seen_count_U), ("held_out", self.held_x_UD, self.held_z_UK, self.held_count_U),
        ):  # fmt: skip
            found |= {
                f"{name}_count": count_U, f"{name}_spread": (x_UD - self.mean_D).square().sum(1),
                f"{name}_adapter": (adapter(z_UK) - x_UD).square().sum(1),
                f"{name}_linear": (compressor.decompress(z_UK) - x_UD).square().sum(1),
            }  # fmt: skip
        return found


def adapter_values(config: Phase1Config, k: int, width: int) -> dict[str, Any]:
    """The constructor's arguments."""
    return {
        "d_z": k, "d_model": width, "hidden_mult": config.adapter_hidden_mult, "dropout": config.adapter_dropout, "form": config.adapter_form,
    }  # fmt: skip


def build_adapter(values: Mapping[str, Any]) -> Adapter:
    """An untrained adapter of a stored configuration."""
    return Adapter(**values)


def start_adapter(config: Phase1Config, k: int, data: TypeRows, found: Fit) -> Adapter:
    """A new adapter, drawn from the seed, begun at the linear inverse."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapter = Adapter(**adapter_values(config, k, data.x_UD.shape[1]))
    adapter.to(data.x_UD.device).start_at_inverse(found.compressor, data.code_rms, data.row_rms)
    return adapter


def probe_inputs(k: int) -> dict[str, Tensor]:
    """A fixed code, on whose row a checkpoint is checked when it is loaded."""
    return {"input_code": torch.linspace(-1, 1, k)[None]}


def replay(adapter: Adapter, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row of the fixed code."""
    training = adapter.training
    adapter.eval()
    with torch.no_grad():
        row = adapter(inputs["input_code"].to(adapter.scale.device))
    adapter.train(training)
    return {"output_row": row}


def learning_rate(step: int, total: int, peak: float) -> float:
    """Half a cosine from the peak to a hundredth of it."""
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / max(total, 1))))


def gpu_memory() -> dict[str, float]:
    """What the original study logs of each GPU; empty without one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    used = {f"gpu_{i}_allocated_gb": torch.cuda.memory_allocated(i) / 2**30 for i in range(count)}
    return {**used, "gpu_count": count, "total_gpu_memory_gb": sum(used.values())} if count else {}


def log(run: Run, row: dict[str, Any], epoch: int) -> None:
    """A row of metrics.jsonl, and of --diagnostic-log in the original study's form."""
    timed = {**row, "epoch": epoch, "timestamp": time.time()}
    run.log(timed)
    target = getattr(run.options, "diagnostic_log", None)
    if target and run.is_main and not run.dry:
        log_diagnostics(target, run.step, epoch, {k: v for k, v in timed.items() if k not in ("epoch", "timestamp")})


def finish(
    run: Run, lm: LanguageModel, arm: Arm, rows: list[dict[str, Any]], found: Fit | None, parameters: int, more: Mapping[str, Any],
    arrays: Mapping[str, Tensor] | None = None, whole: int = 0,
) -> None:  # fmt: skip
    """The last row of the log, and the results; `whole`: tokens of the questions before an arm took some away."""
    means = summary(rows)
    code = found.compressor.output_dim if found else 0
    sent = sum(len(p.asked_T) for p in arm.prompts.prompts)
    counted = ledger(arm.name, (lm.table_VD.shape[0], lm.table_VD.shape[1]), code, parameters, sent / (whole or sent))
    times = {} if arm.rows is None else {"rows_seconds_per_1000_types": seconds_per_1000(arm, lm)}
    log(run, {"type": "full_eval", **{k: means[k] for k in ("f1", "em", "eval_samples")}}, 0)
    run.say(f"{arm.name}: F1 {means['f1']:.1f}, EM {means['em']:.1f} on {means['eval_samples']} questions")
    run.results(
        {
            **means,
            **counted,
            **times,
            "dimensions": code or lm.table_VD.shape[1],
            "adapter_parameters": parameters,
            **more,
        },
        copied(arrays) if arrays else None,
    )


def seconds_per_1000(arm: Arm, lm: LanguageModel) -> float:
    """Seconds in which the rows of 1,000 token types are coded and decoded."""
    assert arm.rows is not None
    ids = torch.arange(min(1000, len(lm.table_VD)), device=lm.device)
    began = time.perf_counter()
    arm.rows(ids)
    return (time.perf_counter() - began) * 1000 / len(ids)


# --------------------------------------------------------------------------------------------------------- evaluate
def evaluate(config: EvaluateConfig, run: Run) -> None:
    """Scores one arm."""
    run.accelerate()
    lm, prompts = read(config, run)
    found, adapter = None, None
    whole = sum(len(p.asked_T) for p in prompts.prompts)
    if config.arm not in ("ids", "raw", "question_only", "shuffled"):
        folder = phase1_folder(config.phase1, run)
        found, adapter = load_fit(folder, lm.device), Adapter.from_pretrained(folder / "adapter").to(lm.device).eval()
        if found.compressor.input_dim != lm.table_VD.shape[1]:
            raise UserError(
                f"phase1: {folder} is of embeddings with {found.compressor.input_dim} dimensions and the model's have {lm.table_VD.shape[1]}; name a run of this model"
            )
    run.begin(data={"scored questions": prompts.fingerprint})
    check_first(config, lm, prompts, run)
    arm = make_arm(config.arm, lm, prompts, found, adapter)
    rows = score(arm, lm, config, codecs.raw(lm.table_VD), run, run.needs.get("raw"))
    parameters = count_parameters(adapter) if adapter is not None and config.arm in ("adapter", "int8", "int4") else 0
    more = snap_accuracy(lm, found) if config.arm == "nearest" and found is not None else {}
    finish(run, lm, arm, rows, found, parameters, more, whole=whole)


def make_arm(name: str, lm: LanguageModel, prompts: Prompts, found: Fit | None, adapter: Adapter | None) -> Arm:
    """The arm of that name."""
    table, raw = lm.table_VD, codecs.raw(lm.table_VD)
    if name in ("ids", "raw", "question_only", "shuffled"):
        chosen = {"question_only": without_contexts, "shuffled": shuffled_contexts}.get(name, lambda p: p)(prompts)
        return Arm(name, chosen, None if name == "ids" else raw)
    assert found is not None and adapter is not None
    compressor, seen_V = found.compressor, ~found.held_V
    if name == "fewer":
        ratio = compressor.input_dim / compressor.output_dim
        return Arm(name, fewer_tokens(prompts, ratio, found.counts_V), raw)
    rows = {
        "linear": lambda: codecs.linear(table, compressor), "nearest": lambda: codecs.nearest(table, compressor),
        "adapter": lambda: codecs.adapted(table, compressor, adapter), "int8": lambda: codecs.adapted(table, compressor, adapter, 8),
        "int4": lambda: codecs.adapted(table, compressor, adapter, 4),
    }[name]()  # fmt: skip
    return Arm(name, prompts, rows, seen_V)


def snap_accuracy(lm: LanguageModel, found: Fit) -> dict[str, float]:
    """Share of the counted text's tokens, and of its types, whose nearest code is their own."""
    ids_U = (found.counts_V > 0).nonzero().flatten().to(lm.device)
    z_UK = found.compressor.compress(lm.table_VD[ids_U].float())
    right_U = (codecs.nearest_types(lm.table_VD, found.compressor, z_UK) == ids_U).double().cpu()
    counts_U = found.counts_V[ids_U.cpu()]
    return {"snap_accuracy": float(right_U @ counts_U / counts_U.sum()), "snap_accuracy_types": float(right_U.mean())}


def phase1_folder(given: str | None, run: Run) -> Path:
    """Of the phase 1 run that this one needs, or that was named. UserError for none."""
    of_plan = next((path for name, path in run.needs.items() if name.startswith("phase1_")), None)
    if of_plan is None and given is None:
        raise UserError("phase1: null; this arm needs a compressor, so name the folder of a phase 1 run: --phase1 RUN")
    folder = of_plan or Path(str(given))
    if not (folder / "adapter" / "config.json").is_file():
        raise UserError(f"phase1: {folder} holds no adapter; name the folder of a finished phase 1 run")
    return folder


# ---------------------------------------------------------------------------------------------------------- phase 2
def phase2(config: Phase2Config, run: Run) -> None:
    """Trains phase 1's adapter through the frozen language model, when that is due, then answers the questions."""
    # -------------------------------------------------------------------------------------------------- set-up
    run.accelerate()
    lm, prompts = read(config, run)
    folder = phase1_folder(config.phase1, run)
    found = load_fit(folder, lm.device)
    start = Adapter.from_pretrained(folder / "adapter").to(lm.device)
    if found.compressor.input_dim != lm.table_VD.shape[1]:
        raise UserError(f"phase1: {folder} is of another model's embeddings; name a run of this model")
    before = read_json(folder / "results.json")["metrics"]["f1"]
    taught = training_prompts(config, lm.tokenizer, lm.context, max(config.steps * config.phase2_batch_size, 1))
    run.begin(
        data={
            "scored questions": prompts.fingerprint,
            "training questions": taught.fingerprint,
            "counts": fingerprint(found.counts_V),
        }
    )
    due = before < config.only_below
    run.log({"type": "decision", "due": due, "phase1_f1": before, "only_below": config.only_below})
    if not due:
        run.results({"due": False, "phase1_f1": before})
        return
    check_first(config, lm, prompts, run)
    data = TypeRows(lm, found, config)

    # --------------------------------------------------------------------------------------- model and optimizer
    adapter = run.model(
        build_adapter, replay, probe_inputs(found.compressor.output_dim), start.arguments, lambda: start
    )
    optimizer = run.optimizer(
        torch.optim.AdamW(adapter.parameters(), config.phase2_lr, weight_decay=config.adapter_weight_decay)
    )
    trained = list(adapter.parameters())
    balance = Balance(config.balance, {"reconstruction": config.recon_weight, config.objective: config.ce_weight})
    balance.restore(run.state)
    per_epoch = math.ceil(len(data.ids_U) / config.batch_size)

    # -------------------------------------------------------------------------------------------------------- loop
    for step in run.steps(config.steps, loop="language"):
        # evaluate
        if run.every(config.eval_every) and not run.dry:
            run.log({"type": "reconstruction", **data.measure(adapter)})
        # save
        if run.saving(config.checkpoint_every):
            run.save(balance.state())
        # stop
        if run.ended():
            break
        # step
        adapter.train()
        torch.manual_seed(config.seed * 1_000_003 + step)
        rate = learning_rate(step, config.steps, config.phase2_lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        mine, weight = data.batch(config, step, per_epoch, run.rank, run.world)
        reconstruction = reconstruction_loss(
            adapter(data.z_UK[mine]), data.x_UD[mine], data.w_U[mine], data.variance, weight
        )
        first = step * config.phase2_batch_size
        asked = [taught.prompts[i % len(taught.prompts)] for i in range(first, first + config.phase2_batch_size)][
            run.rank :: run.world
        ]
        through = PromptLosses(lm, asked, taught.prefix_T, config.objective)
        arrived = adapter(found.compressor.compress(lm.table_VD[through.ids_BT].float()))
        language, floor = through(arrived, through.uncompressed())
        losses = {"reconstruction": reconstruction, config.objective: language}
        gradients = {name: torch.autograd.grad(loss, trained, allow_unused=True) for name, loss in losses.items()}
        merged = {
            name: mean_over_processes(
                run, [g if g is not None else torch.zeros_like(p) for g, p in zip(grads, trained, strict=True)]
            )
            for name, grads in gradients.items()
        }
        values = {name: float(run.accelerator.reduce(loss.detach(), "mean")) for name, loss in losses.items()}
        if not all(map(math.isfinite, values.values())):
            raise UserError(run.not_finite("phase2_lr", "the loss", sum(values.values())))
        norms = {
            name: float(torch.stack([g.square().sum() for g in grads]).sum().sqrt()) for name, grads in merged.items()
        }
        weights = balance.weigh(values, {"reconstruction": 0.0, config.objective: floor}, norms)
        for i, parameter in enumerate(trained):
            parameter.grad = sum(weights[name] * merged[name][i] for name in merged)  # type: ignore[assignment]
        clipped = torch.nn.utils.clip_grad_norm_(trained, config.grad_clip or math.inf)
        if step % config.log_every == 0:
            shares = gradient_shares(norms, weights)
            log(run, {
                "type": "train_step", "loss": sum(weights[n] * values[n] for n in values), "recon_loss": values["reconstruction"],
                f"{config.objective}_loss": values[config.objective], "floor": floor, "lr": rate, "gradient_norm": float(clipped),
                **{f"weight_{n}": w for n, w in weights.items()}, **{f"share_{n}": s for n, s in shares.items()},
            }, step // per_epoch)  # fmt: skip
        optimizer.step()
        optimizer.zero_grad()

    # ---------------------------------------------------------------------------------------------------- answers
    adapter.eval()
    if run.is_main and not run.dry:
        adapter.save_pretrained(run.folder / "adapter")
        save_fit(found, run.folder)
    arm = Arm("phase2", prompts, codecs.adapted(lm.table_VD, found.compressor, adapter), ~found.held_V)
    rows = score(arm, lm, config, codecs.raw(lm.table_VD), run)
    finish(
        run,
        lm,
        arm,
        rows,
        found,
        count_parameters(adapter),
        {"due": True, "phase1_f1": before, **data.measure(adapter)},
    )


def mean_over_processes(run: Run, tensors: list[Tensor]) -> list[Tensor]:
    """Each tensor, averaged over the processes."""
    return tensors if run.world == 1 else [run.accelerator.reduce(t, "mean") for t in tensors]
