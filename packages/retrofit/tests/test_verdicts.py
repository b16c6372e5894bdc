"""What the verdicts rest on: tuned rates, fronts over weights, 1,000 updates, roles of matrices, the sampling of tokens."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_model, train_run
from test_claims import judged, planted, run as row_of_run
from test_cli import in_this_process

from retrofit.arms import get_arm
from retrofit.arms.base import StepState
from retrofit.blocks import find_blocks, weights_by_role
from retrofit.claims import (
    CLAIMS,
    FRONT_KAPPA,
    FRONT_PERPLEXITY,
    FRONTS,
    HEADLINE_TOKENS,
    claims,
    columns,
    front_points,
)
from retrofit.cli import main
from retrofit.config import START, CompareConfig, RunConfig
from retrofit.data import load_data, tuning_split
from retrofit.losses import NextTokenLoss
from retrofit.metrics.drift import ablation_rows
from retrofit.metrics.evaluation import ff_gram_row, fixed_ids
from retrofit.metrics.gradients import norms_by_role
from retrofit.metrics.spectra import activation_moments, ff_gram_of_windows
from retrofit.metrics.summaries import ORIGINAL_RIDGE
from retrofit.metrics.windows import (
    ff_gram_interval,
    log_differences,
    log_ff_gram,
    read_windows,
    windows_file,
    write_windows,
)
from retrofit.model import load_model
from retrofit.plan import plan
from retrofit.report import PENALTIES, ablation_table, comparison_answer, front_answer, gradient_table
from retrofit.train import clip_gradients
from retrofit.transports import glt_matrix
from studycore import execution
from studycore.claims import as_stored, judge_all
from studycore.configuration import to_dict, to_yaml
from studycore.errors import UserError
from studycore.language.pretrained import load_tokenizer
from studycore.metrics_log import read_rows
from studycore.testing.fabricated import every_verdict, judged_as


# ------------------------------------------------------------------------------------------------- roles of matrices
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "llama", "phi3", "mixtral"])
def test_geometry_ffn_leaves_embeddings_and_down_projections_alone(kind):
    model = tiny_model(kind)
    config = RunConfig(method="geometry_ffn", gram_weight=0.25)
    state = StepState(model, find_blocks(model), None, config, 3)
    before = {role: [w.values.detach().clone() for w in weights] for role, weights in weights_by_role(model).items()}
    biases = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 1}
    get_arm("geometry_ffn").transport(state)
    fused = kind in ("phi3", "mixtral")  # gate and up in one matrix
    for role, weights in weights_by_role(model).items():
        for weight, old in zip(weights, before[role], strict=True):
            if role in ("embeddings", "down"):
                assert torch.equal(weight.values, old), role
            elif fused and role in ("up", "gate"):
                assert not torch.equal(weight.values, old), role
            else:
                torch.testing.assert_close(weight.values, glt_matrix(old))
    assert {"embeddings", "down", "up", "attention"} <= set(before)
    assert all(torch.equal(p, biases[n]) for n, p in model.named_parameters() if p.ndim == 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_ablation_transports_one_role_at_a_time_and_puts_the_weights_back(small, kind):
    config = small(kind, method="none")
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    model, _ = load_model(config.model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    rows = list(ablation_rows(model, find_blocks(model), data, config))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    named = [row["matrices"] for row in rows]
    roles = ["up", "down", *(["gate"] if kind == "llama" else []), "attention", "embeddings"]
    assert named == [*roles, "all but embeddings and down", "every matrix"]
    assert len({row["transport_ppl_before"] for row in rows}) == 1
    # By hand: the down projections alone.
    for block in find_blocks(model):
        with torch.no_grad():
            block.down.weight_OI.copy_(glt_matrix(block.down.weight_OI))
    by_hand = NextTokenLoss(model.eval())(data.validation.first(2).ids_NT).exp().item()
    assert rows[1]["transport_ppl_after"] == pytest.approx(by_hand, rel=1e-4)
    kappas = {row["matrices"]: row["transport_kappa_after"] / row["transport_kappa_before"] for row in rows}
    assert {name for name, factor in kappas.items() if factor != 1} == {"up", named[-1], named[-2]}
    table = ablation_table(rows)
    assert [line[0] for line in table.rows] == named
    for line, row in zip(table.rows, rows, strict=True):
        before, after = row["transport_ppl_before"], row["transport_ppl_after"]
        assert line[1:4] == (before, after, pytest.approx(100 * (after / before - 1)))
    assert ablation_table([]) is None


def test_gradients_are_of_each_role_alone_and_before_clipping(small):
    model, _ = load_model(small().model)
    ids = torch.randint(0, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    NextTokenLoss(model)(ids).backward()
    by_role = weights_by_role(model)
    expected = {
        role: math.sqrt(sum(float(w.parameter.grad.square().sum()) for w in weights))
        for role, weights in by_role.items()
    }

    class Plain:
        def clip_grad_norm_(self, parameters, limit):
            return torch.nn.utils.clip_grad_norm_(parameters, limit)

    row = clip_gradients(Plain(), list(model.parameters()), 0.01)
    found = norms_by_role(by_role, row, 0.01)
    assert set(found) == {f"grad_norm_{role}" for role in ("up", "down", "attention", "embeddings")}
    for role, norm in expected.items():
        assert found[f"grad_norm_{role}"] == pytest.approx(norm, rel=1e-4)


def test_the_penaltys_gradient_stands_beside_the_cross_entropys_on_the_same_weights(small, tmp_path, capsys):
    train_run(small(method="gram", num_steps=3, eval_interval=3, gram_weight=1.0), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    for row in (row for row in rows if row["kind"] == "update"):
        assert row["penalty_grad_norm_up"] == pytest.approx(row["penalty_grad_norm"], rel=1e-5)
        assert not any(name.startswith("penalty_grad_norm_") for name in row if name != "penalty_grad_norm_up")
        assert 0 < row["grad_norm_up"] < row["grad_norm"]
    (line,) = gradient_table({"gram": [rows]}).rows
    assert line[:2] == ("gram", "up")
    updates = [row for row in rows if row["kind"] == "update"]
    own, other = (np.mean([row[f"{p}grad_norm_up"] for row in updates]) for p in ("penalty_", ""))
    assert line[2:] == (pytest.approx(own), pytest.approx(other), pytest.approx(own / other))
    assert "gradient on up: penalty's" in capsys.readouterr().out
    assert "## Gradients on the penalised weights" in (tmp_path / "run" / "report.md").read_text()
    assert gradient_table({"standard": [[{**row, "penalty_grad_norm_up": None} for row in []]]}) is None


# -------------------------------------------------------------------------------------------------------- the front
WEIGHTS = (1e-6, 1e-4, 1e-2)


def swept(effects, penalty="gram", seeds=3, noise=0.0):
    """Runs of a penalty at each weight, (log change of perplexity, of kappa) by weight, and of the control."""
    runs = [row_of_run("standard", seed, noise=noise) | {"weight": 0.01} for seed in range(seeds)]
    for weight, (ppl, kappa) in zip(WEIGHTS, effects, strict=True):
        runs += [
            row_of_run(penalty, seed, ppl=ppl + 1e-6 * seed, kappa=kappa + 1e-4 * seed) | {"weight": weight}
            for seed in range(seeds)
        ]
    return pd.DataFrame(runs)


def verdict(table, penalty="gram"):
    found = {c["id"]: c for c in judge_all(FRONTS, table, [as_stored(claim) for claim in FRONTS])}
    return found[f"{penalty}_front"]


@pytest.mark.parametrize("penalty", ["gram", "gram_scale_free"])
def test_a_penalty_helps_where_one_weight_lowers_kappa_at_no_cost(penalty):
    """Not at the smallest, which does nothing, nor at the largest, which costs: the middle one."""
    claim = verdict(swept([(0, -0.001), (0.0005, -0.2), (0.003, -0.3)], penalty), penalty)
    assert claim["verdict"] == "supported"
    assert claim["measured"] == pytest.approx(100 * math.expm1(-0.2 + 1e-4), abs=0.01)
    assert "at weight 0.0001" in claim["why"]


def test_a_penalty_does_not_help_where_every_fall_of_kappa_costs_perplexity():
    claim = verdict(swept([(0, -0.001), (0.003, -0.2), (0.006, -0.3)]))
    assert claim["verdict"] == "refuted"
    assert claim["measured"] == pytest.approx(-0.1, abs=0.02)
    # One at which all weights cost: without a penalty nothing changes, and that is not enough.
    claim = verdict(swept([(0.01, -0.3)] * 3))
    assert (claim["verdict"], claim["measured"]) == ("refuted", 0)
    assert "at no weight" in claim["why"]


@pytest.mark.parametrize("kappa", [-0.1, -0.12])
def test_a_front_is_not_judged_where_no_weight_could_move_kappa_far_enough(kappa):
    """Adam's steps are bounded: whatever the penalty's weight, a few updates leave kappa where it was."""
    table = swept([(0, -0.001), (0.003, kappa / 2), (0.006, kappa)])
    table["updates"] = 32
    claim = verdict(table)
    if kappa == -0.12:
        assert claim["verdict"] == "refuted"
        return
    most = 100 * math.expm1(kappa + 1e-4)
    assert (claim["verdict"], claim["measured"]) == ("not run", None)
    assert f"In 32 updates kappa changes by {most:+.3g} % at most (at weight 0.01)" in claim["why"]


def test_a_front_answers_with_what_is_free_and_what_is_bought():
    points = front_points(swept([(0, -0.001), (0.0005, -0.2), (0.003, -0.3)]), "gram")
    assert front_answer("gram", points, 48) == (
        "Beside continued training, 48 updates with gram change the up projections' median kappa by -18 % (weight 0.0001) "
        "where perplexity stays within 0.1 %, and by -26 % at most (weight 0.01), perplexity by +0.3 %."
    )
    assert "kappa by -18 % at most (weight 0.0001), and perplexity by +0.05 %." in front_answer("gram", points[:2], 48)
    assert "kappa by nothing where perplexity stays within 0.1 %, and by -26 %" in front_answer("gram", points[2:], 48)


def test_a_front_of_noise_or_of_few_weights_says_nothing():
    noisy = verdict(swept([(0.0008, -0.2), (0.0008, -0.2), (0.0008, -0.2)], noise=0.2))
    assert noisy["verdict"] == "inconclusive"
    table = swept([(0, -0.2)] * 3)
    few = verdict(table[table["weight"] != WEIGHTS[0]])
    assert few["verdict"] == "not run"
    assert "Needs 3 or more weights" in few["why"]
    assert "--config weights" in few["why"]
    assert verdict(table[table["seed"] == 0])["verdict"] == "not run"


def test_the_points_of_the_front_are_each_weights_own():
    points = front_points(swept([(0.001, -0.1), (0.002, -0.2), (0.003, -0.3)]), "gram")
    assert [p.weight for p in points] == list(WEIGHTS)
    for p, size in zip(points, (1, 2, 3), strict=True):
        assert p.perplexity.estimate == pytest.approx(100 * math.expm1(0.001 * size + 1e-6), rel=1e-3)
        assert p.kappa.estimate == pytest.approx(100 * math.expm1(-0.1 * size + 1e-4), rel=1e-3)
    wider = front_points(swept([(0.001, -0.1)] * 3), "gram", 0.99)[0].kappa
    assert wider.high - wider.low > points[0].kappa.high - points[0].kappa.low
    assert (FRONT_KAPPA, FRONT_PERPLEXITY) == (-10, 0.1)


def test_a_sweep_is_judged_by_its_fronts_alone():
    assert claims("compare", CompareConfig(arms=["standard", "gram"], weights=[1e-3])) == FRONTS
    assert claims("compare", CompareConfig()) == CLAIMS


# -------------------------------------------------------------------------------------------------- 1,000 updates
def test_the_expected_results_are_not_run_before_1000_updates_and_the_number_is_told():
    runs = [{**row, "updates": 48} for row in planted()]
    found = judged(runs)
    waiting = {name for name, claim in found.items() if claim["verdict"] == "not run"} - {"author_model"}
    assert waiting >= {
        "standard_perplexity", "gram_conditioning", "geometry_perplexity", "geometry_vs_standard",
        "geometry_vs_standard_conditioning", "gram_vs_standard",
    }  # fmt: skip
    change = 100 * math.expm1(-0.25)
    why = found["geometry_perplexity"]["why"]
    assert why.startswith(f"Not run at 1,000 updates; after 48 updates: {change:.1f} [")
    assert found["geometry_perplexity"]["measured"] is None
    assert found["gram_kappa"]["verdict"] == "supported"  # this study's own
    at_last = judged([{**row, "updates": 1000} for row in planted()])
    assert at_last["geometry_perplexity"]["verdict"] == "supported"
    # The start and the tuning runs, which make fewer updates or none, are not of the claim's arms.
    extra = [{**planted()[0], "run": "start", "arm": "none", "updates": 0}]
    assert (
        judged([{**row, "updates": 1000} for row in planted()] + extra)["geometry_perplexity"]["verdict"] == "supported"
    )


# ------------------------------------------------------------------------------------------------ the learning rate
def test_a_plan_tries_the_rates_first_and_all_arms_need_them():
    base = {"num_steps": 6, "warmup_steps": 2, "validation_blocks": 5}
    jobs = {j.name: j for j in plan(CompareConfig(base=base, arms=["standard", "gram"], lrs=[1e-5, 1e-4], seeds=2))}
    assert list(jobs)[:3] == [START, "tune_lr1e-5", "tune_lr1e-4"]
    for name, lr in (("tune_lr1e-5", 1e-5), ("tune_lr1e-4", 1e-4)):
        config = jobs[name].config
        assert (config.method, config.lr, config.validate_on, config.warmup_steps) == ("standard", lr, "tuning", 2)
        assert (config.eval_interval, config.validation_blocks, config.save_model) == (6, 5, False)
        assert jobs[name].needs == ()
    for name in ("standard_s0", "gram_s1"):
        assert jobs[name].needs == (START, "tune_lr1e-5", "tune_lr1e-4")
        assert jobs[name].config.tuned == ["../tune_lr1e-5", "../tune_lr1e-4"]
        assert jobs[name].config.validate_on == "validation"
    execution.check_plan(list(jobs.values()))
    shorter = {j.name: j.config for j in plan(CompareConfig(base=base, lrs=[1e-4], tuning_steps=4))}
    tuned = shorter["tune_lr1e-4"]
    assert (tuned.num_steps, tuned.eval_interval, shorter["standard_s0"].num_steps) == (4, 4, 6)
    with pytest.raises(ValueError, match=r"^tuning_steps: 4 is of the rates in lrs, which has none"):
        CompareConfig(tuning_steps=4)


def test_a_sweep_has_a_run_of_every_weight():
    config = CompareConfig(arms=["standard", "gram", "gram_scale_free"], weights=[1e-3, 0.01], seeds=2)
    jobs = {job.name: job for job in plan(config)}
    assert jobs["gram_w1e-3_s1"].config.gram_weight == 1e-3
    assert jobs["gram_scale_free_w0.01_s0"].config.gram_weight == 0.01
    assert {job.arm for job in jobs.values()} == {
        "", "standard", "gram_w1e-3", "gram_w0.01", "gram_scale_free_w1e-3", "gram_scale_free_w0.01",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lrs": [0.0]}, "lrs: \\[0.0\\] does not fit; give numbers above 0, each once"),
        ({"weights": [0.1, 0.1]}, "weights: .* each once"),
        ({"lrs": [0.1], "base": {"lr": 0.2}}, "lr: 0.2 is given, and lrs \\[0.1\\] are to be tried"),
        ({"weights": [0.1], "arms": ["gram"]}, "weights: .* judged beside standard"),
        ({"weights": [0.1], "arms": ["standard", "geometry"]}, "weights: .* gram and gram_scale_free"),
    ],
)
def test_mistakes_in_rates_and_weights_are_told(values, said):
    with pytest.raises(ValueError, match=said):
        CompareConfig(**values)


def test_tuning_text_is_neither_trained_on_nor_reported(small):
    both = [load_data(small(validate_on=on), load_tokenizer(small().model), 64, 64) for on in ("validation", "tuning")]
    read = [json.loads(line)["text"] for line in Path(small().dataset).read_text().splitlines()]
    rest, held = tuning_split(read)
    assert (sorted([*rest, *held]), bool(held)) == (sorted(read), True)
    assert len(held) < len(read) / 4
    report, tune = both
    assert tune.about["training_documents"] == len(rest) == report.about["training_documents"] - len(held)
    assert tune.about["validation_documents"] == len(held)
    assert tune.validation.name == "tuning"
    assert tune.fingerprints["tuning"] != report.fingerprints["validation"]
    with pytest.raises(UserError, match="validate_on: tuning takes a tenth"):
        tuning_split(read[:1])


def test_the_rate_rises_over_the_warm_up_and_resumes_there(small, tmp_path, monkeypatch):
    seen = []
    original = torch.optim.AdamW.step

    def step(self, *arguments, **more):
        seen.append(self.param_groups[0]["lr"])
        return original(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train_run(small(num_steps=6, warmup_steps=4, lr=0.1), tmp_path / "run")
    assert seen == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


@pytest.fixture
def compared(small, tmp_path, monkeypatch):
    """The folder of a small comparison with tuned rates, and of a small sweep; arguments of the command."""
    monkeypatch.setattr(execution, "run_in_processes", in_this_process)

    def compare(name, **values):
        base = to_dict(small(num_steps=4, eval_interval=2, glt_interval=2, warmup_steps=2))
        base = {k: v for k, v in base.items() if k not in ("method", "lr")}
        file = tmp_path / f"{name}.yaml"
        file.write_text(to_yaml({"base": base, **values}))
        folder = tmp_path / name
        flags = ["--config", str(file), "--device", "cpu", "--threads", "1", "--output-dir", str(folder)]
        assert main(["compare", *flags]) == 0
        return folder

    return compare


def test_a_comparison_takes_the_best_rate_and_says_so(compared):
    folder = compared("tuned", lrs=[1e-9, 1e-3], arms=["standard", "geometry_ffn"], seeds=2, save_models="none")
    metrics = {
        name: json.loads((folder / name / "results.json").read_text())["metrics"]
        for name in ("tune_lr1e-9", "tune_lr1e-3", "standard_s0", "geometry_ffn_s1")
    }
    losses = {name: metrics[name]["val_loss"] for name in ("tune_lr1e-9", "tune_lr1e-3")}
    best = metrics[min(losses, key=losses.get)]["lr"]
    assert best == 1e-3  # the tiny model learns
    assert metrics["standard_s0"]["lr"] == metrics["geometry_ffn_s1"]["lr"] == best
    assert metrics["standard_s0"]["validate_on"] == "validation"
    report = (folder / "report.md").read_text()
    assert report.index("trajectories.svg") < report.index("## ")  # stands first
    tried = report.split("## Learning rates tried")[1].split("\n## ")[0]
    assert tried.count("taken") == 1
    assert "at the edge" in tried
    rows = [line for line in report.split("## Arms")[1].split("\n## ")[0].splitlines() if line.startswith("| ")]
    column = [cell.strip() for cell in rows[0].split("|")].index("lr")
    assert {row.split("|")[column].strip() for row in rows if row.startswith(("| standard", "| geometry"))} == {"0.001"}
    assert "## Which matrix does the harm" in report
    assert "lr 0.001, chosen for continued training on tuning text" in report
    results = json.loads((folder / "results.json").read_text())
    assert set(results["metrics"]["arms"]) == {"standard", "geometry_ffn"}
    claim = {c["id"]: c for c in results["claims"]}["geometry_ffn_ff_gram"]
    assert "Not run on 65,536 tokens; on 128:" in claim["why"]


def test_a_rate_is_taken_of_tuning_runs_alone(small, tmp_path):
    train_run(small(num_steps=1), tmp_path / "plain")
    with pytest.raises(UserError, match=r"tuned: .* is no finished run with validate_on tuning"):
        train_run(small(num_steps=1, tuned=["../plain"]), tmp_path / "run")
    with pytest.raises(UserError, match=r"tuned: '\.\./nowhere' is no run folder"):
        train_run(small(num_steps=1, tuned=["../nowhere"]), tmp_path / "other")


def test_a_sweep_reports_its_front(compared):
    weights = [1e-6, 1e-4, 1e-2]
    folder = compared("sweep", arms=["standard", "gram"], weights=weights, seeds=2, save_models="none")
    report = (folder / "report.md").read_text()
    front = report.split("## The front: weights of the penalty")[1].split("\n## ")[0]
    assert front.count("| gram |") == 3
    assert (folder / "figures" / "front.svg").is_file()
    results = json.loads((folder / "results.json").read_text())
    assert {claim["id"] for claim in results["claims"]} == {"gram_front", "gram_scale_free_front"}
    assert {c["id"]: c["verdict"] for c in results["claims"]}["gram_scale_free_front"] == "not run"
    assert set(results["metrics"]["arms"]) == {"standard", "gram_w1e-6", "gram_w1e-4", "gram_w0.01"}
    ratios = report.split("## Gradients on the penalised weights")[1].split("\n## ")[0]
    assert ratios.count("| up |") == 3


# ------------------------------------------------------------------------------------------------- sampling of tokens
def test_the_headline_is_the_geometric_mean_over_layers_of_the_grams_condition(small):
    config = small()
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    model, _ = load_model(config.model)
    blocks, ids_NB = find_blocks(model), fixed_ids(data, config, 128)
    row, extremes = ff_gram_row(model, blocks, data, config)
    by_hand = []
    for m in activation_moments(model, blocks, ids_NB):
        gram = m.gram_FF / m.tokens + ORIGINAL_RIDGE * torch.eye(len(m.gram_FF), dtype=torch.float64)
        by_hand.append(float(torch.linalg.cond(gram)))
    assert row["ff_gram_layers"] == pytest.approx(by_hand, rel=1e-6)
    assert row["ff_gram"] == pytest.approx(math.exp(np.mean(np.log(by_hand))), rel=1e-6)
    assert math.exp(log_ff_gram(extremes)[0]) == pytest.approx(row["ff_gram"], rel=1e-6)
    assert row["ff_gram_tokens"] == 128
    assert extremes.shape == (2, 8, 2)
    assert row["ff_gram_low"] < row["ff_gram"] < row["ff_gram_high"]
    assert ff_gram_row(model, blocks, data, small(headline_tokens=32)) == ({}, None)


def test_the_windows_of_a_resample_move_the_figure_to_first_order():
    """Beside the exact eigenvalues of the resampled windows."""
    model = tiny_model("gpt_neox")
    ids = torch.randint(0, 64, (64, 16), generator=torch.Generator().manual_seed(2))
    blocks = find_blocks(model)
    _, extremes = ff_gram_of_windows(model, blocks, ids)
    counts = np.ones((1, 64))
    counts[0, :8], counts[0, 8:16] = 2, 0
    again = torch.cat([ids[:8], ids[:8], ids[16:]])
    exact, _ = ff_gram_of_windows(model, blocks, again)
    all_ids, _ = ff_gram_of_windows(model, blocks, ids)
    moved = [float(np.mean(np.log(values))) for values in (exact, all_ids)]
    first_order = log_ff_gram(extremes.numpy(), counts)[0] - log_ff_gram(extremes.numpy())[0]
    assert first_order == pytest.approx(moved[0] - moved[1], abs=0.35 * abs(moved[0] - moved[1]) + 0.05)


def test_the_interval_covers_the_sampling_of_tokens():
    """Windows of independent draws: 95 % of intervals hold the truth (100 trials: at least 88)."""
    draw, covered = np.random.default_rng(5), 0
    truth = (4.0 + ORIGINAL_RIDGE) / (0.5 + ORIGINAL_RIDGE)
    for _ in range(100):
        extremes = np.stack([draw.gamma(8, 4.0 / 8, (1, 200)), draw.gamma(8, 0.5 / 8, (1, 200))], axis=2)
        low, high = ff_gram_interval(extremes)
        covered += low < truth < high
    assert covered >= 88


def test_windows_are_read_as_written_and_paired(tmp_path):
    draw = np.random.default_rng(3)
    values = draw.gamma(2, 1, (3, 5, 2))
    write_windows(tmp_path, 7, values)
    assert np.array_equal(read_windows(tmp_path, 7), values)
    assert read_windows(tmp_path, 8) is None
    each, drawn = log_differences([(values * [2, 1], values)])
    # The difference is nearly free of the tokens, which are the same on both sides.
    assert each == [pytest.approx(math.log(2), abs=1e-4)]
    assert np.std(drawn) < 1e-4
    with pytest.raises(AssertionError):
        log_differences([(values, values[:, :4])])


def test_conditioning_beside_the_control_is_judged_with_the_tokens_error():
    draw = np.random.default_rng(4)
    base = draw.gamma(2, 1, (2, 40, 2))

    def runs(factor, noise, tokens=HEADLINE_TOKENS):
        made = []
        for seed in range(3):
            for arm, times in (("standard", 1.0), ("gram", factor)):
                jitter = draw.normal(0, noise, base.shape)
                windows = base * np.exp(jitter) * [times, 1]
                made.append(row_of_run(arm, seed) | {"windows": windows, "ff_gram_tokens": tokens})
        return made

    supported = judged(runs(0.5, 0.001))["gram_ff_gram"]
    assert supported["verdict"] == "supported"
    assert supported["measured"] == pytest.approx(-50, abs=0.5)
    assert judged(runs(2.0, 0.001))["gram_ff_gram"]["verdict"] == "refuted"
    assert judged(runs(1.0, 0.5))["gram_ff_gram"]["verdict"] == "inconclusive"
    few = judged(runs(0.5, 0.001, tokens=4096))["gram_ff_gram"]
    assert few["verdict"] == "not run"
    assert "Not run on 65,536 tokens; on 4,096: -50" in few["why"]
    without = [{name: value for name, value in row.items() if name != "windows"} for row in planted()]
    assert judged(without)["gram_ff_gram"]["verdict"] == "not run"


def test_a_runs_columns_hold_its_windows_and_its_start_is_shared(small, tmp_path):
    train_run(small(method="none"), tmp_path / "start")
    train_run(small(num_steps=2), tmp_path / "run", needs={"start": tmp_path / "start"})
    assert windows_file(tmp_path / "run", 0).read_bytes() == windows_file(tmp_path / "start", 0).read_bytes()
    found = columns(tmp_path / "run", small(num_steps=2))
    assert found["windows"].shape == (2, 8, 2)
    assert (found["updates"], found["ff_gram_tokens"]) == (2, 128)
    last = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert math.exp(log_ff_gram(found["windows"])[0]) == pytest.approx(last["ff_gram"])
    assert columns(tmp_path / "run", small(num_steps=2, validate_on="tuning"))["arm"] == "tuning"


def test_the_answer_of_a_comparison_is_worded_by_its_verdicts():
    ids = ("gram_kappa", "gram_vs_standard", "geometry_vs_standard", "geometry_ffn_vs_standard", "geometry_ffn_ff_gram")
    texts = [comparison_answer(claims) for claims in every_verdict(*ids)]
    assert all(len(text.split()) <= 45 and "None" not in text and "{" not in text for text in texts)
    assert texts[0] == (
        "The Gram penalty improves conditioning: the weights' condition number ends 2.5 % lower; it lowers perplexity too. "
        "Full geometry helps: perplexity ends 2.5 % below continued training's."
    )
    harm = [
        judged_as("gram_kappa", "refuted"), judged_as("gram_vs_standard", "refuted"), judged_as("geometry_vs_standard", "refuted", 9719.0),
    ]  # fmt: skip
    assert comparison_answer(harm) == (
        "The Gram penalty does not improve conditioning: the weights' condition number ends no lower; perplexity ends 2.5 % "
        "higher. Full geometry does harm: perplexity ends 9,719 % above continued training's."
    )
    short = [
        judged_as("gram_kappa", "not run"),
        judged_as("geometry_vs_standard", "not run"),
        judged_as("geometry_ffn_vs_standard", "refuted"),
    ]
    assert "Geometry without embeddings and down projections does harm" in comparison_answer(short)
    better = [*short, judged_as("geometry_ffn_ff_gram", "supported")]
    assert comparison_answer(better).endswith("; activations are better conditioned with it.")
    fronts = [judged_as("gram_front", "supported"), judged_as("gram_scale_free_front", "refuted")]
    assert comparison_answer(fronts) == (
        "The Gram penalty helps: the weights' condition number falls by a tenth at no cost in perplexity; the scale-free "
        "penalty does not help: at no weight the condition number falls by a tenth without a cost in perplexity."
    )
    assert all(len(comparison_answer(claims).split()) <= 45 for claims in every_verdict(*PENALTIES))
