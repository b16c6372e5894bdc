"""Claims: supported on planted effects, not on noise, not run without their arms."""

import json

import numpy as np
import pandas as pd
import pytest

from least_action.claims import CLAIMS, columns
from studycore.claims import as_stored, judge_all

IDS = ["grokking", "delay", "weight_decay", "routing", "routing_fourfold", "curvature", "curvature_per_loss"]


@pytest.fixture
def run(tmp_path):
    """Columns of a fabricated run that memorises and groks at given epochs."""

    def make(config, time, memorised=8, trace=(100.0, 10.0), last=1000):
        rows = []
        for epoch in sorted({0, memorised, time, last}):
            for k in range(config.event_window):
                accuracies = {"train_acc": float(epoch >= memorised), "test_acc": float(epoch >= time and time < last)}
                rows.append({"step": epoch, "epoch": epoch + k, **accuracies, "train_loss": 0.1, "test_loss": 0.1})
            measured = trace[0] if epoch == memorised else trace[1]
            if epoch in (memorised, last):
                rows[-config.event_window] |= {"weight_hessian_trace": measured, "weight_hessian_per_loss": measured}
        rows = [row for row in rows if row["epoch"] <= last]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"run": f"r{time}", "arm": "", "seed": config.seed, **columns(tmp_path, config)}

    return make


def claims_on(runs):
    return judge_all(CLAIMS, pd.DataFrame(runs), [as_stored(claim) for claim in CLAIMS])


def verdicts(runs):
    return {claim["id"]: claim["verdict"] for claim in claims_on(runs)}


def arms(run, small, dense, no_decay, routed, trace=lambda s: (100.0, 10.0 + s)):
    made = []
    for s, times in enumerate(zip(dense, no_decay, routed, strict=True)):
        made.append(run(small(seed=s), times[0], trace=trace(s)))
        made.append(run(small(seed=s, weight_decay=0.0, log_every=20), times[1], trace=trace(s)))
        made.append(
            run(small(seed=s, model_type="routed_transformer", routing_regularizer=None), times[2], trace=trace(s))
        )
    return made


def test_planted_effects_are_found(run, small):
    seeds = range(8)
    runs = arms(run, small, [100 + s for s in seeds], [1000] * 8, [600 + 5 * s for s in seeds])
    assert verdicts(runs) == dict.fromkeys(IDS, "supported")
    opposite = arms(
        run,
        small,
        [400 + s for s in seeds],
        [100 + s for s in seeds],
        [100 + 2 * s for s in seeds],
        lambda s: (10.0, 100.0 + s),
    )
    found = verdicts(opposite)
    assert found["weight_decay"] == found["routing"] == found["curvature"] == "refuted"


def test_noise_is_inconclusive(run, small):
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(60):
        times = random.lognormal(5, 0.4, (3, 6)).clip(20, 900).astype(int)
        traces = random.lognormal(3, 0.5, (6, 2))
        found = verdicts(arms(run, small, *times.tolist(), lambda s, t=traces: tuple(t[s])))
        wrong += sum(found[name] != "inconclusive" for name in ("weight_decay", "routing", "curvature"))
    # 5 % of 180 intervals miss the truth by construction: 9 expected; 20 is beyond 3 standard deviations.
    assert wrong <= 20


def test_missing_inputs_are_not_run(run, small):
    claims = claims_on([run(small(), 100)])
    assert {c["id"]: c["verdict"] for c in claims if c["id"] != "grokking"} == dict.fromkeys(IDS[1:], "not run")
    for claim in claims[1:]:
        assert claim["measured"] is None
        assert claim["interval95"] is None
    # One run says nothing firm about a share.
    assert claims[0]["verdict"] == "inconclusive"
    assert {c["verdict"] for c in claims_on([])} == {"not run"}


def test_pairs_need_the_same_split_and_start(run, small):
    """Arms that differ in more than the thing compared are no pair."""
    runs = [run(small(seed=s), 100) for s in range(4)] + [
        run(small(seed=s, weight_decay=0.0, lr=0.5), 900) for s in range(4)
    ]
    claim = next(c for c in claims_on(runs) if c["id"] == "weight_decay")
    assert (claim["verdict"], claim["why"]) == (
        "not run",
        "Needs 2 or more finished pairs of runs without weight decay and runs with it that differ in nothing else; "
        "there are 0.",
    )


def test_runs_that_never_grok_count_with_their_length_and_are_told(run, small):
    runs = arms(run, small, [100] * 4, [1000, 1000, 500, 510], [100, 110, 90, 100])
    claim = next(c for c in claims_on(runs) if c["id"] == "weight_decay")
    assert "2 of 4" in claim["why"]
    assert claim["measured"] < 10
