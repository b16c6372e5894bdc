"""Training, from top to bottom: set-up, then for every stage the loop: evaluate, save, stop, step, log.

The loop trains one run or several of one shape in lockstep, each in a lane of its own; a run by itself is one lane.
Batches, samples, pairs and learning rates are functions of (seed, stage, update): a checkpoint needs no random states and
resuming is bitwise on a CPU.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.errors import UserError
from studycore.files import sha256
from studycore.run import Run
from studycore.streams import derive_seed
from ternary_vae.checkpoint import Loaded, find_checkpoint, load_model
from ternary_vae.config import TrainConfig
from ternary_vae.data import Batches, Operations, training_indices
from ternary_vae.metrics.evaluate import Codes
from ternary_vae.metrics.final import baselines, figure_arrays, run_metrics
from ternary_vae.model import (
    TernaryVAE,
    architecture_of,
    build_model,
    count_parameters,
    create_model,
    draw_weights,
    probe_inputs,
    replay_probe,
)
from ternary_vae.stacked import StackedRadii
from ternary_vae.stages import Stage, not_stackable, stages_of
from ternary_vae.updates import Lane, Update, WholeModel

PROJECTION_FIELDS = {
    "curvature", "max_radius", "radius", "hidden_dim", "n_projection_layers", "projection_dropout",
    "use_dual_projection", "projection_dtype",
}  # fmt: skip
"""What may differ from the start's architecture where projections are drawn anew."""
TIE_BREAK = 1e-6
"""Weight of the smallest gap beside the hierarchy."""


def train(config: TrainConfig, run: Run) -> None:
    """Trains the configuration in the open run. UserError for what can't be run."""
    train_together([config], [run])


def train_together(configs: Sequence[TrainConfig], runs: Sequence[Run]) -> None:
    """Trains runs of one shape from their common position on; each ends, is written and drops out by itself.

    A run whose loss is not finite fails alone; a signal makes all save and stop.
    """
    # ------------------------------------------------------------------------------------------------ set-up
    first, device = configs[0], runs[0].device
    if device.startswith("mps") and "float64" in (first.dtype, first.projection_dtype):
        raise UserError("dtype, projection_dtype: float64 does not exist on mps; give --projection-dtype float32")
    operations = Operations.all(first.trits).to(device)
    seen = training_indices(first.trits, first.train_fraction, first.seed)
    seen_N = torch.zeros(len(operations), dtype=torch.bool)
    seen_N[seen] = True
    loaded: dict[Path, Loaded] = {}  # a start that several runs share is loaded and verified once
    lanes = [open_lane(config, run, seen, loaded) for config, run in zip(configs, runs, strict=True)]
    if len(runs) > 1:
        for run in runs:
            run.about(stack=len(runs))
    # A run that could be trained beside others is trained in the same way when it is alone, so that the company it has,
    # which changes when a sweep is resumed, changes no more than the last digits.
    stacked = not_stackable(first) is None and runs[0].world == 1
    assert stacked or len(runs) == 1, not_stackable(first)

    for number, stage in enumerate(stages_of(first)):
        if runs[0].has_passed(stage.name):
            continue
        batches = {config.seed: batches_of(config, stage, operations.v_N.cpu()[seen]) for config in configs}
        per_epoch = batches[first.seed].steps_per_epoch
        for lane in lanes:
            lane.begin(stages_of(lane.config)[number], per_epoch)
        if stacked:
            update: Update = StackedRadii(lanes, operations, per_epoch)
        else:
            update = WholeModel(lanes[0], operations, seen_N, per_epoch)
        # Terms of the loss [S], added up since the last evaluation.
        stored = [lane.run.state.get("sums", {}) for lane in lanes]
        sums = {
            name: torch.tensor([own[name] for own in stored], dtype=torch.float64, device=device) for name in stored[0]
        }

        # ---------------------------------------------------------------------------------------------- loop
        while True:
            # evaluate, save
            epoch, *_ = [next(lane.epochs) for lane in lanes]
            if any(lane.run.stopping for lane in lanes):  # a signal may have come between two of them
                for lane in lanes:
                    lane.run.stopping = True
            finite = [
                evaluate_and_save(update, s, epoch, {name: float(sum_S[s]) for name, sum_S in sums.items()}, per_epoch)
                for s in range(len(lanes))
            ]
            # stop: runs at their end first, because `ended` raises for the others after a signal
            going = [s for s, lane in enumerate(lanes) if finite[s] and not lane.run.last]
            for lane in [lane for s, lane in enumerate(lanes) if finite[s] and lane.run.last]:
                lane.run.ended()
                if stage.is_last:
                    finish(lane, operations, seen_N)
            for s in going:
                lanes[s].run.ended()
            if not going:
                break
            if len(going) < len(lanes):
                lanes = [lanes[s] for s in going]
                sums = {name: sum_S[going] for name, sum_S in sums.items()}
                update.keep(going)
            # step
            if epoch % first.eval_every == 0:
                sums = {}
            seeds = list(dict.fromkeys(lane.config.seed for lane in lanes))
            for k, drawn in enumerate(zip(*(batches[seed].epoch(epoch) for seed in seeds), strict=True)):
                positions = dict(zip(seeds, drawn, strict=True))
                terms = update.step([positions[lane.config.seed] for lane in lanes], epoch * per_epoch + k, epoch)
                sums = {name: sums[name] + term_S if name in sums else term_S for name, term_S in terms.items()}


def open_lane(config: TrainConfig, run: Run, seen: Tensor, loaded: dict[Path, Loaded]) -> Lane:
    """The run's folder and model, new or from its checkpoint. UserError for a start that does not fit."""
    start = None if config.start is None else find_checkpoint(run.needs.get(config.start, config.start))
    # Before there is a folder, so that a start that does not fit leaves none.
    fresh = None if run.resume else start_model(config, start, loaded)
    data = {"training operations": hashlib.sha256(seen.numpy().tobytes()).hexdigest()}
    if start is not None:
        data["start"] = sha256(start / "manifest.json")
    run.begin(data=data)
    model = run.model(
        build_model, replay_probe, probe_inputs(config.trits), start=lambda: fresh or start_model(config, start, loaded)
    )
    run.about(parameters=count_parameters(model))
    return Lane(run, config, model)


def start_model(config: TrainConfig, start: Path | None, loaded: dict[Path, Loaded]) -> TernaryVAE:
    """The model that a new run begins with: drawn from its seed, or that of the checkpoint `start`, verified.

    UserError lists where the start's architecture differs from the configuration's.
    """
    if start is None:
        return create_model(config, config.seed, config.projection_seed)
    if start not in loaded:
        loaded[start] = load_model(start)
    _, stored, model = loaded[start]
    wanted, there = architecture_of(config), architecture_of(stored)
    drawn = config.start_projections == "drawn"
    free = PROJECTION_FIELDS if drawn else set()
    if differing := [
        f"{k} {there[k]} there, {wanted[k]} asked for" for k in wanted if k not in free and wanted[k] != there[k]
    ]:
        raise UserError(
            f"start: {start} is of another architecture: {'; '.join(differing)}; give the stored values "
            "(`ternary-vae inspect` shows them)"
        )
    fresh = TernaryVAE(**wanted)
    taken = {name: w for name, w in model.state_dict().items() if not (drawn and name.startswith("projection."))}
    fresh.load_state_dict({**fresh.state_dict(), **taken}, strict=True)
    if drawn:
        seed = config.seed if config.projection_seed is None else config.projection_seed
        draw_weights(fresh.projection, seed, "projection")
    return fresh


def batches_of(config: TrainConfig, stage: Stage, v_N: Tensor) -> Batches:
    """The batches of a stage, over training operations of these valuations."""
    return Batches(v_N, config.trits, config.batch_size, config.deep_share, derive_seed(config.seed, stage.name))


def evaluate_and_save(update: Update, s: int, epoch: int, sums: Mapping[str, float], per_epoch: int) -> bool:
    """Evaluates lane s and saves it, where that is due; `sums` are of its loss's terms since the last evaluation.

    False when a number is not finite, which ends a run that is trained beside others; UserError for a run alone.
    """
    lane = update.lanes[s]
    run, config, stage = lane.run, lane.config, lane.stage
    evaluating, metrics = run.every(config.eval_every), {}
    if evaluating or run.saving(config.checkpoint_every):
        metrics = update.measure(s)
        update.put_back(s)
    for name, value in {**{f"loss_{name}": value for name, value in sums.items()}, **metrics}.items():
        if not math.isfinite(value):
            run.failed(sentence := run.not_finite(stage.rate_field, name, value))
            if len(update.lanes) == 1:
                raise UserError(sentence)
            return False
    state = {"variances": lane.variances, "sums": dict(sums), "metrics": metrics}
    if evaluating:
        updates = per_epoch * (epoch - (epoch - 1) // config.eval_every * config.eval_every)
        losses = {f"loss_{name}": value / updates for name, value in sums.items()}
        run.log({"stage": stage.name, "epoch": epoch, **losses, **metrics})
        if stage.is_last:
            run.keep_best(score(metrics, stage.name), state)
        run.end_here(has_ended(run.rows, config, stage))
        if run.last or epoch % max(1, stage.epochs // 10) == 0:
            run.say(console(metrics, stage, epoch))
    if run.saving(config.checkpoint_every):
        run.save(state)
    return True


def score(metrics: Mapping[str, Any], stage: str) -> float:
    """What the best checkpoint is chosen by: coverage of the operations that training sees, the negative hierarchy, or in
    joint training their sum. Where the hierarchy can go no further, the smallest gap between levels decides."""
    coverage = float(metrics.get("coverage_seen", metrics["coverage"]))
    if stage == "coverage":
        return coverage
    # A hierarchy that does not exist, of radii that are all equal, is the worst.
    order = -float(metrics.get("hierarchy", 1.0)) + TIE_BREAK * float(metrics.get("min_level_gap", -1.0))
    return order + coverage if stage == "joint" else order


def has_ended(rows: Sequence[Mapping[str, Any]], config: TrainConfig, stage: Stage) -> bool:
    """Whether the evaluations so far end the stage: every training operation right, or none better, for long enough."""
    scores = [score(row, stage.name) for row in rows if row["stage"] == stage.name]
    if not scores:  # in all processes but the main one, which has the rows
        return False
    patience = config.coverage_patience if stage.name == "coverage" else None
    covered = patience is not None and scores[-patience:] == [1.0] * patience
    patience = config.early_stopping_patience if stage.is_last else None
    waiting = len(scores) - 1 - scores.index(max(scores))
    return covered or (patience is not None and waiting >= patience)


def finish(lane: Lane, operations: Operations, seen_N: Tensor) -> None:
    """The results of a run that has reached its end, and what its figures show."""
    run, config, model = lane.run, lane.config, lane.model.eval()
    if run.is_main:
        codes: Codes = {}
        metrics = run_metrics(config, model, operations, seen_N, run.rows, codes)
        # In a sweep they would be the same for every run, and take longer than some of them.
        beside = {} if run.quiet else {"baselines": baselines(config)}
        run.results({**metrics, **beside}, figure_arrays(config, model, operations, codes))
    run.finished()


def console(metrics: Mapping[str, Any], stage: Stage, epoch: int) -> str:
    """An evaluation as a line."""
    shown = [f"coverage {metrics['coverage']:.5f}"]
    if "hierarchy" in metrics:
        shown += [f"hierarchy {metrics['hierarchy']:.6f}", f"Somers' D {metrics['somers_d']:.6f}"]
        shown += [f"{metrics['positive_gaps']} of {metrics['gaps']} gaps open", f"richness {metrics['richness']:.5f}"]
    return f"  {stage.name} {epoch} of {stage.epochs}: {', '.join(shown)}"
