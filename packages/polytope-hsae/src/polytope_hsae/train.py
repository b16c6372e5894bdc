"""One autoencoder, from top to bottom: set-up, model and optimizer, then evaluate, save, stop, step, log, stage by stage.

The batch of a step is a function of (seed, step), and nothing else is drawn but the latents of one loss, a function of both
too: a checkpoint needs no random states.

Shapes: B batch, D width.
"""

from typing import Any

import torch

from polytope_hsae.config import TrainConfig
from polytope_hsae.data import CHOOSE, TRAIN, folder_of, open_store
from polytope_hsae.losses import Weights, causal_orthogonality
from polytope_hsae.metrics import explained_variance, sae_metrics, steps_to_convergence
from polytope_hsae.model import SAEConfig, build_sae
from polytope_hsae.teacher import check_geometry, initialise, load_teacher
from polytope_hsae.training import (
    Objective,
    check_room,
    create_optimizer,
    probe_inputs,
    replay_probe,
    schedule,
    stages,
    start_model,
    start_values,
)
from studycore.errors import UserError
from studycore.models import count_parameters
from studycore.record import read_arrays
from studycore.run import Run
from studycore.streams import batch_indices, generator


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
    every = stages(config)
    for stage in every:
        if run.has_passed(stage.name):
            continue
        optimizer = run.optimizer(create_optimizer(model, config, stage))
        stepper, prepared = run.accelerator.prepare(objective, optimizer)
        for index in run.steps(stage.steps, loop=stage.name, more=stage is not every[-1]):
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
            rate = schedule(step, config)
            for group in prepared.param_groups:
                group["lr"] = config.lr * group["lr_factor"] * rate
            l1 = min(1.0, (step + 1) / config.l1_warmup_steps) if config.l1_warmup_steps else 1.0
            batch = batch_indices(len(indices), config.batch_size_acts, config.seed, step)[run.rank :: run.world]
            # The model is of unit-scale activations, so that settings carry over from one language model to another.
            x_BD = store.rows(indices[batch]).to(run.device) * model.config.input_scale
            # Biorthogonality compares every latent with every other: a sample of the parents keeps its cost from growing
            # with their square, and is drawn anew at each step, alike in every process.
            chosen = torch.randperm(model.config.m_top, generator=generator(config.seed, "biorthogonality", step))
            chosen = chosen[: config.biorth_sample].to(run.device)
            loss, parts, codes = stepper(x_BD, Weights(stage.beta, l1, stage.causal_ortho), chosen)
            run.backward(loss, "lr")
            frozen = {"nothing": [], "parents": [model.decoder], "all": model.decoders()}[stage.frozen]
            # None and not zero: AdamW passes over what has no gradient, and the norm that is clipped is then of what is trained.
            for matrix in frozen:
                matrix.grad = None
            # Rows of a decoder have length 1, so only the part across them can turn them; Adam's moments would otherwise
            # fill with a part along the rows, which `normalise` takes back.
            model.project_gradients()
            if config.grad_clip is not None:
                run.accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
            prepared.step()
            prepared.zero_grad()
            # A step along the tangent still leaves the sphere a little. A longer row would let its codes, and with them the
            # sparsity penalty, shrink at no loss of reconstruction.
            model.normalise(frozen)
            count_firing(model, codes, config.batch_size_acts, run)
            # log
            if step % config.log_every == 0:
                run.log(
                    {
                        "stage": stage.name,
                        "loss": float(loss.detach()),
                        **{f"loss_{k}": float(v.detach()) for k, v in parts.items()},
                    }
                )

    # --------------------------------------------------------------------------------------------------- results
    run.check_stop()
    if run.is_main:
        model.eval().to("cpu")
        model.save_pretrained(run.folder / "sae")
        vectors_PD, sqrt_DD = (torch.from_numpy(read_arrays(geometry)[name]) for name in ("unified_parents", "sqrt"))
        metrics, matching = sae_metrics(
            model, store, config.test_size, config.seed, (vectors_PD @ sqrt_DD).float(), run.check_stop
        )
        dead = [float((counter > config.dead_after_tokens).double().mean()) for counter in model.counters()]
        kept = {"teacher_energy_kept": initialise(build_sae(model.config), teacher, config)["teacher_energy_kept"]} if teacher and config.taught else {}  # fmt: skip
        if model.config.kind == "hierarchical":
            # In the causal metric whatever the arm's own, on as many parents as the teacher has, so that arms compare.
            atoms_PLD = model.child_atoms()[: len(vectors_PD)]
            found = causal_orthogonality(model.decoder[: len(vectors_PD)], atoms_PLD, sqrt_DD.float())
            kept["causal_cosine_squared"] = float(found.detach()) / atoms_PLD.shape[:2].numel()
        metrics |= {"steps_to_convergence": steps_to_convergence(run.rows), "dead_parents": dead[0]} | kept
        run.results(metrics, {"parent_of_concept": matching.parent_P, "child_of_concept": matching.child_PC})


@torch.no_grad()
def count_firing(model: Any, codes: Any, batch: int, run: Run) -> None:
    """Counts the tokens since each latent fired, in all processes."""
    pairs = [(codes.index, codes.value)] + ([(codes.child, codes.child_value)] if codes.child is not None else [])
    for counter, (index, value) in zip(model.counters(), pairs, strict=True):
        fired = torch.zeros(len(counter), device=counter.device)
        fired.index_add_(0, index.flatten(), (value.flatten() > 0).to(fired.dtype))
        if run.world > 1:
            fired = run.accelerator.reduce(fired, "sum")
        counter += batch
        counter *= fired == 0
