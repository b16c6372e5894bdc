"""One run, from top to bottom: set-up, model and optimizer, then evaluate, save, stop, step, log.

The batch of an update, permutations and dropout are functions of (seed, step, rank); nothing else is drawn. A
checkpoint needs no random states and resuming is bitwise on a CPU.

At step s, s updates have been made. A transport comes before update s (s > 0 and a multiple of glt_interval), after the
evaluation at s, so that an evaluation never sees the moment right after it.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrofit.arms import get_arm
from retrofit.arms.base import StepState
from retrofit.blocks import FeedForward, LeftOut, Part, find_blocks, left_out, up_norms, weights_by_role
from retrofit.config import ROLES, START, RunConfig
from retrofit.data import Data, load_data, micro_batches
from retrofit.legacy.original_json import write_original
from retrofit.losses import NextTokenLoss
from retrofit.metrics.documents import documents_file, write_documents
from retrofit.metrics.drift import ablation_rows, transport_row
from retrofit.metrics.evaluation import conditioning_row, ff_gram_row, perplexity_row
from retrofit.metrics.final import results
from retrofit.metrics.gradients import norms_by_role, role_norms
from retrofit.metrics.perplexity import evaluate
from retrofit.metrics.windows import windows_file, write_windows
from retrofit.model import load_model, save_model
from studycore.configuration import differences, to_dict
from studycore.devices import check_memory, choose_device
from studycore.errors import UserError
from studycore.files import check_local
from studycore.language.pretrained import (
    architecture_of,
    build_model,
    context_of,
    load_tokenizer,
    probe_inputs,
    replay_probe,
    vocabulary_of,
    weights_fingerprint,
)
from studycore.metrics_log import read_rows
from studycore.models import count_parameters
from studycore.record import is_done
from studycore.run import Run
from studycore.run_folder import read_manifest, read_results
from studycore.schedules import warm_up
from studycore.streams import derive_seed


def train(config: RunConfig, run: Run) -> None:
    """Trains the configuration in the open run. UserError for what can't be run."""
    # ---------------------------------------------------------------------------------------------------- set-up
    if config.mixed_precision == "fp16" and choose_device(run.options.device)[0] == "cpu":
        raise UserError("mixed_precision: fp16 needs a GPU; give bf16 or fp32")
    run.accelerate(mixed_precision="no" if config.mixed_precision == "fp32" else config.mixed_precision)
    paths = {"--model": config.model, "--dataset": config.dataset, "--validation-dataset": config.validation_dataset}
    began = check_where_it_began(run, paths)
    arm, last_step = get_arm(config.method), 0 if config.method == "none" else config.num_steps
    pretrained, commit = load_model(config.model, config.model_revision, config.dropout)
    own_dropout, tokenizer = pretrained.own_dropout, load_tokenizer(config.model, config.model_revision)
    blocks, lacking = find_blocks(pretrained), left_out(pretrained)
    if lacking.sentences:
        run.say(f"note: {lacking.sentences}")
    if config.method == "glt_fold" and any(block.norm is None for block in blocks):
        raise UserError(
            f"method: glt_fold does not know which norm feeds only the FFN of {pretrained.config.model_type}; take another method"
        )
    data = load_data(config, tokenizer, context_of(pretrained), vocabulary_of(pretrained))
    if last_step:
        check_batch(config, run, pretrained, len(data.train.ids_NT))
    reference = norm_reference(config, run, len(blocks), last_step)
    fingerprints = {**data.fingerprints, "model": weights_fingerprint(pretrained)}
    check_start(run, fingerprints)
    run.begin(data=fingerprints)

    # ------------------------------------------------------------------------------------- model and optimizer
    # A checkpoint's own architecture holds: another version of transformers may name its settings otherwise.
    architecture = run.checkpoint.config["architecture"] if run.checkpoint else architecture_of(pretrained)
    # Both names, so that a resumed run lets go of the weights that were loaded.
    model = pretrained = run.model(
        lambda values: build_model(values["architecture"]), replay_probe, probe_inputs(pretrained),
        {"architecture": architecture, "run": to_dict(config)}, start=lambda: pretrained,
    ).train()  # fmt: skip
    blocks, parameters = find_blocks(model), list(model.parameters())
    by_role, lr = weights_by_role(model), rate_of(config, run)
    optimizer = run.optimizer(
        torch.optim.AdamW(
            parameters, lr=lr, betas=(config.beta1, config.beta2), eps=config.eps,
            weight_decay=config.weight_decay, fused=True,  # one pass over weights and moments instead of seven
        )
    )  # fmt: skip
    stepper, prepared = run.accelerator.prepare(NextTokenLoss(model), optimizer)
    about = what_the_run_is(config, data, model, lacking, lr, last_step) | {"hub_commit": commit}
    seen = [block.name for block in blocks if block.has_features]
    run.about(about=about, layers=[block.name for block in blocks], layers_with_activations=seen, began=began)

    # ------------------------------------------------------------------------------------------------------ loop
    batches = micro_batches(data.train, config, range(run.step, last_step), run.rank, run.world)
    for step in run.steps(last_step):
        # evaluate
        if run.every(config.eval_interval):
            with run.saved_if_stopped():
                row = start_row(run) if step == 0 and START in run.needs else evaluation_row(run, model, blocks, data)
            run.log(row)
            run.say(console_line(row, step, last_step, run.rows[-2] if step > 0 and run.is_main else {}))
            if config.method == "none":
                for row in ablation_rows(model, blocks, data, config):
                    run.log(row)
                    run.check_stop()
        # save
        if run.saving(config.checkpoint_every):
            run.save()
        # stop
        if run.ended():
            break
        # step
        state = StepState(model, blocks, optimizer, config, step, reference)
        moved = arm.transports and step > 0 and step % config.glt_interval == 0
        if moved:
            run.log(transport_row(arm.transport, state, data))
        torch.manual_seed(derive_seed(config.seed, "dropout", step, run.rank))
        loss, parts = torch.zeros((), device=run.device), next(batches)
        for number, ids_NT in enumerate(parts, start=1):
            # An update of many parts is given up for a signal, but not after a transport, which is made once.
            if number > 1 and not moved and run.told_to_stop():
                break
            with nullcontext() if number == len(parts) else run.accelerator.no_sync(stepper):
                share = stepper(ids_NT.to(run.device)) / len(parts)
                run.backward(share, "lr")
            loss += share.detach()
        if run.stopping and not moved:
            prepared.zero_grad()
            run.save()
            run.ended()
        row = {"kind": "update", "loss": float(sum_processes(run, loss)) / run.world}
        # The cross-entropy's gradient is clipped alone; the penalty's comes on top, once per update.
        row |= clip_gradients(run.accelerator, parameters, config.grad_clip)
        row |= norms_by_role(by_role, row, config.grad_clip)
        row |= add_penalty(run, arm.penalty(state), by_role)
        for group in optimizer.param_groups:
            group["lr"] = lr * warm_up(step, config.warmup_steps)
        prepared.step()
        prepared.zero_grad()
        arm.after_update(dataclasses.replace(state, step=step + 1))
        norms = up_norms(blocks)
        if infinite := [norm for norm in norms if not math.isfinite(norm)]:
            raise UserError(run.not_finite("lr", "a weight's norm", infinite[0]))
        # log
        run.log({**row, "up_norms": norms})

    # --------------------------------------------------------------------------------------------------- results
    if run.is_main:
        if config.save_model:
            save_model(model, tokenizer, run.folder / "model", own_dropout)
        run.results(results(run.rows, about))
        evaluations = [row for row in run.rows if row["kind"] == "evaluation"]
        saved = str(run.folder / "model") if config.save_model else None
        file = write_original(run.folder, config.method, evaluations, checkpoint_path=saved, about=about)
        if output := getattr(run.options, "output", None):
            shutil.copyfile(file, output)


# ------------------------------------------------------------------------------------------------- the start of a run
def what_the_run_is(
    config: RunConfig, data: Data, model: Any, lacking: LeftOut, lr: float, last_step: int
) -> dict[str, Any]:
    """What the results say of a run besides its measurements: texts, sizes, rate, and what of the model is not measured."""
    widths = [block.down.weight_OI.shape[1] for block in find_blocks(model) if block.has_features]
    return {
        **data.about, "parameters": count_parameters(model), "ffn_width": max(widths, default=0),
        "lr": lr, "warmup_steps": config.warmup_steps, "validate_on": config.validate_on,
        "left_out": lacking.sentences, "left_out_share": lacking.share,
        "training_tokens": last_step * config.batch_size * config.block_size,
        "validation_set": data.validation.first(config.validation_blocks).name,
        "trajectory_set": data.validation.first(config.trajectory_blocks).name,
    }  # fmt: skip


def check_where_it_began(run: Run, paths: Mapping[str, str | None]) -> dict[str, Any]:
    """The folder that relative paths are meant from, and which of these are. UserError for a path that is not there."""
    if run.resume and (began := run.manifest.get("began")):
        for flag, name in began["relative"].items():
            if not Path(name).exists():
                raise UserError(
                    f"{flag}: '{name}': is not here; it is meant from {began['folder']}, where the run began, so resume it from there"
                )
        return dict(began)
    for flag, name in paths.items():
        if name is not None:
            check_local(flag, name)
    relative = {f: n for f, n in paths.items() if n and Path(n).exists() and not Path(n).is_absolute()}
    return {"folder": str(Path.cwd()), "relative": relative}


MOST_PASSES = 10
"""Times that a batch may hold every training block: a larger one is a slip of the finger."""


def check_batch(config: RunConfig, run: Run, model: Any, blocks: int) -> None:
    """UserError for a batch far above the training blocks, or one that does not fit into memory."""
    if config.batch_size > MOST_PASSES * blocks:
        raise UserError(
            f"batch_size: {config.batch_size} is more than {MOST_PASSES} times the {blocks} training blocks; lower it, or give more text"
        )
    part = -(-config.batch_size // (run.world * config.gradient_accumulation_steps))
    # The weights are there; gradients, AdamW's moments, and the logits of a part with their gradient.
    size = 3 * sum(weight.nbytes for weight in model.parameters())
    size += 2 * 4 * part * config.block_size * vocabulary_of(model)
    what = f"batch_size: gradients, moments and the logits of {part} blocks at a time"
    check_memory(size, what, "lower it, or raise gradient_accumulation_steps", run.device)


def check_start(run: Run, fingerprints: Mapping[str, str]) -> None:
    """UserError when the run whose evaluation at step 0 is taken over had another model or text."""
    if START in run.needs:
        stored = read_manifest(run.needs[START])["data_fingerprints"]
        if changed := differences(stored, dict(fingerprints)):
            raise UserError(
                f"{run.needs[START]}: the comparison began with another model or text: {'; '.join(changed)}; start a new one"
            )


def rate_of(config: RunConfig, run: Run) -> float:
    """The learning rate: lr, or that of the tuning run that ended at the lowest perplexity. UserError where one can't be used."""
    if not config.tuned or run.dry:
        return config.lr
    tried = []
    for name in config.tuned:
        place = run.folder_of("tuned", name, need=Path(name).name)
        metrics = read_results(place)["metrics"] if is_done(place) else {}
        if metrics.get("validate_on") != "tuning":
            raise UserError(f"tuned: {place} is no finished run with validate_on tuning; name such runs")
        tried.append((metrics["val_loss"], metrics["lr"]))
    return float(min(tried)[1])


def norm_reference(config: RunConfig, run: Run, layers: int, steps: int) -> Mapping[int, Sequence[float]] | None:
    """Norms of the up projections of the run that is followed, by updates made. UserError when they don't fit the run."""
    if config.norm_reference is None:
        return None
    named = config.norm_reference
    place = run.folder_of("norm_reference", named, need=Path(named).name, holds="metrics.jsonl")
    norms = {row["step"] + 1: row["up_norms"] for row in read_rows(place / "metrics.jsonl") if "up_norms" in row}
    if len(norms) < steps or any(len(values) != layers for values in norms.values()):
        raise UserError(
            f"norm_reference: {place} has norms of {len(norms)} updates, and {steps} of {layers} layers are needed; name another run"
        )
    return norms


# --------------------------------------------------------------------------------------------------------- evaluation
def evaluation_row(run: Run, model: Any, blocks: Sequence[FeedForward], data: Data) -> dict[str, Any]:
    """The row of an evaluation by all processes; at both ends of the run, the main one writes its documents down."""
    config: RunConfig = run.config
    end = run.last or run.index == 0
    row, documents = perplexity_row(
        config, data,
        lambda part: evaluate(
            model, part, config.batch_size, config.mixed_precision, run.rank, run.world,
            lambda x: sum_processes(run, x), run.check_stop,
        ),
        end,
        run.step,
    )  # fmt: skip
    if run.is_main:
        row |= conditioning_row(model, blocks, data, config, end, run.check_stop)
        if end:
            headline, extremes_LW2 = ff_gram_row(model, blocks, data, config, run.check_stop)
            row |= headline
            if extremes_LW2 is not None:
                write_windows(run.folder, run.index, extremes_LW2)
        if documents is not None:
            write_documents(run.folder, run.index, documents.nll_D.tolist(), documents.tokens_D.tolist())
    return {"kind": "evaluation", **row}


def start_row(run: Run) -> dict[str, Any]:
    """The evaluation at step 0 that all arms of a comparison share, with its documents."""
    start = run.needs[START]
    if run.is_main:
        documents_file(run.folder, 0).parent.mkdir(exist_ok=True)
        for file_of in (documents_file, windows_file):
            if file_of(start, 0).is_file():
                shutil.copyfile(file_of(start, 0), file_of(run.folder, 0))
    return next(row for row in read_rows(start / "metrics.jsonl") if row["kind"] == "evaluation")


def console_line(row: Mapping[str, Any], step: int, last_step: int, before: Mapping[str, Any] | None = None) -> str:
    """An evaluation for the terminal, with the gradients of the update `before` it by role, where there is a penalty."""
    parts = [f"step {step:>5} of {last_step}", f"perplexity {row.get('val_ppl', row['trajectory_ppl']):.3f}"]
    if "up_kappa_median" in row:
        parts.append(f"kappa of up projections {row['up_kappa_median']:.2f}")
    if "ff_gram_original" in row:
        parts.append(f"ff_gram_original {row['ff_gram_original']:.0f}")
    for role in ROLES:
        if before and f"penalty_grad_norm_{role}" in before and f"grad_norm_{role}" in before:
            own, other = (before[f"{whose}grad_norm_{role}"] for whose in ("penalty_", ""))
            parts.append(f"gradient on {role}: penalty's {own:.3g}, cross-entropy's {other:.3g}")
    return "  ".join(parts)


# --------------------------------------------------------------------------------------------------------------- step
def sum_processes(run: Run, x: Tensor) -> Tensor:
    """The sum over the processes of the run, on the CPU."""
    if run.world == 1:
        return x
    total: Tensor = run.accelerator.reduce(x.to(run.device), "sum")
    return total.cpu()


def clip_gradients(accelerator: Any, parameters: list[nn.Parameter], limit: float | None) -> dict[str, Any]:
    """Clips the gradients to `limit` and says what their norm was."""
    if limit is None:
        accelerator.unscale_gradients()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
    else:
        norm = float(accelerator.clip_grad_norm_(parameters, limit))
    # Infinite where fp16 overflowed: the scaler then leaves the update out.
    return {"grad_norm": norm if math.isfinite(norm) else None, "clipped": limit is not None and norm > limit}


def add_penalty(
    run: Run, penalty: tuple[Tensor, list[tuple[nn.Parameter, Tensor]]] | None, by_role: Mapping[str, Sequence[Part]]
) -> dict[str, float]:
    """Adds the penalty's gradients to those that are there; its value and their norms. UserError when it is not finite."""
    if penalty is None:
        return {}
    value, gradients = penalty
    if not math.isfinite(float(value)):
        raise UserError(run.not_finite("gram_weight", "the penalty", float(value)))
    for parameter, gradient in gradients:
        assert parameter.grad is not None
        parameter.grad += gradient
    norm = torch.stack([gradient.norm() for _, gradient in gradients]).norm()
    own = {id(parameter): gradient for parameter, gradient in gradients}
    roles = {f"penalty_grad_norm_{role}": x for role, x in role_norms(by_role, lambda p: own.get(id(p))).items()}
    return {"penalty": float(value), "penalty_grad_norm": float(norm), **roles}
