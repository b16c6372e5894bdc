"""What is claimed, and what the claims read of a finished run."""

from studycore.claims import Claim
from studycore.measures import mean, paired_ratio
from studycore.metrics_log import read_rows

SOONER = paired_ratio("time", "momentum", "plain", censored="censored")
CLAIMS = (
    Claim("sooner", "Momentum reaches a loss of 0.01 sooner", "Polyak 1964", "sooner", "times", SOONER, below=1.0),
    Claim("fits", "The line is fitted", "the toy", "0", "mean squared error", mean("loss"), below=0.01),
)


def claims(verb, config):
    return CLAIMS


def columns(folder, config):
    rows = read_rows(folder / "metrics.jsonl")
    times = [row["step"] for row in rows if row["loss"] < 0.01]
    time = times[0] if times else rows[-1]["step"]
    return {"loss": rows[-1]["loss"], "time": max(1, time), "censored": not times}
