"""Training, from top to bottom: set-up, then for every stage the loop: evaluate, save, stop, step, log.

The loop trains one run or several of one shape in lockstep, each in a lane of its own; a run by itself is one lane.
Batches, samples, pairs and learning rates are functions of (seed, stage, update): a checkpoint needs no random states and
resuming is bitwise on a CPU.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studycore.errors import UserError
from studycore.files import sha256
from studycore.hashes import tensor_sha256
from studycore.models import check_fits, count_parameters
from studycore.run import Run
from studycore.streams import derive_seed
from ternary_vae.checkpoint import Loaded, find_checkpoint, start_model
from ternary_vae.config import TrainConfig
from ternary_vae.data import Batches, Operations, training_indices
from ternary_vae.lanes import CHOSEN_BY, Lane, WholeModel
from ternary_vae.metrics.evaluate import Codes
from ternary_vae.metrics.final import baselines, figure_arrays, run_metrics
from ternary_vae.model import architecture_of, build_model, probe_inputs, replay_probe
from ternary_vae.stacked import StackedRadii
from ternary_vae.stages import Stage, not_stackable, stages_of
from ternary_vae.update import update

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
    check_room(first, device, len(runs))
    operations = Operations.all(first.trits, first.shuffle_seed).to(device)
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

    for number, name in enumerate(stage.name for stage in lanes[0].stages):
        if runs[0].has_passed(name):
            continue
        # ------------------------------------------------------------- a stage's batches, optimizers and models
        v_N = operations.v_N.cpu()[seen]
        batches = {
            seed: Batches(v_N, first.trits, first.batch_size, first.deep_share, derive_seed(seed, name))
            for seed in {config.seed for config in configs}
        }
        per_epoch = batches[first.seed].steps_per_epoch
        for lane in lanes:
            lane.enter(number, per_epoch)
        models = StackedRadii(lanes, operations) if stacked else WholeModel(lanes[0], operations, seen_N)
        # The losses' terms [lanes], added up since the last evaluation.
        stored = [lane.run.state.get("sums", {}) for lane in lanes]
        sums = {
            term: torch.tensor([own[term] for own in stored], dtype=torch.float64, device=device) for term in stored[0]
        }

        # ---------------------------------------------------------------------------------------------- loop
        while True:
            # All runs are at one epoch; the last one of each is for evaluating and saving alone.
            epoch, *_ = [next(lane.epochs) for lane in lanes]
            if any(lane.run.stopping for lane in lanes):  # a signal may have come between two of them
                for lane in lanes:
                    lane.run.stopping = True
            going = []
            for s, lane in enumerate(lanes):
                run, config, stage = lane.run, lane.config, lane.stage
                # evaluate
                evaluating, saving = run.every(config.eval_every), run.saving(config.checkpoint_every)
                if evaluating or saving:
                    # All that is saved below, and the final metrics, are of the lane's own model and optimizer.
                    models.write_back(s)
                metrics = models.measure(s) if evaluating or saving else {}
                own = {term: float(sum_S[s]) for term, sum_S in sums.items()}
                if bad := not_finite(own, metrics):
                    run.failed(sentence := run.not_finite(stage.rate_field, *bad))
                    if len(lanes) == 1:
                        raise UserError(sentence)
                    continue
                state = {"variances": lane.variances, "sums": own, "metrics": metrics}
                if evaluating:
                    updates = per_epoch * (epoch - (epoch - 1) // config.eval_every * config.eval_every)
                    losses = {f"loss_{term}": value / updates for term, value in own.items()}
                    run.log({"stage": name, "epoch": epoch, **losses, **metrics})
                    if stage.is_last:
                        run.keep_best(score(metrics, stage), state)
                    run.end_here(has_ended(run.rows, stage))
                    if run.last or epoch % max(1, stage.epochs // 10) == 0:
                        run.say(console(metrics, stage, epoch))
                # save
                if run.saving(config.checkpoint_every):
                    run.save(state)
                going.append(s)
            # stop: runs at their end first, because `ended` raises for the others after a signal
            for s in sorted(going, key=lambda s: not lanes[s].run.last):
                if lanes[s].run.ended() and lanes[s].stage.is_last:
                    finish(lanes[s], operations, seen_N)
            going = [s for s in going if not lanes[s].run.last]
            if not going:
                break
            if len(going) < len(lanes):
                lanes = [lanes[s] for s in going]
                sums = {term: sum_S[going] for term, sum_S in sums.items()}
                models.keep(going)
            # step: runs of one seed see the same batches, drawn once
            if epoch % first.eval_every == 0:
                sums = {}
            seeds = list(dict.fromkeys(lane.config.seed for lane in lanes))
            for k, drawn in enumerate(zip(*(batches[seed].epoch(epoch) for seed in seeds), strict=True)):
                of_seed = dict(zip(seeds, drawn, strict=True))
                positions = [of_seed[lane.config.seed] for lane in lanes]
                terms = update(models, lanes, positions, epoch * per_epoch + k, per_epoch)
                for term, value_S in terms.items():
                    sums[term] = sums.get(term, 0.0) + value_S.detach().double()


def check_room(config: TrainConfig, device: str, runs: int) -> None:
    """UserError where the device's memory cannot hold the model, or a batch of so many runs."""
    widths = ("encoder_sizes", "decoder_sizes", "hidden_dim", "latent_dim")
    widest = max(*config.encoder_sizes, *config.decoder_sizes, config.hidden_dim, config.latent_dim)
    check_fits(
        lambda: build_model(architecture_of(config)),
        f"{', '.join(widths)}: {', '.join(str(getattr(config, name)) for name in widths)}",
        "lower the largest", device, runs * 4 * min(config.batch_size, 3**config.trits) * widest,
    )  # fmt: skip


def open_lane(config: TrainConfig, run: Run, seen: Tensor, loaded: dict[Path, Loaded]) -> Lane:
    """The run's folder and model, new or from its checkpoint. UserError for a start that does not fit."""
    start = None if config.start is None else find_checkpoint(run.needs.get(config.start, config.start))
    # Before there is a folder, so that a start that does not fit leaves none.
    fresh = None if run.resume else start_model(config, start, loaded)
    data = {"training operations": tensor_sha256(seen)}
    if start is not None:
        data["start"] = sha256(start / "manifest.json")
    run.begin(data=data)
    model = run.model(
        build_model, replay_probe, probe_inputs(config.trits), start=lambda: fresh or start_model(config, start, loaded)
    )
    run.about(parameters=count_parameters(model))
    return Lane(run, config, model, stages_of(config))


def not_finite(sums: Mapping[str, float], metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """Name and value of the first term of the loss, or else metric, that is not finite."""
    values = {**{f"loss_{term}": value for term, value in sums.items()}, **metrics}
    return next(((name, value) for name, value in values.items() if not math.isfinite(value)), None)


def score(metrics: Mapping[str, Any], stage: Stage) -> float:
    """What the best checkpoint is chosen by, of the operations that training sees: coverage, the negative hierarchy, or
    their sum, as the stage has it. Where the hierarchy can go no further, the smallest gap between levels decides."""
    # Of the operations that training sees, where these are not all; a hierarchy that does not exist, of radii that are all
    # equal, is the worst.
    rank, gap = (metrics.get(f"{name}_seen", metrics.get(name)) for name in CHOSEN_BY)
    scores = {
        "coverage": float(metrics.get("coverage_seen", metrics["coverage"])),
        "order": -(1.0 if rank is None else float(rank)) + TIE_BREAK * (-1.0 if gap is None else float(gap)),
    }
    return sum(scores[name] for name in stage.scored_by)


def has_ended(rows: Sequence[Mapping[str, Any]], stage: Stage) -> bool:
    """Whether the evaluations so far end the stage: every training operation right, or none better, for long enough."""
    scores = [score(row, stage) for row in rows if row["stage"] == stage.name]
    if not scores:  # in all processes but the main one, which has the rows
        return False
    patience = stage.covered_patience
    covered = patience is not None and scores[-patience:] == [1.0] * patience
    waiting = len(scores) - 1 - scores.index(max(scores))
    return covered or (stage.patience is not None and waiting >= stage.patience)


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
