"""The report of one fit or of many."""

from studycore.record import Record
from studycore.report import Report, Table


def report(record: Record) -> Report:
    table = record.table
    shown = Table("Fits", ("run", "loss", "time"), table[["run", "loss", "time"]].values.tolist())
    late = Table("Not done", ("run", "why"), list(record.missing.items()))
    metrics = {"runs": len(table)} if record.verb == "sweep" else {}
    return Report("A line", "Does momentum fit it sooner?", f"{len(table)} fits.", [shown, late], metrics=metrics)
