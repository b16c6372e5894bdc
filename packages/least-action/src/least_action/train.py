"""One run, from top to bottom: set-up, model and optimizers, then evaluate, save, stop, step, log.

Order and randomness are functions of (seed, epoch), nothing draws from the global stream, and the learning rate is a
function of the epoch and of the rows so far: a checkpoint needs no random states and resuming is bitwise on a CPU.
"""

import torch
from accelerate.utils import DistributedDataParallelKwargs

from least_action.config import TrainerConfig
from least_action.data import batches, batches_per_epoch, create_dataset, fingerprint, memory_of
from least_action.events import grokked_epoch, has_touched_99
from least_action.losses import LeastActionLoss
from least_action.metrics.final import figure_arrays, results
from least_action.metrics.training import Probe, measure
from least_action.model import (
    PairForward,
    build_model,
    count_trained_values,
    probe_inputs,
    replay_probe,
    total_norm,
    trainable_parameters,
    unstarted,
)
from least_action.recipes import create_optimizers, learning_rate, transform_gradients
from studycore.checkpoints import optimizer_tensors
from studycore.devices import check_memory
from studycore.errors import UserError
from studycore.models import check_fits
from studycore.run import Run


def train(config: TrainerConfig, run: Run) -> None:
    """Trains the configuration in the open run. UserError for what can't be run."""
    # ------------------------------------------------------------------------------------------------ set-up
    # A routed MLP's last state feeds nothing, so its parameters get no gradient.
    unused = config.model_type == "routed"
    run.accelerate(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)])
    if run.device.startswith("mps") and "float64" in (config.dtype, config.loss_dtype):
        raise UserError("loss_dtype, dtype: float64 does not exist on mps; give --loss-dtype float32 --dtype float32")
    mend = "lower p" if config.batch_size else "lower p, or give a batch_size"
    check_memory(memory_of(config), f"p: the pairs and logits of p = {config.p}", mend, run.device)
    # Of each pair of a batch, what every layer gives.
    n_pairs = config.batch_size or round(config.train_frac * config.p**2)
    widths = n_pairs * config.n_layers * config.hidden_dim * (8 if config.dtype == "float64" else 4)
    what, mend = f"hidden_dim: {config.hidden_dim}", "lower hidden_dim or n_layers"
    check_fits(lambda: unstarted(config), what, mend, run.device, memory_of(config) + widths)
    data = create_dataset(config)
    run.begin(data={"training pairs": fingerprint(data)})
    training, probe = data.train.to(run.device), Probe.draw(data, config, run.device)
    grid = (probe.all.a_N, probe.all.b_N)

    # --------------------------------------------------------------------------------- model and optimizers
    model = run.model(build_model, replay_probe, probe_inputs(config.p))
    optimizers = [run.optimizer(optimizer) for optimizer in create_optimizers(model, config)]
    forward = PairForward(model, config.forward == "restructured")
    forward, *prepared = run.accelerator.prepare(forward, *optimizers)
    loss_of = LeastActionLoss(config)
    trained = trainable_parameters(model)
    # constrained_norm holds the weights at a share of the norm with which they began, grokfast averages gradients:
    # what a resumed run cannot see in its weights.
    state = {"initial_norm": run.state.get("initial_norm") or total_norm(model.parameters()).item()}
    averages = run.tensors
    extra = extra_epochs(run)
    run.about(extra_epochs=extra, parameters=count_trained_values(model), weight_decay_rule=config.weight_decay_rule)
    # A run that is extended goes on although it has grokked.
    stop_after = None if extra else config.stop_after_grok
    touched_99 = False

    # -------------------------------------------------------------------------------------------------- loop
    for epoch in run.steps(config.epochs + extra, unit="epoch", updates=batches_per_epoch(training, config)):
        # evaluate, in the main process alone, which has the rows
        if stop_after is not None and epoch % config.eval_every == 0:
            grokked = grokked_epoch(run.rows, config)
            run.end_here(grokked is not None and epoch >= grokked + stop_after)
        if run.every(config.eval_every) and run.is_main:
            adam_state = optimizer_tensors(model, optimizers)
            metrics = measure(model, adam_state, probe, config, epoch, run.step, run.last, run.rows)
            run.log(metrics.row())
            run.keep_best(metrics.test_acc or 0.0, state, averages)
            if metrics.representation_norm is not None:
                run.say(metrics.console())
        if config.lr_after_99 is not None and not touched_99:
            touched_99 = run.any_process(has_touched_99(run.rows))
        # save
        if run.saving(config.checkpoint_every):
            run.save(
                state, averages, keep=getattr(run.options, "keep_checkpoints", 2)
            )  # a sweep's runs have no such flag
        # stop
        if run.ended():
            break
        # step
        for group in (group for optimizer in prepared for group in optimizer.param_groups):
            group["lr"] = learning_rate(epoch, config, touched_99)
        for number, (batch, share) in enumerate(batches(training, config, epoch, run.rank, run.world)):
            output = forward(batch.a_N, batch.b_N)
            inputs = None
            if config.routing_regularizer == "consistency" and model.routed:
                inputs = model.get_embeddings(model.plain_inputs(batch.a_N, batch.b_N)).flatten(1)
            total = loss_of(output, batch.y_N, inputs).total
            extra_loss = loss_of.extra(model, batch.a_N, batch.b_N, grid, run.step + number, run.rank)
            total = total if extra_loss is None else total + extra_loss
            # `share` makes the mean over processes that of the whole batch, where their parts differ in size.
            run.backward(total if share == 1 else total * share, "lr")
            if config.grad_clip is not None:
                run.accelerator.clip_grad_norm_(list(trained.values()), config.grad_clip)
            gradients = {name: q.grad for name, q in trained.items() if q.grad is not None}
            new_gradients, averages = transform_gradients(trained, gradients, averages, config)
            for name, gradient in new_gradients.items():
                trained[name].grad = gradient
            for optimizer in prepared:
                optimizer.step()
                optimizer.zero_grad()
            if config.recipe == "constrained_norm":
                with torch.no_grad():
                    scale = config.constrained_norm_alpha * state["initial_norm"] / total_norm(trained.values())
                    torch._foreach_mul_(list(trained.values()), scale)

    if run.is_main:
        run.results(results(run.rows, config, model), figure_arrays(model, config))


def extra_epochs(run: Run) -> int:
    """Epochs beyond the configuration's. Asked for again after the extension was cut off, it is the same extension."""
    recorded, asked = int(run.manifest.get("extra_epochs", 0)), getattr(run.options, "extra_epochs", 0)
    return recorded + asked if run.was_done else max(recorded, asked)
