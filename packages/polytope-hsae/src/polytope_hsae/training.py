"""One autoencoder, from top to bottom: set-up, model and optimizer, then evaluate, save, stop, step, log, stage by stage.

The batch of a step is a function of (seed, step), and nothing else is drawn but the latents of one loss, a function of both
too: a checkpoint needs no random states.

Shapes: B batch, D width.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polytope_hsae.activations import CHOOSE, TRAIN, Store, batches, open_store
from polytope_hsae.config import FLAT, TrainConfig
from polytope_hsae.losses import Weights, total_loss
from polytope_hsae.metrics import explained_variance, sae_metrics, steps_to_convergence
from polytope_hsae.models import HierarchicalSAE, SAEConfig, build_sae
from polytope_hsae.teacher import Teacher, initialise, load_teacher
from studycore.errors import UserError
from studycore.run import Run
from studycore.streams import derive_seed, generator

SCALE_SAMPLE = 8192


@dataclass(frozen=True)
class Stage:
    """Steps under one rule."""

    name: str
    steps: int
    lr_mult: float
    decoder_lr_mult: float
    beta: float
    frozen: bool
    causal_ortho: float
    first: int
    """Steps before it."""


def stages(config: TrainConfig) -> tuple[Stage, ...]:
    """A, with a frozen decoder and causal orthogonality, and B; one stage of as many steps for an arm without a teacher."""
    a_beta = config.top_level_beta if config.stage_a_beta is None else config.stage_a_beta
    b_beta = config.top_level_beta if config.stage_b_beta is None else config.stage_b_beta
    if not config.taught:
        return (Stage("B", config.total_steps, config.stage_b_lr_mult, 1.0, b_beta, False, 0.0, 0),)
    ortho = 0.0 if config.arm == "no_causal_ortho" else config.causal_ortho_lambda
    always = config.arm == "frozen_random"
    freeze = config.stage_a_freeze_decoder or always
    return (
        Stage("A", config.stage_a_steps, config.stage_a_lr_mult, 1.0, a_beta, freeze, ortho, 0),
        Stage("B", config.stage_b_steps, config.stage_b_lr_mult, config.stage_b_decoder_lr_mult, b_beta, always, 0.0,
              config.stage_a_steps),
    )  # fmt: skip


def shape_of(config: TrainConfig, width: int, scale: float) -> SAEConfig:
    """Flat arms have as many latents in all, and as many active at once, as hierarchical ones."""
    topk_child = min(2, config.m_low) if config.arm == "top2" else config.topk_child
    if config.arm not in FLAT:
        return SAEConfig("hierarchical", width, config.m_top, config.topk_parent, config.subspace_dim, config.m_low, topk_child, scale)  # fmt: skip
    latents = config.m_top * (1 + config.m_low)
    inner = (config.m_top, min(latents, 3 * config.m_top)) if config.arm == "matryoshka" else ()
    kind: Any = config.arm
    return SAEConfig(kind, width, latents, config.topk_parent * (1 + topk_child), config.subspace_dim, config.m_low, topk_child, scale, inner)  # fmt: skip


class Objective(nn.Module):
    """The loss of a batch as a forward pass, so that several processes average its gradients."""

    def __init__(self, model: Any, config: TrainConfig, teacher: Teacher | None, device: str, several: bool):
        super().__init__()
        self.several = several
        self.model, self.config = model, config
        self.metric_DD = None if teacher is None else teacher.metric_DD.to(device)
        self.taught = 0 if teacher is None else len(teacher.parents_PD)

    def forward(self, x_BD: Tensor, weights: Weights, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor], Any]:
        dead = tuple(counter > self.config.dead_after_tokens for counter in self.model.counters())
        output = self.model.train_forward(x_BD, dead)
        loss, parts = total_loss(self.model, x_BD, output, self.config, weights, chosen, self.metric_DD, self.taught)
        if self.several:
            # A parameter that is not in the loss would stop several processes; its gradient is zero.
            loss = loss + 0.0 * torch.stack([q.flatten()[0] for q in self.model.parameters()]).sum()
        return loss, parts, output.codes


def train(config: TrainConfig, run: Run) -> None:
    """Trains the configuration in the open run. UserError for what can't be run."""
    # ---------------------------------------------------------------------------------------------------- set-up
    store = open_store(run.needs["geometry"], run.needs["activations"])
    teacher = load_teacher(run.needs["geometry"], config)
    if config.batch_size_acts % run.world:
        raise UserError(f"training.batch_size_acts: {config.batch_size_acts} is not divisible by {run.world} processes; choose one that is")  # fmt: skip
    if config.arm in ("batchtopk", "matryoshka") and run.world > 1:
        raise UserError(f"arm: {config.arm} chooses codes over the whole batch, which {run.world} processes cut; give it one")  # fmt: skip
    indices, held_out = store.split(TRAIN), store.rows(store.sample(CHOOSE, config.val_size)).to(run.device)
    if len(indices) < config.batch_size_acts:
        raise UserError(f"training.batch_size_acts: {config.batch_size_acts} is more than the {len(indices)} training activations; lower it")  # fmt: skip
    run.begin(data={"activations": store.places[0].stem, "count": str(len(store))})

    # ------------------------------------------------------------------------------------- model and optimizer
    values = run.checkpoint.config if run.checkpoint else start_values(config, store, indices)
    model = run.model(
        lambda stored: build_sae(SAEConfig(**{**stored, "inner_widths": tuple(stored["inner_widths"])})), replay,
        probe(store.width), values, start=lambda: start_model(config, values, store, indices, teacher),
    ).train()  # fmt: skip
    objective = Objective(model, config, teacher, run.device, run.world > 1)
    run.about(parameters=sum(p.numel() for p in model.parameters()), latents=model.config.features)

    # ------------------------------------------------------------------------------------------------------ loop
    for stage in stages(config):
        if run.has_passed(stage.name):
            continue
        optimizer = run.optimizer(create_optimizer(model, config, stage))
        stepper, prepared = run.accelerator.prepare(objective, optimizer)
        for index in run.steps(stage.steps, loop=stage.name):
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
                group["lr"] = config.lr * group["mult"] * rate
            l1 = min(1.0, (step + 1) / config.l1_warmup_steps) if config.l1_warmup_steps else 1.0
            rows = batches(indices, config.batch_size_acts, config.seed, step)[run.rank :: run.world]
            x_BD = store.rows(rows).to(run.device) * model.config.input_scale
            chosen = torch.randperm(model.config.m_top, generator=generator(config.seed, "biorthogonality", step))
            chosen = chosen[: config.biorth_sample].to(run.device)
            loss, parts, codes = stepper(x_BD, Weights(stage.beta, l1, stage.causal_ortho), chosen)
            run.backward(loss, "lr")
            if stage.frozen:
                for matrix in model.decoders():
                    matrix.grad = None
            model.project_gradients()
            if config.grad_clip is not None:
                run.accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
            prepared.step()
            prepared.zero_grad()
            if not stage.frozen:
                model.normalise()
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
    if run.is_main:
        model.eval().to("cpu")
        model.save_pretrained(run.folder / "sae")
        metrics, matching = sae_metrics(model, store, config.test_size, config.seed)
        dead = [float((counter > config.dead_after_tokens).double().mean()) for counter in model.counters()]
        kept = {"teacher_energy_kept": initialise(build_sae(model.config), teacher, config)["teacher_energy_kept"]} if teacher else {}  # fmt: skip
        metrics |= {"steps_to_convergence": steps_to_convergence(run.rows), "dead_parents": dead[0]} | kept
        run.results(metrics, {"parent_of_concept": matching.parent_P, "child_of_concept": matching.child_PC})


def start_values(config: TrainConfig, store: Store, indices: np.ndarray) -> dict[str, Any]:
    """The model's configuration: its scale is that of the training activations."""
    x_ND = store.rows(
        np.sort(indices[torch.randperm(len(indices), generator=generator(0, "scale")).numpy()[:SCALE_SAMPLE]])
    )
    scale = float((x_ND - x_ND.mean(0)).square().sum(1).mean().rsqrt())
    shape = shape_of(config, store.width, scale)
    return {**vars(shape), "inner_widths": list(shape.inner_widths)}


def start_model(
    config: TrainConfig, values: dict[str, Any], store: Store, indices: np.ndarray, teacher: Teacher | None
) -> Any:
    """A new model: its bias is the mean, its decoder the teacher's where there is one."""
    shape = SAEConfig(**{**values, "inner_widths": tuple(values["inner_widths"])})
    model = build_sae(shape, generator(config.seed, "weights"))
    sample = np.sort(indices[torch.randperm(len(indices), generator=generator(0, "scale")).numpy()[:SCALE_SAMPLE]])
    with torch.no_grad():
        model.bias.copy_(store.rows(sample).mean(0) * shape.input_scale)
    if teacher is not None:
        assert isinstance(model, HierarchicalSAE)
        initialise(model, teacher, config)
    return model


def create_optimizer(model: Any, config: TrainConfig, stage: Stage) -> torch.optim.Optimizer:
    """AdamW; weight decay is for encoders alone, decoders have unit rows."""
    decoders = {id(matrix) for matrix in model.decoders()}
    matrices = [q for q in model.parameters() if q.dim() > 1]
    groups = [
        {"params": [q for q in matrices if id(q) not in decoders], "mult": stage.lr_mult, "weight_decay": config.weight_decay},
        {"params": [q for q in matrices if id(q) in decoders], "mult": stage.lr_mult * stage.decoder_lr_mult, "weight_decay": 0.0},
        {"params": [q for q in model.parameters() if q.dim() <= 1], "mult": stage.lr_mult, "weight_decay": 0.0},
    ]  # fmt: skip
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def schedule(step: int, config: TrainConfig) -> float:
    """Share of the learning rate at a step: warm-up, then constant or cosine to a tenth."""
    warm = min(1.0, (step + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
    if config.lr_schedule == "constant":
        return warm
    return warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / config.total_steps)))


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


def probe(width: int) -> dict[str, Tensor]:
    """Fixed activations, on whose reconstruction a checkpoint is checked."""
    return {"input": torch.randn(8, width, generator=torch.Generator().manual_seed(derive_seed(0, "probe")))}


def replay(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    x = inputs["input"].to(model.bias.device) / model.config.input_scale
    return {"output": model(x) * model.config.input_scale}
