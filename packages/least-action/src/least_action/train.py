"""One run, from top to bottom: set-up, model, optimiser, resume, loop (evaluate, save, stop, step, log), record.

Order and randomness are functions of (seed, epoch), nothing draws from the global stream, and the learning rate is a
function of the epoch: a checkpoint needs no random states and resuming is bitwise.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from least_action.config import RunOptions, TrainerConfig
from least_action.data import ModularArithmeticDataset, Pairs, SequenceArithmeticDataset
from least_action.events import grokked_epoch
from least_action.losses import LeastActionLoss
from least_action.metrics.training import MetricsHistory, Probe, measure
from least_action.models import Output, PairModel, count_parameters, create_model
from least_action.recipes import (
    create_optimizers,
    learning_rate,
    optimizer_tensors,
    restore_optimizers,
    total_norm,
    transform_gradients,
)
from least_action.record import checkpoint_tensors, load_run_checkpoint, open_or_create
from least_action.report import write_run_report
from studycore.checkpoints import save_checkpoint
from studycore.configuration import to_dict
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError
from studycore.runs import read_manifest, recording
from studycore.stopping import stop_on_signals
from studycore.streams import generator


class PairForward(nn.Module):
    """The model as the training step calls it: from residues, by the configured pass."""

    def __init__(self, model: PairModel, restructured: bool):
        super().__init__()
        self.model, self.restructured = model, restructured

    def forward(self, a_N: Tensor, b_N: Tensor) -> Output:
        if self.restructured:
            return self.model.forward_pairs(a_N, b_N)
        return self.model.run_from_embeddings(self.model.get_embeddings(self.model.plain_inputs(a_N, b_N)))


def create_dataset(config: TrainerConfig) -> ModularArithmeticDataset:
    """Tokens for transformers, one-hot vectors for MLPs; the same pairs and split for both."""
    one_hot = config.model_type in ("baseline", "routed")
    kind = ModularArithmeticDataset if one_hot else SequenceArithmeticDataset
    return kind(config.p, config.operation, config.train_frac, config.split_seed)


def batches(train: Pairs, config: TrainerConfig, epoch: int, rank: int, world: int) -> Iterator[tuple[Pairs, float]]:
    """This rank's part of each batch of an epoch, with the factor that makes the ranks' mean loss the batch's.

    Full batches keep their order, smaller ones are shuffled by (seed, epoch).
    """
    if config.batch_size is None:
        order = torch.arange(len(train))
    else:
        order = torch.randperm(len(train), generator=generator(config.seed, "batches", epoch))
    for batch in order.to(train.y_N.device).split(config.batch_size or len(train)):
        part = train if world == 1 and config.batch_size is None else train[batch[rank::world]]
        yield part, len(part) * world / len(batch)


def train(
    config: TrainerConfig,
    folder: Path,
    options: RunOptions | None = None,
    argv: Sequence[str] = (),
    resume: bool = False,
    extra_epochs: int = 0,
    quiet: bool = False,
) -> Path:
    """Trains a run in the new `folder`, or goes on with the one there (`resume`), and returns the folder.

    `extra_epochs` is added to config.epochs (and recorded), and then stop_after_grok no longer ends the run; `quiet` leaves out console lines and the progress bar.
    UserError for what can't be run; Stopped when a signal came, after saving.
    """
    options = options or RunOptions()
    # ---------------------------------------------------------------------------------------------------- set-up
    device, reason = choose_device(options.device)
    set_threads(options.threads)
    if device == "mps" and "float64" in (config.dtype, config.loss_dtype):
        raise UserError("loss_dtype, dtype: float64 does not exist on mps; give --loss-dtype float32 --dtype float32")
    tracker = None if options.tracker == "none" else options.tracker
    if tracker and find_spec(tracker) is None:
        raise UserError(f"--tracker: {tracker} is not installed; `pip install {tracker}`, or leave --tracker out")
    ddp = DistributedDataParallelKwargs(find_unused_parameters=config.model_type == "routed")  # its last state
    accelerator = Accelerator(cpu=device == "cpu", log_with=tracker, project_dir=folder, kwargs_handlers=[ddp])
    main, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
    device = str(accelerator.device)
    if main and not quiet:
        print(f"least-action trains on {device} ({reason}), {torch.get_num_threads()} threads, {world} processes")

    # ------------------------------------------------------------------------------------------------------ data
    data = create_dataset(config)
    training, probe = data.train.to(device), Probe.draw(data, config, device)
    grid = (probe.all.a_N, probe.all.b_N)

    # ------------------------------------------------------------------------------------- model and optimiser
    checkpoint, model = load_run_checkpoint(folder, config) if resume else (None, None)
    was_done = resume and read_manifest(folder)["state"] == "done"
    run = open_or_create(folder, config, data, argv, describe(device), resume) if main else None
    model = (model or create_model(config)).to(device)
    initial_norm = (
        float(checkpoint.state["initial_norm"]) if checkpoint else total_norm(dict(model.named_parameters())).item()
    )
    optimizers = create_optimizers(model, config)
    averages = restore_optimizers(model, optimizers, checkpoint.optimizer) if checkpoint else {}
    stepper, *prepared = accelerator.prepare(PairForward(model, config.forward == "restructured"), *optimizers)
    loss_of = LeastActionLoss(config)

    # ---------------------------------------------------------------------------------------------------- resume
    first_epoch = int(checkpoint.state["epoch"]) if checkpoint else 0
    step = int(checkpoint.state["step"]) if checkpoint else 0
    best = float(checkpoint.state["best_test_acc"]) if checkpoint else -1.0
    if run is not None:
        # Asked for again after the extension was cut off, it is the same extension.
        recorded = int(run.manifest.get("extra_epochs", 0))
        extra_epochs = recorded + extra_epochs if was_done else max(recorded, extra_epochs)
        # The row at the checkpoint's own step is measured again, to the same bits.
        run.metrics.rewind(step - 1)
        run.update(
            extra_epochs=extra_epochs, parameters=count_parameters(model), weight_decay_rule=config.weight_decay_rule
        )
    last_epoch = config.epochs + extra_epochs
    stop_after = None if extra_epochs else config.stop_after_grok
    if tracker:
        accelerator.init_trackers("least-action", config=dataclasses.asdict(config))

    # ------------------------------------------------------------------------------------------------------ loop
    trained = {name: q for name, q in model.named_parameters() if q.requires_grad}
    bar = tqdm(
        total=last_epoch, initial=first_epoch, unit="epoch", disable=quiet or not main or not sys.stderr.isatty()
    )
    outcome, told, started = "", time.monotonic(), time.monotonic()
    with stop_on_signals() as stop, recording(*[run] if run else []):
        for epoch in range(first_epoch, last_epoch + 1):
            # evaluate
            last = epoch == last_epoch
            if run is not None and stop_after is not None and epoch % config.eval_every == 0:
                grokked = grokked_epoch(run.metrics.rows, config)
                last = last or (grokked is not None and epoch >= grokked + stop_after)
            if run is not None and (last or epoch % config.eval_every == 0):
                metrics = measure(
                    model, optimizer_tensors(model, optimizers, averages), probe, config, epoch, step, last
                )
                run.metrics.append(metrics.row())
                accelerator.log({k: v for k, v in metrics.row().items() if not isinstance(v, str)}, step=step)
                if metrics.representation_norm is not None and not quiet:
                    tqdm.write(metrics.console())

            # stop: every process learns of a signal or of the end that rank 0 saw
            if world > 1:
                flags = accelerator.reduce(
                    torch.tensor([float(last and main), float(bool(stop))], device=device), "sum"
                )
                last, stopping = bool(flags[0] > 0), bool(flags[1] > 0)
            else:
                stopping = bool(stop)

            # save
            due = last or stopping or (epoch > first_epoch and epoch % config.checkpoint_every == 0)
            if run is not None and due:
                accuracy = run.metrics.rows[-1]["test_acc"] if run.metrics.rows else -1.0
                state = {
                    "epoch": epoch,
                    "step": step,
                    "best_test_acc": max(best, accuracy),
                    "initial_norm": initial_norm,
                }
                save_checkpoint(
                    folder / "checkpoints",
                    step,
                    config=to_dict(config),
                    state=state,
                    best=accuracy > best,
                    **checkpoint_tensors(model, optimizer_tensors(model, optimizers, averages), config),
                )
                run.metrics.write_part()
                best = max(best, accuracy)
            if last or stopping:
                outcome = "done" if last else f"stopped by {stop.name} at epoch {epoch}"
                break

            # step
            for group in (group for optimizer in prepared for group in optimizer.param_groups):
                group["lr"] = learning_rate(epoch, config)
            for batch, share in batches(training, config, epoch, rank, world):
                output = stepper(batch.a_N, batch.b_N)
                inputs = None
                if config.routing_regularizer == "consistency" and model.routed:
                    inputs = model.get_embeddings(model.plain_inputs(batch.a_N, batch.b_N)).flatten(1)
                parts = loss_of(output, batch.y_N, inputs)
                extra = loss_of.extra(model, batch.a_N, batch.b_N, grid, step, rank)
                total = parts.total if extra is None else parts.total + extra
                if not torch.isfinite(total):
                    raise UserError(
                        f"lr: {config.lr} made the loss {total.item()} at epoch {epoch}; lower it or set grad_clip"
                    )
                accelerator.backward(total if share == 1 else total * share)
                gradients = {name: q.grad for name, q in trained.items() if q.grad is not None}
                if config.grad_clip is not None:
                    accelerator.clip_grad_norm_(list(trained.values()), config.grad_clip)
                new_gradients, averages = transform_gradients(trained, gradients, averages, config)
                for name, gradient in new_gradients.items():
                    trained[name].grad = gradient
                for optimizer in prepared:
                    optimizer.step()
                    optimizer.zero_grad()
                if config.recipe == "constrained_norm":
                    with torch.no_grad():
                        scale = config.constrained_norm_alpha * initial_norm / total_norm(trained)
                        torch._foreach_mul_(list(trained.values()), scale)
                step += 1

            # log
            bar.update(1)
            if main and not quiet and bar.disable and time.monotonic() - told > 30:
                told = time.monotonic()
                left = (told - started) / (epoch + 1 - first_epoch) * (last_epoch - epoch - 1)
                print(f"epoch {epoch + 1} of {last_epoch}, about {left:.0f} s left", flush=True)
        bar.close()

        # ---------------------------------------------------------------------------------------------------- record
        if run is not None:
            if outcome == "done":
                run.metrics.compact()
                run.update()
                write_run_report(run.folder, config, model)
                run.finish("done", f"reached epoch {epoch}")
            else:
                run.finish("stopped", outcome)
        if tracker or world > 1:
            # Ends trackers and the process group; a process that leaves while others still work would abort.
            accelerator.wait_for_everyone()
            accelerator.end_training()
        if outcome != "done":
            raise Stopped(f"{outcome} and saved; `least-action resume {folder}` continues")
    return folder


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A configuration with its run folder, for use from a notebook: `Trainer(config, folder).train()`."""

    config: TrainerConfig
    folder: Path
    options: RunOptions = dataclasses.field(default_factory=RunOptions)

    def train(self, resume: bool = False, extra_epochs: int = 0) -> MetricsHistory:
        """`train` as a function does it; returns the run's history."""
        train(self.config, self.folder, self.options, resume=resume, extra_epochs=extra_epochs)
        return MetricsHistory.load(self.folder)
