"""An open run: what is the same in every training loop, so that a loop reads evaluate, save, stop, step, log.

    def train(config, run):
        data = load(config)
        run.begin(data={"text": fingerprint(data)})          # the folder, new or gone on with
        model = run.model(build, replay, probe_inputs)       # new, or rebuilt from the checkpoint and verified
        optimizer = run.optimizer(torch.optim.AdamW(model.parameters()))
        for step in run.steps(config.steps):                 # one pass more than updates: the last only evaluates, saves
            if run.every(config.eval_every):
                run.log(measure(model, data))
            if run.saving(config.checkpoint_every):
                run.save()
            if run.ended():
                break
            loss = ...
            run.backward(loss, "lr")
            optimizer.step()
            optimizer.zero_grad()
        run.results({"loss": ...})

It knows no model, no loss and no schedule. Batches, rates and random draws are functions of (seed, step, rank), so that a
checkpoint holds no random state.
"""

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from studycore.checkpoints import (
    Checkpoint,
    load_latest,
    optimizer_tensors,
    rebuild,
    restore_optimizer,
    save_checkpoint,
)
from studycore.claims import as_stored
from studycore.configuration import differences, read_yaml, to_dict
from studycore.devices import choose_device, describe, set_threads
from studycore.errors import Stopped, UserError, reason_of
from studycore.files import copied, write_tensors
from studycore.options import RunOptions
from studycore.run_folder import RunFolder, check_new, create_run, environment_changes, now, open_run, read_manifest
from studycore.stopping import stop_on_signals
from studycore.study import SCHEMA_VERSION, Study, load
from studycore.terminal import duration

LINE_EVERY = 30
"""Seconds between lines of progress where there is no terminal."""


class Timed(Exception):
    """A dry run has timed a step of each loop: for each its name, seconds a step, steps, their unit."""


class Run:
    """Made by `opened`. The attributes below may be read; the methods are in the order in which a training calls them."""

    def __init__(
        self,
        study: Study,
        verb: str,
        config: Any,
        folder: Path,
        options: RunOptions,
        argv: Sequence[str] = (),
        resume: bool = False,
        needs: Mapping[str, Path] | None = None,
        quiet: bool = False,
        dry: bool = False,
        identity: str = "",
    ):
        self.study, self.verb, self.config, self.folder, self.options = study, verb, config, folder, options
        self.argv, self.quiet, self.dry, self.identity = argv, quiet, dry, identity
        self.needs: Mapping[str, Path] = needs or {}
        """Folders of the runs that this one needs, by their names."""
        self.resume = resume and (folder / "manifest.json").exists()
        self.was_done = self.resume and read_manifest(folder)["state"] == "done"
        """Whether the run had finished and is now extended."""
        self.manifest: dict[str, Any] = read_manifest(folder) if self.resume else {}
        """As it was when the run was opened; empty for a new run."""
        if not self.resume and not dry:
            check_new(folder)
        if options.tracker != "none" and find_spec(options.tracker) is None:
            raise UserError(
                f"--tracker: {options.tracker} is not installed; `pip install {options.tracker}`, or leave it out"
            )
        self._device, self._reason = choose_device(options.device)
        set_threads(options.threads)
        self._accelerator: Any = None
        self.open: RunFolder | None = None
        self.checkpoint: Checkpoint | None = None
        self.state: dict[str, Any] = {}
        """What the loop stored at the checkpoint; empty for a new run."""
        self.index = self.step = 0
        """Of the loop (steps or epochs); updates made so far, over all loops."""
        self.last = self.stopping = False
        self.final: dict[str, Any] = {}
        self.complete: Callable[[Run], None] = lambda run: None
        """What is done when the run has reached its end."""
        self._model: nn.Module | None = None
        self._optimizers: list[torch.optim.Optimizer] = []
        self._best: float | None = None
        self._snapshot: dict[str, Any] | None = None
        self._loop, self._unit, self._first, self._rows, self._loop_over = "", "", 0, 0, False
        self._timed: list[tuple[str, float, int, str]] = []
        self._resume_at: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------------ set-up
    def folder_of(self, field: str, named: str | None, need: str | None = None, holds: str = "manifest.json") -> Path:
        """The folder of another run that this one reads: of the one that the plan gives as `need`, or else the one that
        `field` names, from this run's folder or from where the command is called. UserError for none with the file `holds`."""
        if need is not None and need in self.needs:
            return self.needs[need]
        if named is None:
            raise UserError(f"{field}: null; this run goes on from a finished one, so name its folder: --{field} RUN")
        places = [Path(os.path.normpath(self.folder / named)), Path(named)]
        place = next((place for place in places if (place / holds).is_file()), None)
        if place is None:
            raise UserError(f"{field}: '{named}' is no run folder with {holds}; name that of a finished run")
        return place

    def accelerate(self, **settings: Any) -> Any:
        """Accelerate with `settings`; without a call its defaults hold."""
        from accelerate import Accelerator

        assert self._accelerator is None, "call it once, before anything that uses a device"
        tracker = None if self.options.tracker == "none" or self.dry else self.options.tracker
        self._accelerator = Accelerator(
            cpu=self._device == "cpu", log_with=tracker, project_dir=self.folder, **settings
        )
        return self._accelerator

    @property
    def accelerator(self) -> Any:
        return self._accelerator or self.accelerate()

    @property
    def device(self) -> str:
        return "cpu" if self._device == "cpu" else str(self.accelerator.device)  # several processes call it cpu:0

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Processes that train this run together."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def begin(self, data: Mapping[str, str], **about: Any) -> None:
        """Makes the folder, or goes on with the one there after checking that configuration and data are the same.

        `data` maps names to fingerprints of what the run reads; `about` goes into the manifest. UserError says what
        differs.
        """
        if self.is_main and not self.quiet and not self.dry:
            threads = f"{torch.get_num_threads()} threads, {self.world} processes"
            print(f"{self.study.name} {self.verb} on {self.device} ({self._reason}), {threads}", flush=True)
        if self.dry:
            return
        values, devices = to_dict(self.config), describe(self.device)
        if self.world > 1:  # all have looked at the folder before it changes
            self.accelerator.wait_for_everyone()
        if self.resume:
            self.checkpoint = load_latest(self.folder / "checkpoints")
            if self.checkpoint is not None:
                self._take_up(self.checkpoint)
        if self.is_main and self.resume:
            if changed := differences(read_yaml(self.folder / "config.yaml"), values):
                raise UserError(f"{self.folder}: its configuration is another: {'; '.join(changed)}; start a new run")
            if changed := differences(self.manifest["data_fingerprints"], dict(data)):
                raise UserError(
                    f"{self.folder}: its data are not those it began with: {'; '.join(changed)}; start a new run"
                )
            self.open = reopen(self.folder, devices, self.study.name)
            self.open.metrics.rewind(self._rows)
        elif self.is_main:
            claims = load(self.study.claims)(self.verb, self.config)
            self.open = create_run(
                self.folder, study=self.study, verb=self.verb, config=values, argv=self.argv,
                seeds=[self.config.seed] if hasattr(self.config, "seed") else [], devices=devices, data=data,
                claims=[as_stored(claim) for claim in claims],
                options={"num_processes": self.world} | self._options_that_matter(),
                needs={name: os.path.relpath(path, self.folder) for name, path in self.needs.items()}, identity=self.identity,
            )  # fmt: skip
        self.about(**about)
        if self.options.tracker != "none":
            self.accelerator.init_trackers(self.study.name, config=values)

    def _options_that_matter(self) -> dict[str, Any]:
        """The study's own options, which `resume` gives again."""
        common = vars(RunOptions()).keys() | {"num_processes", "seeds"}
        return {name: value for name, value in vars(self.options).items() if name not in common}

    def _take_up(self, checkpoint: Checkpoint) -> None:
        if not {"loop", "index", "rows", "best", "state"} <= set(checkpoint.state):
            raise UserError(f"{checkpoint.path}: was written by another version, which can resume it; start a new run")
        self._resume_at, self.state = checkpoint.state, checkpoint.state["state"]
        self._rows, self._best, self.step = checkpoint.state["rows"], checkpoint.state["best"], checkpoint.step

    def about(self, **fields: Any) -> None:
        """Fields for manifest.json."""
        if self.open is not None:
            self.open.update(**fields)

    def model(
        self,
        build: Callable[[dict[str, Any]], Any],
        replay: Callable[[Any, Any], dict[str, Tensor]],
        inputs: Mapping[str, Tensor],
        values: Mapping[str, Any] | None = None,
        start: Callable[[], Any] | None = None,
    ) -> Any:
        """The model on the run's device: new, or that of the checkpoint, rebuilt and verified.

        `build(values)` makes it from what checkpoints store as their configuration (by default the run's own); `start()`
        makes a new run's where that is not the same. `replay(model, inputs)` gives the outputs that a checkpoint's probe
        keeps: see studycore.checkpoints.
        """
        self._values = to_dict(self.config) if values is None else dict(values)
        self._replay, self._inputs = replay, inputs
        if self.checkpoint is not None:
            model = rebuild(self.checkpoint, build, replay, self._values)
        else:
            model = start() if start else build(self._values)
        self._model = model.to(self.device)
        return self._model

    def optimizer(self, optimizer: Any) -> Any:
        """The optimizer, whose state checkpoints keep by parameter name; with the checkpoint's state, if there is one."""
        assert self._model is not None
        if self._loop_over:  # the next loop has optimizers of its own
            self._optimizers, self.checkpoint, self._loop_over = [], None, False
        self._optimizers.append(optimizer)
        if self.checkpoint is not None:
            restore_optimizer(self._model, optimizer, self.checkpoint.optimizer)
        return optimizer

    # ------------------------------------------------------------------------------------------------------ the loop
    def has_passed(self, loop: str) -> bool:
        """Whether the checkpoint was made in a later loop than this one."""
        return self._resume_at is not None and self._resume_at["loop"] != loop

    def steps(
        self, total: int, loop: str = "", unit: str = "step", updates: int = 1, more: bool = False
    ) -> Iterator[int]:
        """0, 1, .. `total`, from where the checkpoint stood: at index i, i * `updates` updates of this loop are made.

        The last index is for evaluating and saving alone. Several loops of one run need names, and `more` of those that
        another one follows: a dry run makes a few steps of each.
        """
        if self._resume_at is not None:
            assert self._resume_at["loop"] == loop, (self._resume_at["loop"], loop)
            self._first, self._resume_at = int(self._resume_at["index"]), None
        else:
            self._first = 0
        self._loop, self._unit, self._updates, self.last = loop, unit, updates, False
        began = last_line = time.monotonic()
        times: list[float] = []
        hidden = self.quiet or self.dry or not self.is_main or not sys.stderr.isatty()
        with tqdm(total=total, initial=self._first, unit=unit, desc=loop or None, disable=hidden) as bar:
            for index in range(self._first, total + 1):
                self.index, self.last = index, index == total
                if self.dry:
                    times.append(time.perf_counter())
                    self.last = index == min(3, total)  # the first step also warms up
                    if self.last:
                        self._timed.append((loop, min(_differences(times)), total, unit))
                        if not more:
                            raise Timed(*self._timed)
                self._rows = 0 if self.open is None else len(self.open.metrics.rows)
                self.stopping = self.any_process(stop_flag())
                yield index
                self.step += updates
                bar.update(1)
                if hidden and self.is_main and not self.quiet and time.monotonic() - last_line > LINE_EVERY:
                    last_line = time.monotonic()
                    left = (last_line - began) / (index + 1 - self._first) * (total - index - 1)
                    print(f"{loop} {unit} {index + 1} of {total}, about {duration(left)} left".strip(), flush=True)

    def any_process(self, flag: Any) -> bool:
        """Whether the flag is true in any process: all learn of it at the same step."""
        if self.world == 1:
            return bool(flag)
        processes: Any = self.accelerator.reduce(torch.tensor(float(bool(flag)), device=self.device), "sum")
        return float(processes) > 0

    def told_to_stop(self) -> bool:
        """Whether a signal has come, in any process, since this index began: a step that is long may ask, give up what it
        has not finished, save and call `ended`."""
        self.stopping = self.stopping or self.any_process(stop_flag())
        return self.stopping

    def check_stop(self) -> None:
        """Ends the run when a signal has come: Stopped. Work of more than some seconds that is not a step of the loop (a
        measurement, an evaluation, a fit) calls it for every matrix, batch or question; what it has not finished, `resume`
        makes again.

        Several processes of one run leave it together, so they hear of a signal at the next index alone.
        """
        if stop_flag() and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise Stopped(self._told())

    @contextmanager
    def saved_if_stopped(
        self, state: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> Iterator[None]:
        """Around an evaluation in the loop that calls `check_stop`: a checkpoint of this index, as `save` writes it, before
        the run ends. What is in the block leaves model and optimizer as they were, also when it is given up."""
        try:
            yield
        except Stopped:
            self.save(state, tensors)
            raise

    @property
    def _in_loop(self) -> bool:
        return bool(self._unit) and not self._loop_over

    def _told(self) -> str:
        """Who told the run to stop, and where it is."""
        where = f" at {self._loop} {self._unit} {self.index}".replace("  ", " ") if self._in_loop else ""
        return f"stopped by {stop_flag().name or 'a signal'}{where}"

    def end_here(self, when: bool) -> None:
        """Makes this index the loop's last, in all processes, when any of them says so; call it before evaluating."""
        self.last = self.any_process(when) or self.last

    def every(self, n: int) -> bool:
        """True at every n-th index and at the last; never in a dry run."""
        return not self.dry and (self.last or self.index % n == 0)

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl, of this step, and for the tracker; None is left out. ValueError for NaN."""
        if self.open is not None:
            self.open.metrics.append({"step": self.step, **row})
            if self.options.tracker != "none":
                numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
                self.accelerator.log(numbers, step=self.step)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows so far, in the main process; empty in the others."""
        return [] if self.open is None else self.open.metrics.rows

    def say(self, text: str) -> None:
        """A line on the terminal, from the main process of a run that is not one of many."""
        if self.is_main and not self.quiet and not self.dry:
            tqdm.write(text)

    def saving(self, n: int) -> bool:
        """Whether a checkpoint is due: at every n-th index after the first, at the last, and when told to stop."""
        due = self.last or self.stopping or (self.index > self._first and self.index % n == 0)
        return due and not self.dry

    def keep_best(
        self, score: float, state: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> bool:
        """Remembers the model when `score` is higher than ever; the next save writes it as the best. Whether it was."""
        if self.dry or (self._best is not None and not score > self._best):
            return False
        self._best = score
        if self.open is not None:
            self._snapshot = self._contents(state, tensors)
        return True

    def save(
        self, state: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None, keep: int = 2
    ) -> None:
        """Writes checkpoints/step-<updates>, and before it the best model since the last save.

        `state` (JSON) and `tensors` are what the loop needs besides model and optimizers when it goes on at this index,
        before its evaluation, which is made again: `run.state` and `run.tensors` of a resumed run.
        """
        if self.open is None:
            return
        here, best = self._contents(state, tensors), self._snapshot
        root = self.folder / "checkpoints"
        if best is not None and best["step"] != here["step"]:
            save_checkpoint(root, **best, best=True, keep=keep)
        save_checkpoint(root, **here, best=best is not None and best["step"] == here["step"], keep=keep)
        self._snapshot = None
        self.open.metrics.write_part()

    def _contents(self, state: Mapping[str, Any] | None, tensors: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """A checkpoint of this moment; its tensors are copies."""
        assert self._model is not None
        with torch.no_grad():
            probe = {**self._inputs, **self._replay(self._model, self._inputs)}
        optimizer = optimizer_tensors(self._model, self._optimizers)
        optimizer |= {f"{EXTRA}{name}": tensor for name, tensor in (tensors or {}).items()}
        position = {"loop": self._loop, "index": self.index, "rows": self._rows, "best": self._best}
        return {
            "step": self.step, "config": self._values, "state": {**position, "state": dict(state or {})},
            "model": copied(self._model.state_dict()), "optimizer": copied(optimizer), "probe": copied(probe),
        }  # fmt: skip

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the loop gave to `save` as tensors, on the run's device; empty for a new run."""
        stored = {} if self.checkpoint is None else self.checkpoint.optimizer
        return {k.removeprefix(EXTRA): v.to(self.device) for k, v in stored.items() if k.startswith(EXTRA)}

    def ended(self) -> bool:
        """Whether this was the loop's last index. Stopped when a signal came, which ends the run until it is resumed."""
        if self.stopping and not self.last:
            raise Stopped(self._told())
        if self.last:
            self._loop_over, self.state = True, {}
        return self.last

    def backward(self, loss: Tensor, field: str) -> None:
        """Adds the loss's gradients. UserError for a loss that is not finite, naming the field to change."""
        if not bool(torch.isfinite(loss.detach())):
            raise UserError(self.not_finite(field, "the loss", float(loss.detach())))
        self.accelerator.backward(loss)

    def not_finite(self, field: str, what: str, value: float) -> str:
        """The sentence on a number that is not finite."""
        made = f"{getattr(self.config, field)} made {what} {value} at {self._loop} {self._unit} {self.index}".replace(
            "  ", " "
        )
        return f"{field}: {made}; lower it{' or set grad_clip' if hasattr(self.config, 'grad_clip') else ''}"

    def results(self, metrics: Mapping[str, Any], arrays: Mapping[str, Tensor] | None = None) -> None:
        """Metrics of results.json, and tensors that figures need, as arrays.safetensors."""
        self.final = {name: value for name, value in metrics.items() if value is not None}
        assert all(math.isfinite(v) for v in self.final.values() if isinstance(v, float)), self.final
        if self.open is not None and arrays:
            write_tensors(self.folder / "arrays.safetensors", arrays)

    def finished(self) -> None:
        """The run has reached its end; a training of one run need not say so."""
        if self.open is not None and not self.open.closed:
            self.complete(self)

    def failed(self, sentence: str) -> None:
        """This run ends here for a reason that does not end those that are trained together with it."""
        if self.open is not None:
            self.open.finish("failed", sentence)


EXTRA = "loop:"
"""Before the names of a loop's own tensors in optimizer.safetensors."""


def _differences(times: Sequence[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)] or [math.nan]


def reopen(folder: Path, devices: Mapping[str, Any], name: str) -> RunFolder:
    """The folder, opened to go on; says what the bitwise promise depends on and has changed. UserError for another schema."""
    folder_ = open_run(folder)
    if folder_.manifest.get("schema_version") != SCHEMA_VERSION:
        folder_.close()
        raise UserError(f"{folder}: was begun by another version, which can go on with it; start a new run")
    if changes := environment_changes(folder_.manifest, devices):
        print(f"{name}: not bitwise the same from here on: {', '.join(changes)}")
    folder_.update(
        state="running", reason="", resumed=[*folder_.manifest["resumed"], {"at": now(), "changes": changes}]
    )
    return folder_


def stop_flag() -> Any:
    """The flag of the block of stop_on_signals that is open."""
    with stop_on_signals() as stop:
        return stop


@contextmanager
def opened(study: Study, verb: str, config: Any, folder: Path, options: RunOptions, **more: Any) -> Iterator[Run]:
    """A Run for the length of a training. When it ends early, the manifest says so: stopped, or failed and why."""
    with stop_on_signals():
        run = Run(study, verb, config, folder, options, **more)
        try:
            yield run
        except Exception as error:
            if run.open is not None and not run.open.closed:
                run.open.finish("stopped" if isinstance(error, Stopped) else "failed", reason_of(error))
            if isinstance(error, Stopped):
                _leave(run)
            raise
        finally:
            if run.open is not None:
                run.open.close()
        _leave(run)


def _leave(run: Run) -> None:
    """Ends trackers and the process group; a process that leaves while others still work would abort."""
    if run.options.tracker != "none" or run.world > 1:
        run.accelerator.wait_for_everyone()
        run.accelerator.end_training()


def peak_memory() -> float:
    """Most memory that this process has had, in MiB."""
    # In KiB on Linux, in bytes on a Mac.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
