"""SQL over all experiments of a folder: DuckDB over their Parquet histories and a table of their configurations.

history      a row per evaluation: experiment_name, step, epoch and the metrics; null where nothing was measured
runs         a row per experiment: experiment_name, sweep, arm, state, the fields of its configuration, its events
experiments  both, joined by experiment_name; a field that a metric has the name of is config_<field> (config_lr)
"""

import difflib
import json
import re
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from least_action.analysis.loader import (
    RUNS,
    ExperimentData,
    NoExperiment,
    arm_of,
    choose,
    find_runs,
    get_experiment_group,
    read_experiment,
)
from studycore.errors import UserError
from studycore.metrics_log import rows_table
from studycore.run_folder import is_writing

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FILES = ("manifest.json", "config.yaml", "metrics.jsonl", "history.parquet", ".lock")
"""What an experiment's contents follow from; unchanged, they are not read again."""


class ExperimentStore:
    """The experiments below `root` as they are now, read only; `refresh` reads what has changed since.

    A run that cannot be read is left out, and `broken` says why, by name. `version` counts the changes seen.
    """

    def __init__(self, root: str | Path = RUNS):
        try:
            import duckdb
        except ModuleNotFoundError:
            raise UserError("duckdb: is not installed; pip install 'least-action[explorer]' brings it") from None
        self.root = Path(root)
        self.experiments: dict[str, ExperimentData] = {}
        self.broken: dict[str, str] = {}
        self.version = 0
        self._signatures: dict[str, Any] = {}
        self._lock = threading.RLock()
        # No statement can reach a file.
        self._connection = duckdb.connect(":memory:", config={"enable_external_access": "false"})
        self._connection.execute("SET errors_as_json = true")
        self.refresh()

    def refresh(self) -> bool:
        """Reads experiments that are new or have changed. Whether there were any."""
        with self._lock:
            runs = find_runs(self.root)
            signatures = {name: _signature(folder) for name, folder in runs.items()}
            if (
                self.version
                and signatures == self._signatures
                and not any(map(self._is_left, self.experiments.values()))
            ):
                return False
            changed = [
                name
                for name, signature in signatures.items()
                if signature != self._signatures.get(name)
                or (name in self.experiments and self._is_left(self.experiments[name]))
            ]
            with ThreadPoolExecutor() as pool:
                read = dict(zip(changed, pool.map(lambda name: _read(name, runs[name]), changed), strict=True))
            kept = {name: self.experiments.get(name, self.broken.get(name)) for name in runs} | read
            self.experiments = {name: entry for name, entry in kept.items() if isinstance(entry, ExperimentData)}
            self.broken = {name: entry for name, entry in kept.items() if isinstance(entry, str)}
            self._signatures = signatures
            self._register()
            self.version += 1
            return True

    def _is_left(self, experiment: ExperimentData) -> bool:
        """A run whose writer has gone; its files need not have changed."""
        return experiment.state == "running" and not is_writing(experiment.folder)

    def _register(self) -> None:
        import pyarrow as pa

        history = pa.concat_tables(self._histories(), promote_options="permissive")
        runs = rows_table([run_row(experiment) for experiment in self.experiments.values()])
        if not runs.num_columns:
            runs = pa.table({name: pa.array([], pa.string()) for name in ("experiment_name", "sweep", "arm", "state")})
        self._connection.register("history", history)
        self._connection.register("runs", runs)
        shared = (set(history.column_names) & set(runs.column_names)) - {"experiment_name"}
        fields = [
            f'runs."{name}"' + (f' AS "config_{name}"' if name in shared else "")
            for name in runs.column_names
            if name != "experiment_name"
        ]
        self._connection.execute(
            f"CREATE OR REPLACE TEMP VIEW experiments AS SELECT history.*, {', '.join(fields)} "
            "FROM history JOIN runs USING (experiment_name)"
        )
        self._columns = {"history": history.column_names, "runs": runs.column_names}
        self._columns["experiments"] = [
            *history.column_names,
            *(f"config_{name}" if name in shared else name for name in runs.column_names if name != "experiment_name"),
        ]

    def _histories(self) -> "list[pa.Table]":
        """Each with its name as a column; those whose columns have other types than the rest become broken."""
        import pyarrow as pa

        empty = {"experiment_name": pa.string(), "step": pa.int64(), "epoch": pa.int64()}
        empty |= dict.fromkeys(("train_loss", "test_loss", "train_acc", "test_acc"), pa.float64())
        schema = pa.schema(empty)
        tables = [schema.empty_table()]
        for name, experiment in list(self.experiments.items()):
            table = experiment.history
            table = table.add_column(0, "experiment_name", pa.repeat(name, len(table)))
            try:
                schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
            except pa.ArrowException as error:
                self.broken[name] = (
                    f"{experiment.folder}: its history does not fit the others' ({str(error).splitlines()[0]}); leave it out"
                )
                del self.experiments[name]
                continue
            tables.append(table)
        return tables

    def list_experiments(self) -> list[str]:
        """Names, as experiment_name has them."""
        return list(self.experiments)

    def columns(self, table: str = "experiments") -> list[str]:
        """Of history, runs or experiments."""
        return list(self._columns[table])

    def load(self, name: str) -> ExperimentData:
        """As ExperimentLoader.load, of what is in the store."""
        return self.experiments[choose(name, self.list_experiments(), str(self.root))]

    def query(self, sql: str, parameters: Iterable[Any] = ()) -> "pd.DataFrame":
        """The answer to one SELECT. UserError, one sentence, for whatever does not fit, with near names for a wrong one."""
        import duckdb

        with self._lock:
            try:
                statements = self._connection.extract_statements(sql)
                if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                    raise UserError("query: the store is read only; give one SELECT")
                return self._connection.execute(statements[0], list(parameters)).df()
            except duckdb.Error as error:
                raise UserError(self._sentence(sql, str(error))) from None

    def _sentence(self, sql: str, message: str) -> str:
        """What is wrong with a query, from DuckDB's error: JSON with its message and where in the query it is."""
        kind, _, report = message.partition("Error: ")
        error = json.loads(report) if report.startswith("{") else {"exception_message": report or kind}
        if name := _unknown_column(sql, error):
            names = sorted({name for names in self._columns.values() for name in names})
            if name.lower() not in map(str.lower, names):
                close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
                mend = f"near it are {', '.join(close)}" if close else "store.columns() lists those there are"
                return f"query: there is no column '{name}'; {mend}"
        first = error["exception_message"].partition("\n")[0].rstrip(".!")
        near = error.get("candidates", "").partition(",")[0]
        mend = f"did you mean {near}?" if near else "the tables are history, runs and experiments"
        return f"query: {first}; {mend}"


def _unknown_column(sql: str, error: Mapping[str, str]) -> str:
    """The name in the query that DuckDB's error is about, where that is a column; else "".

    One without a table is named in the error. One behind a table's name is read where the error is; a call is none.
    """
    if error.get("error_subtype") == "COLUMN_NOT_FOUND" and "name" in error:
        return error["name"]
    if error.get("exception_type") != "Binder" or "error_subtype" in error or "position" not in error:
        return ""
    column = re.match(r"\w+\.([^\W\d]\w*)\b(?!\s*\()", sql.encode()[int(error["position"]) :].decode(errors="ignore"))
    return column[1] if column else ""


def run_row(experiment: ExperimentData) -> dict[str, Any]:
    """The experiment's row of the table `runs`; a time that was not reached is censored at last_epoch."""
    events = {} if experiment.events is None else experiment.events.as_dict()
    return {
        "experiment_name": experiment.name,
        "sweep": get_experiment_group(experiment.name),
        "arm": arm_of(experiment.name),
        "state": experiment.state,
        **experiment.config,
        **events,
        "censored": None if experiment.events is None else not experiment.has_grokked,
    }


def _signature(folder: Path) -> tuple[Any, ...]:
    stamps = []
    for name in FILES:
        try:
            status = (folder / name).stat()
        except FileNotFoundError:
            continue
        stamps.append((name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def _read(name: str, folder: Path) -> ExperimentData | str | None:
    """The experiment, the sentence on why it cannot be read, or None where there is none."""
    try:
        experiment = read_experiment(name, folder)
        _ = experiment.events
    except NoExperiment:
        return None
    except UserError as error:
        return str(error)
    return experiment
