"""One autoencoder, from top to bottom: set-up, model and optimizer, then evaluate, save, stop, step, log, stage by stage.

The batch of a step is a function of (seed, step), as is what an update draws (polytope_hsae.update): a checkpoint needs no
random states.

Shapes: D width, P parents and L children of the concepts.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytope_hsae.arms import check_room, probe_inputs, replay_probe, stages, start_model, start_values
from polytope_hsae.config import TrainConfig
from polytope_hsae.data import CHOOSE, TRAIN, Store, folder_of, open_store
from polytope_hsae.losses import causal_orthogonality
from polytope_hsae.metrics import explained_variance, sae_metrics, steps_to_convergence
from polytope_hsae.models import SAEConfig, build_sae
from polytope_hsae.teacher import Teacher, check_geometry, initialise, load_teacher
from polytope_hsae.update import Learner, Objective, create_optimizer, update
from studycore.errors import UserError
from studycore.models import count_parameters
from studycore.record import read_arrays
from studycore.run import Run
from studycore.streams import batch_indices


def train(config: TrainConfig, run: Run) -> None:
    """Trains the configuration in the open run. UserError for what can't be run."""
    # ---------------------------------------------------------------------------------------------------- set-up
    geometry = folder_of(run, "geometry")
    store = open_store(geometry, folder_of(run, "activations"))
    check_geometry(geometry, store.width)
    teacher = load_teacher(geometry, config)
    if config.batch_size_acts % run.world:
        raise UserError(f"training.batch_size_acts: {config.batch_size_acts} is not divisible by {run.world} processes; choose one that is")  # fmt: skip
    if config.arm in ("batchtopk", "matryoshka") and run.world > 1:
        raise UserError(f"arm: {config.arm} chooses codes over the whole batch, which {run.world} processes cut; give it one")  # fmt: skip
    indices, held_out = store.split(TRAIN), store.rows(store.sample(CHOOSE, config.val_size)).to(run.device)
    if len(indices) < config.batch_size_acts:
        raise UserError(f"training.batch_size_acts: {config.batch_size_acts} is more than the {len(indices)} training activations; lower it")  # fmt: skip
    check_room(config, store.width, run.device)
    run.begin(data={"activations": store.places[0].stem, "count": str(len(store))})

    # ------------------------------------------------------------------------------------- model and optimizer
    values = run.checkpoint.config if run.checkpoint else start_values(config, store, indices)
    model = run.model(
        lambda stored: build_sae(SAEConfig.from_stored(stored)), replay_probe,
        probe_inputs(store.width), values, start=lambda: start_model(config, values, store, indices, teacher),
    ).train()  # fmt: skip
    objective = Objective(model, config, teacher, run.device, run.accelerator if run.world > 1 else None)
    run.about(parameters=count_parameters(model), latents=model.config.features)

    # ------------------------------------------------------------------------------------------------------ loop
    all_stages = stages(config)
    for stage in all_stages:
        if run.has_passed(stage.name):
            continue
        optimizer = run.optimizer(create_optimizer(model, config, stage))
        stepper, prepared = run.accelerator.prepare(objective, optimizer)
        learner = Learner(model, stepper, prepared, run.accelerator, partial(run.backward, field="lr"))
        for index in run.steps(stage.steps, loop=stage.name, more=stage is not all_stages[-1]):
            step = stage.first + index
            # evaluate
            if run.every(config.val_every) and run.is_main:
                value = explained_variance(model, held_out)
                run.log({"stage": stage.name, "explained_variance": value, "1-EV": 1 - value})
                run.say(f"stage {stage.name} step {step} of {config.total_steps}: explained variance {value:.4f}")
            # save
            if run.saving(config.checkpoint_every):
                run.save(keep=config.keep_last_k)
            # stop
            if run.ended():
                break
            # step
            batch = batch_indices(len(indices), config.batch_size_acts, config.seed, step)[run.rank :: run.world]
            loss, parts = update(learner, config, stage, step, store.rows(indices[batch]))
            # log
            if step % config.log_every == 0:
                each = {f"loss_{name}": float(part) for name, part in parts.items()}
                run.log({"stage": stage.name, "loss": float(loss), **each})

    # --------------------------------------------------------------------------------------------------- results
    run.check_stop()
    if run.is_main:
        model.eval().to("cpu")
        model.save_pretrained(run.folder / "sae")
        run.results(*final(model, store, config, geometry, teacher, run))


def final(
    model: Any, store: Store, config: TrainConfig, geometry: Path, teacher: Teacher | None, run: Run
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(metrics of the trained autoencoder, which latents its concepts are matched to)."""
    vectors_PD, sqrt_DD = (torch.from_numpy(read_arrays(geometry)[name]) for name in ("unified_parents", "sqrt"))
    readers_PD = (vectors_PD @ sqrt_DD).float()
    metrics, matching = sae_metrics(model, store, config.test_size, config.seed, readers_PD, run.check_stop)
    dead = [float((counter > config.dead_after_tokens).double().mean()) for counter in model.counters()]
    metrics |= {"steps_to_convergence": steps_to_convergence(run.rows), "dead_parents": dead[0]}
    if teacher is not None and config.taught:
        metrics["teacher_energy_kept"] = initialise(build_sae(model.config), teacher, config)["teacher_energy_kept"]
    if model.config.kind == "hierarchical":
        # In the causal metric whatever the arm's own, on as many parents as the teacher has, so that arms compare.
        atoms_PLD = model.child_atoms()[: len(vectors_PD)]
        squares = causal_orthogonality(model.decoder[: len(vectors_PD)], atoms_PLD, sqrt_DD.float())
        metrics["causal_cosine_squared"] = float(squares.detach()) / atoms_PLD.shape[:2].numel()
    return metrics, {"parent_of_concept": matching.parent_P, "child_of_concept": matching.child_PC}
