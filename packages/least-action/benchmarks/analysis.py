"""SQL over 1,000 runs of 1,000 rows: how long the store takes to open, to look again, and to answer (goal: under 1 s)."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from least_action.analysis import ExperimentStore
from least_action.config import TrainerConfig
from studycore.configuration import to_dict, to_yaml
from studycore.metrics_log import write_parquet

RUNS, ROWS, TIMES = 1000, 1000, 3
EVERY_TENTH = (
    "weight_norm", "representation_norm", "jacobian_norm", "weight_hessian_trace", "fisher_trace", "gradient_norm",
    "aligned_power", "key_share", "restricted_loss", "excluded_loss", "effective_lr_mean", "adam_ratio_mean",
    "update_decay_ratio", "logit_scale",
)  # fmt: skip
QUERIES = (
    "SELECT experiment_name, max(test_acc) AS best FROM experiments GROUP BY ALL ORDER BY best DESC LIMIT 5",
    "SELECT weight_decay, epoch, avg(test_acc), stddev(test_acc) FROM experiments GROUP BY ALL",
    "SELECT arm, quantile_cont(test_loss, 0.5), avg(weight_hessian_trace) FROM experiments GROUP BY ALL",
    "SELECT weight_decay, count(*) FILTER (grokked_99 IS NOT NULL), median(grokked_99) FROM runs GROUP BY ALL",
    "SELECT experiment_name, corr(weight_norm, test_acc) FROM experiments GROUP BY ALL",
    "SELECT " + ", ".join(f"avg({name}), max({name})" for name in EVERY_TENTH) + " FROM experiments",
)


def fabricate(root: Path, runs: int, rows: int) -> None:
    """Finished runs that grok at times of their own, in arms of ten seeds."""
    random = np.random.default_rng(0)
    for number in range(runs):
        folder = root / "sweep" / f"wd{number // 10}_s{number % 10}"
        folder.mkdir(parents=True)
        config = to_dict(TrainerConfig(seed=number % 10, weight_decay=number // 10 / 10))
        manifest = {name: {} for name in ("git", "versions", "devices", "data_fingerprints")}
        manifest |= dict.fromkeys(("version", "configuration_hash", "reason"), "") | {
            "argv": [],
            "seeds": [],
            "resumed": [],
        }
        manifest |= {"study": "least-action", "verb": "train", "state": "done", "times": {"started": "2026"}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        (folder / "config.yaml").write_text(to_yaml(config))
        epoch = np.arange(rows) * 10
        test = 1 / (1 + np.exp(-(epoch - random.uniform(2, 20) * rows / 4) / rows))
        noise = random.uniform(0.99, 1.0, (len(EVERY_TENTH), rows))
        columns = {
            "step": epoch, "epoch": epoch, "train_loss": np.exp(-epoch / rows), "test_loss": 1.01 - test,
            "train_acc": np.minimum(1, epoch / rows), "test_acc": np.minimum(1, test * 1.001),
        }  # fmt: skip
        table = [
            dict(zip(columns, (x.item() for x in values), strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        for i in range(0, rows, 10):
            table[i] |= {name: noise[j, i].item() for j, name in enumerate(EVERY_TENTH)}
        write_parquet(folder / "history.parquet", table)


def seconds(function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fabricate(Path(folder), RUNS, ROWS)
        began = time.perf_counter()
        store = ExperimentStore(folder)
        print(
            f"{RUNS} runs of {ROWS} rows: open {time.perf_counter() - began:.1f} s, look again {seconds(store.refresh):.2f} s"
        )
        for sql in QUERIES:
            times = [seconds(lambda: store.query(sql)) for _ in range(TIMES)]  # noqa: B023
            print(f"{statistics.median(times):6.3f} s  {sql[:100]}")


if __name__ == "__main__":
    main()
