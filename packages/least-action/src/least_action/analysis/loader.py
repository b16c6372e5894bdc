"""Run folders as experiments: which there are, and what one of them holds, finished or being written."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from least_action.config import MEASURING, SweepConfig
from least_action.events import Events, find_events
from least_action.plan import plan
from studycore.configuration import build, check_types, read_yaml
from studycore.errors import UserError
from studycore.metrics_log import read_rows, rows_table
from studycore.run_folder import read_manifest, state_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RUNS = Path("runs/least-action")
"""Where `least-action train` and `sweep` write, below the current folder."""
DEPTH = 4
"""Folders below the given one that are searched: runs / study / sweep / experiment."""
SINGLE = "single runs"
"""The group of an experiment that belongs to no sweep."""
SEEDS = ("seed", "data_seed")


@dataclass(frozen=True)
class ExperimentData:
    """One experiment. `history` has a row per evaluation; what was not measured there is null."""

    name: str
    """Path below the folder that was searched, such as sweep-20260101-120000-0a1b2c3d/p17_lr1e-3_wd1.0."""
    folder: Path
    config: Mapping[str, Any]
    state: str
    """done, running, stopped, failed or interrupted."""
    history: "pa.Table"

    @cached_property
    def history_df(self) -> "pd.DataFrame":
        """The history as pandas: step, epoch, and a column per metric."""
        return self.history.to_pandas()

    @cached_property
    def events(self) -> Events | None:
        """When it memorised and grokked; None before the first evaluation."""
        names = ["epoch", "train_acc", "test_acc"]
        if not set(names) <= set(self.history.column_names):
            return None
        names += ["new_pairs_acc"] if "new_pairs_acc" in self.history.column_names else []
        rows = [row for row in self.history.select(names).to_pylist() if row["test_acc"] is not None]
        return find_events(rows, int(self.config["p"]), int(self.config["event_window"])) if rows else None

    @cached_property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """Its configuration without seeds and MEASURING: what the seeds of one experiment share."""
        left_out = (*SEEDS, *MEASURING)
        return tuple(sorted((name, repr(value)) for name, value in self.config.items() if name not in left_out))

    @property
    def seeds(self) -> tuple[int, int]:
        """Of the training and of the split."""
        seed, of_split = self.config["seed"], self.config.get("data_seed")
        return seed, seed if of_split is None else of_split

    @property
    def max_epoch(self) -> int:
        """The last evaluation's; 0 before the first."""
        return 0 if self.events is None else self.events.last_epoch

    @property
    def has_grokked(self) -> bool:
        """Whether 0.99 test accuracy held for the configured number of evaluations."""
        return self.events is not None and self.events.grokked_99 is not None


class NoExperiment(UserError):
    """A run folder that is sound and nothing of ours."""


def find_runs(root: Path) -> dict[str, Path]:
    """Name -> folder of every run of this study below `root`, itself included, oldest name first. UserError without the folder."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; name the one that least-action writes its runs to")
    folders = {path.relative_to(root).as_posix(): path for path in _run_folders(root, DEPTH)}
    return {(path.resolve().name if name == "." else name): path for name, path in sorted(folders.items())}


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a manifest and no runs of their own below; a folder with a damaged one counts, to be told of."""
    below = []
    if depth:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and e.name[0] not in "._" and e.name not in OWN)
        below = [run for name in names for run in _run_folders(folder / name, depth - 1)]
    yield from below
    if not below and (folder / "manifest.json").exists():
        yield folder


OWN = ("checkpoints", "history", "figures")
"""Folders within a run, which hold no runs."""


def read_experiment(name: str, folder: Path) -> ExperimentData:
    """What the folder holds at this moment. NoExperiment for a run of another study or a sweep that has begun none yet,
    UserError for a damaged one."""
    manifest = read_manifest(folder)
    if manifest["study"] != "least-action" or manifest["verb"] == "sweep":
        raise NoExperiment(f"{folder}: holds no run of least-action train; name one that does")
    config = read_yaml(folder / "config.yaml")
    if lacks := [field for field in ("p", "event_window", "seed") if not isinstance(config.get(field), int)]:
        raise UserError(f"{folder}/config.yaml: holds no whole number {lacks[0]}; restore the file")
    state = state_of(folder, manifest)
    history = read_history(folder, finished=state == "done")
    for column in {"step", "epoch", "train_acc", "test_acc", "new_pairs_acc"} & set(history.column_names):
        if (kind := str(history.schema.field(column).type)) not in ("int64", "double", "null"):
            raise UserError(
                f"{folder}: its column {column} holds {kind} and no numbers; restore it or make the run again"
            )
    return ExperimentData(name, folder, config, state, history)


def read_history(folder: Path, finished: bool) -> "pa.Table":
    """history.parquet of a finished run, else the rows of metrics.jsonl so far. UserError when neither can be read."""
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / "history.parquet"
    if not finished or not path.exists():
        return rows_table(read_rows(folder / "metrics.jsonl"))
    try:
        with parquet.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); restore it or make the run again"
        ) from None


class ExperimentLoader:
    """Loads experiments by name from the run folders below `root`."""

    def __init__(self, root: str | Path = RUNS):
        self.root = Path(root)

    def list_experiments(self) -> list[str]:
        return list(find_runs(self.root))

    def load(self, name: str) -> ExperimentData:
        """By its name, or by the last part of it where that is enough. UserError names the nearest when there is none."""
        runs = find_runs(self.root)
        full = choose(name, list(runs), str(self.root))
        return read_experiment(full, runs[full])


def choose(name: str, names: list[str], place: str) -> str:
    """The one of `names` that is meant. UserError when it is none of them or several."""
    meant = [name] if name in names else [full for full in names if full.rpartition("/")[2] == name]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UserError(f"{name}: is the name of {len(meant)} experiments; give one of {', '.join(meant[:5])}")
    near = difflib.get_close_matches(name, [*names, *(full.rpartition("/")[2] for full in names)], n=3, cutoff=0.4)
    mend = f"near it are {', '.join(near)}" if near else f"there are {', '.join(names[:5]) or 'none'}"
    raise UserError(f"{name}: there is no such experiment in {place}; {mend}")


def load_sweep_groups(configs: str | Path | None = None) -> dict[str, list[str]]:
    """Names of the experiments of each sweep configuration in a folder; by default those that come with the study."""
    folder = Path(str(resources.files("least_action"))) / "configs" if configs is None else Path(configs)
    groups = {}
    for path in sorted(folder.glob("*.yaml")):
        values = read_yaml(path)
        if {"grid", "arms", "seeds"} & set(values):
            sweep = build(SweepConfig, check_types(SweepConfig, values))
            groups[path.stem] = [job.name for job in plan(sweep)]
    return groups


def get_experiment_group(name: str, groups: Mapping[str, list[str]] | None = None) -> str:
    """The sweep that an experiment belongs to: its folder, or else the first of `groups` that lists it."""
    folder, _, own = name.rpartition("/")
    return folder or next((group for group, names in (groups or {}).items() if own in names), SINGLE)


def arm_of(name: str) -> str:
    """The name without folder and without the seed: what seeds of one configuration share."""
    return re.sub(r"_s\d+$", "", name.rpartition("/")[2])
