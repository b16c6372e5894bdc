"""Intervals over paragraphs on fabricated answers: planted effects are found, and noise is not."""

import numpy as np
import pandas as pd
import pytest

from latentwire_adapter.claims import (
    claims,
    columns,
    cosine,
    difference,
    f1_of,
    lead_on_trained_types,
    of_ratio,
    questions,
    rank_correlation,
    retention,
    unexplained,
)
from latentwire_adapter.config import EvaluateConfig, Phase1Config, Phase2Config, SuiteConfig
from latentwire_adapter.metrics import retention as retained, token_types
from studycore.claims import NotRun, as_stored, judge_all
from studycore.statistics import Interval


def asked(scores, per_paragraph=2, **more):
    """Questions with these F1 (0 to 1)."""
    return [
        {
            "id": str(i),
            "paragraph": f"p{i // per_paragraph}",
            "f1": float(s),
            "em": float(s == 1),
            **{k: v[i] for k, v in more.items()},
        }
        for i, s in enumerate(scores)
    ]


def table(**arms):

    rows = [
        {"arm": name.partition("__")[0], "ratio": name.partition("__")[2] or None, "seed": 0, "questions": q}
        for name, q in arms.items()
    ]
    return pd.DataFrame(rows)


def draws(seed, n=60, p=0.5):
    return (np.random.default_rng(seed).random(n) < p).astype(float)


def verdict(measure, of, **threshold):
    from studycore.claims import Claim

    claim = Claim("x", "x", "x", "x", "x", measure, **threshold)
    (judged,) = judge_all([claim], of, [as_stored(claim)])
    return judged


def test_a_measure_names_the_runs_that_it_reads():
    of = pd.DataFrame({
        "run": ["raw", "p8", "p4", "l8", "q", "s"], "arm": ["raw", "adapter", "adapter", "linear", "question_only", "shuffled"],
        "ratio": [None, "8x", "4x", "8x", None, None],
    })  # fmt: skip
    for measure, runs, metric in (
        (retention("adapter", "8x"), ["raw", "p8", "q", "s"], "f1"), (f1_of("raw"), ["raw"], "f1"),
        (difference(("adapter", "4x"), ("linear", "8x")), ["p4", "l8"], "f1"), (cosine("4x"), ["p4"], "recon_cosine_sim"),
        (unexplained("linear", "held_out", "8x"), ["p8"], "linear_held_out_nmse"),
        (unexplained("adapter", "seen", "8x", less="linear"), ["p8"], "nmse"),
    ):  # fmt: skip
        assert (list(measure.read(of)["run"]), measure.metric) == (runs, metric), measure.text


def test_f1_by_hand():
    interval = retained.mean_f1(asked([1, 0, 1, 1]))
    assert interval.estimate == 75
    assert interval.n == 2
    assert 50 <= interval.low <= interval.high <= 100


def test_questions_of_a_paragraph_count_as_one():
    """Ten copies of each question make no interval narrower."""
    one = retained.mean_f1(asked(draws(0, 40), 1))
    many = retained.mean_f1(asked(np.repeat(draws(0, 40), 10), 10))
    assert many.n == one.n == 40
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.05)


def test_retention_by_hand_and_with_the_better_control():
    treated, whole = asked([1, 0, 1, 0]), asked([1, 1, 1, 1])
    nothing, quarter = asked([0, 0, 0, 0]), asked([1, 0, 0, 0])
    assert retained.retention(treated, whole, [nothing, nothing]).estimate == pytest.approx(0.5)
    assert retained.retention(treated, whole, [nothing, quarter]).estimate == pytest.approx((50 - 25) / (100 - 25))
    with pytest.raises(NotRun, match="nothing to retain"):
        retained.retention(treated, nothing, [whole, nothing])
    with pytest.raises(NotRun, match="other questions"):
        retained.retention(treated[:2], whole, [nothing])


def test_pairing_finds_what_unpaired_noise_would_hide():
    base = draws(1, 200)
    better = np.minimum(base + (np.arange(200) % 8 == 0), 1)
    interval = retained.difference(asked(better), asked(base))
    assert interval.low > 0
    noise = retained.difference(asked(draws(2, 200)), asked(draws(3, 200)))
    assert noise.low < 0 < noise.high


def test_measures_support_refute_and_stay_open():
    of = table(raw=asked(np.ones(60)), question_only=asked(np.zeros(60)), shuffled=asked(np.zeros(60)),
               adapter__8x=asked(draws(4, p=0.97)), linear__8x=asked(draws(5, p=0.2)), fewer__8x=asked(draws(6, p=0.97)))  # fmt: skip
    assert verdict(f1_of("adapter", "8x"), of, above=70.0)["verdict"] == "supported"
    assert verdict(f1_of("linear", "8x"), of, above=70.0)["verdict"] == "refuted"
    assert verdict(retention("adapter", "8x"), of, above=0.7)["verdict"] == "supported"
    assert verdict(retention("linear", "8x"), of, above=0.7)["verdict"] == "refuted"
    assert verdict(retention("linear", "8x"), of, above=0.2)["verdict"] == "inconclusive"
    assert verdict(difference(("adapter", "8x"), ("linear", "8x")), of, above=0.0)["verdict"] == "supported"
    assert verdict(difference(("linear", "8x"), ("adapter", "8x")), of, above=0.0)["verdict"] == "refuted"
    assert verdict(difference(("adapter", "8x"), ("fewer", "8x")), of, above=0.0)["verdict"] == "inconclusive"
    missing = verdict(f1_of("adapter", "4x"), of, above=70.0)
    assert (missing["verdict"], missing["measured"]) == ("not run", None)
    assert verdict(retention("adapter", "8x"), of[of["arm"] != "shuffled"], above=0.7)["verdict"] == "not run"


def test_rank_correlation_on_planted_truth_and_noise():
    error = np.random.default_rng(7).random(120)
    planted = asked((error < 0.5).astype(float), error=error)
    assert verdict(rank_correlation("adapter", "4x"), table(adapter__4x=planted), above=0.0)["verdict"] == "supported"
    turned = asked((error > 0.5).astype(float), error=error)
    assert verdict(rank_correlation("adapter", "4x"), table(adapter__4x=turned), above=0.0)["verdict"] == "refuted"
    noise = asked(draws(8, 120), error=error)
    assert verdict(rank_correlation("adapter", "4x"), table(adapter__4x=noise), above=0.0)["verdict"] == "inconclusive"
    for same in (asked(np.zeros(120), error=error), asked(draws(8, 120), error=np.full(120, 0.25))):
        judged = verdict(rank_correlation("adapter", "4x"), table(adapter__4x=same), above=0.0)
        assert (judged["verdict"], judged["measured"]) == ("inconclusive", 0)  # neither follows the other
    nothing = verdict(rank_correlation("adapter", "4x"), table(adapter__4x=asked(draws(8, 120))), above=0.0)
    assert nothing["verdict"] == "not run"


def test_unexplained_variance_of_types():

    random = np.random.default_rng(0)
    spread, count = random.random(200) + 1, random.integers(1, 9, 200).astype(np.float32)
    arrays = {
        "held_out_count": count,
        "held_out_spread": spread,
        "held_out_adapter": 0.3 * spread,
        "held_out_linear": 0.5 * spread,
    }
    of = pd.DataFrame([{"arm": "adapter", "ratio": "4x", "arrays": arrays}])
    better = verdict(unexplained("adapter", "held_out", "4x", less="linear"), of, below=0.0)
    assert better["verdict"] == "supported"
    assert better["measured"] == pytest.approx(-0.2)
    assert verdict(unexplained("linear", "held_out", "4x", less="adapter"), of, below=0.0)["verdict"] == "refuted"
    noise = arrays | {"held_out_adapter": (0.5 + 0.4 * random.standard_normal(200)) * spread}
    of = pd.DataFrame([{"arm": "adapter", "ratio": "4x", "arrays": noise}])
    assert verdict(unexplained("adapter", "held_out", "4x", less="linear"), of, below=0.0)["verdict"] == "inconclusive"
    assert verdict(unexplained("adapter", "seen", "4x"), of, below=0.0)["verdict"] == "not run"


def arrays_by_count(leads, counts=(0.5, 5.0, 50.0)):
    """Per kind and decoder: 100 types of each count; the adapter leads by `leads[kind]`, in each range of counts."""
    arrays = {}
    for kind, of_kind in leads.items():
        linear = np.repeat([0.2 + 0.1 * k for k in range(len(counts))], 100)
        arrays |= {
            f"{kind}_count": np.repeat(counts, 100).astype(np.float32), f"{kind}_spread": np.full(100 * len(counts), 2.0),
            f"{kind}_linear": 2.0 * linear, f"{kind}_adapter": 2.0 * (linear - np.repeat(of_kind, 100)),
        }  # fmt: skip
    return arrays


def test_types_are_grouped_by_their_counts():
    arrays = arrays_by_count({"seen": (0.01, 0.1, 0.2), "held_out": (0.0, 0.0, 0.0)}, (0.5, 1.0, 99.0))
    groups = token_types.by_count(arrays | {"held_out_count": np.repeat([0.5, 1.0, 2000.0], 100)})
    values = {(g.band, g.kind, g.decoder): pytest.approx(g.unexplained.estimate) for g in groups}
    assert values == {
        ("below 1", "seen", "linear"): 0.2, ("below 1", "seen", "adapter"): 0.19,
        ("below 1", "held_out", "linear"): 0.2, ("below 1", "held_out", "adapter"): 0.2,
        ("1 to 10", "seen", "linear"): 0.3, ("1 to 10", "seen", "adapter"): 0.2,
        ("1 to 10", "held_out", "linear"): 0.3, ("1 to 10", "held_out", "adapter"): 0.3,
        ("10 to 100", "seen", "linear"): 0.4, ("10 to 100", "seen", "adapter"): 0.2,
        ("1,000 or more", "held_out", "linear"): 0.4, ("1,000 or more", "held_out", "adapter"): 0.4,
    }  # fmt: skip
    assert {g.unexplained.n for g in groups} == {100}
    none_held_out = {name: array for name, array in arrays.items() if name.startswith("seen")}
    assert {g.kind for g in token_types.by_count(none_held_out)} == {"seen"}


def test_what_is_remembered_is_measured_among_types_that_are_counted_equally_often():
    """Seen types are more frequent, and frequent types are rebuilt better: that alone is no remembering."""

    def of(seen, held_out, **more):
        arrays = arrays_by_count({"seen": seen, "held_out": held_out}) | more
        return verdict(
            lead_on_trained_types("4x"), pd.DataFrame([{"arm": "adapter", "ratio": "4x", "arrays": arrays}]), below=0.0
        )

    by_count, sure = (0.0, 0.1, 0.2), (0.1, 0.2, 0.3)
    few = {"seen_count": np.repeat([0.5, 5.0, 50.0], (10, 90, 200)).astype(np.float32)}
    few |= {"seen_linear": np.full(300, 1.0), "seen_adapter": 1.0 - 2 * np.repeat(by_count, (10, 90, 200))}
    assert of(by_count, by_count, **few)["measured"] == pytest.approx(0, abs=1e-9)
    assert (of(sure, by_count)["verdict"], of(by_count, sure)["verdict"]) == ("supported", "refuted")
    # By the spread of held-out types: 0.5 * 100, 5 * 100 and 50 * 100 times the same distance.
    few["seen_adapter"] = 1.0 - 2 * np.repeat((0.3, 0.1, 0.2), (10, 90, 200))
    only_rare = of(by_count, by_count, **few)
    assert only_rare["measured"] == pytest.approx(-0.3 * 0.5 / 55.5)
    no_common_range = of(by_count, by_count, held_out_count=np.full(300, 5000.0))
    assert (no_common_range["verdict"], no_common_range["measured"]) == ("not run", None)


def test_the_seeds_that_are_left_of_an_arm_do_not_decide():
    rows = [{"run": f"linear_{r}_s0", "arm": "linear", "ratio": r, "questions": asked([1, 0])} for r in ("4x", "8x")]
    table = pd.DataFrame(rows)
    table.attrs["missing"] = [{"run": "linear_4x_s1", "arm": "linear", "ratio": "4x", "failed": True}]
    with pytest.raises(NotRun, match=r"Needs all 2 seeds of linear; not finished: linear_4x_s1"):
        questions(table, "linear", "4x")
    assert len(questions(table, "linear", "8x")) == 2


def test_seeds_are_averaged_before_paragraphs_are_drawn():
    both = retained.over_seeds([asked([1, 0]), asked([0, 0])])
    assert [row["f1"] for row in both] == [0.5, 0.0]
    with pytest.raises(NotRun, match="other questions"):
        retained.over_seeds([asked([1, 0]), asked([1])])


def test_claims_have_distinct_names_and_fit_their_arms():
    every = claims("run", SuiteConfig(ratios=[2.0, 8.0]))
    assert len({claim.id for claim in every}) == len(every)
    assert {f"f1_{r}" for r in ("2x", "8x")} <= {claim.id for claim in every}
    few = claims("run", SuiteConfig(ratios=[8.0], arms=["linear", "phase2"], only={"phase2": [4.0]}))
    assert not {"nearest_8x", "phase2_8x"} & {claim.id for claim in few}
    assert len(of_ratio("8x", [])) == 8
    for verb, config in (("evaluate", EvaluateConfig(arm="linear")), ("phase1", Phase1Config())):
        assert [claim.id for claim in claims(verb, config)] == ["f1"]


def test_the_better_half_of_an_interval_around_zero_is_zero():
    from latentwire_adapter.claims import _size

    assert _size(Interval(-2, -3, 1, 5)) == Interval(2, 0, 3, 5)
    assert _size(Interval(-2, -3, -1, 5)) == Interval(2, 1, 3, 5)
    assert callable(columns)


def folders(place, good):
    """Run folders of the main job at one ratio, fabricated: `good` is a world in which every claim holds, else none does."""
    import json

    from safetensors.numpy import save_file

    draw = np.random.default_rng(3)
    error = draw.random(80)
    sure, half = 1 - 0.1 * (draw.random(80) < 0.2), 0.35 + 0.1 * error
    f1 = {
        "ids": sure, "raw": sure, "question_only": 0 * sure, "shuffled": 0 * sure, "adapter": 0.95 - 0.1 * error, "linear": half,
        "nearest": sure, "nearest_int4": sure, "fewer": half, "phase2": 0.97 - 0.02 * error,
        "adapter_paragraph": sure, "phase2_ppl": 0.97 - 0.02 * error,
    } if good else {
        "ids": half - 0.2, "raw": half, "question_only": half - 0.15, "shuffled": 0 * half, "adapter": 0.2 + 0.1 * error,
        "linear": half, "nearest": half - 0.1, "nearest_int4": half - 0.1, "fewer": half, "phase2": 0.1 + 0.1 * error,
        "adapter_paragraph": half - 0.1, "phase2_ppl": 0.1 + 0.1 * error,
    }  # fmt: skip
    rows = []
    for arm, scores in f1.items():
        folder = place / arm
        folder.mkdir(parents=True)
        asked_here = asked(scores, error=error, answer_error=error)
        (folder / "predictions.json").write_text(
            json.dumps({"arm": arm, "decode_seconds": 0.0, "questions": asked_here})
        )
        (folder / "results.json").write_text(
            json.dumps({"metrics": {"f1": 100 * float(np.mean(scores))}, "claims": []})
        )
        trained = {
            "adapter": Phase1Config(),
            "phase2": Phase2Config(),
            "phase2_ppl": Phase2Config(objective="prompt_ppl"),
        }
        config = trained.get(arm) or EvaluateConfig(arm=arm)
        if arm == "adapter":
            spread, gain = draw.random(300).astype(np.float32) + 1, -0.1 if good else 0.1
            save_file(
                {
                    f"{kind}_{name}": value
                    for kind in ("seen", "held_out")
                    for name, value in (
                        ("count", np.ones(300, np.float32)), ("spread", spread), ("adapter", (0.4 + (2 if kind == "seen" else 1) * gain) * spread), ("linear", 0.4 * spread),
                        ("cosine", np.full(300, 0.95 if good else 0.8, np.float32)),
                    )
                },
                folder / "arrays.safetensors",
            )  # fmt: skip
        ratio = None if arm in ("ids", "raw", "question_only", "shuffled") else "4x"
        rows.append({"ratio": ratio, "seed": 0, **columns(folder, config)})
    return rows


def test_every_claim_can_come_out_both_ways_from_what_folders_hold(tmp_path):

    every = claims("run", SuiteConfig(ratios=[4.0]))
    for good, expected in ((True, "supported"), (False, "refuted")):
        table = pd.DataFrame(folders(tmp_path / expected, good))
        judged = judge_all(every, table, [as_stored(claim) for claim in every])
        assert {claim["id"]: claim["verdict"] for claim in judged} == dict.fromkeys([c.id for c in every], expected)
    empty = judge_all(every, pd.DataFrame(), [as_stored(claim) for claim in every])
    assert {claim["verdict"] for claim in empty} == {"not run"}
    assert all(claim["measured"] is None for claim in empty)
