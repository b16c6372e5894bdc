"""Which value feeds which column, claim and figure, and when: every one has a number of its own here."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import judged, tiny_model, train_run
from test_claims import ALONE, planted, run as row_of_run

import retrofit.figures as figures
from retrofit.arms import get_arm
from retrofit.arms.base import StepState
from retrofit.blocks import find_blocks
from retrofit.claims import columns
from retrofit.config import START, CompareConfig, RunConfig, arm_names
from retrofit.data import Blocks, Data, load_data
from retrofit.legacy.original_json import original_values
from retrofit.losses import NextTokenLoss, gram_penalty_gradient, penalty_of_blocks, scale_free_penalty_gradient
from retrofit.metrics.documents import write_documents
from retrofit.metrics.drift import drift, transport_row
from retrofit.metrics.evaluation import activation_ids, conditioning_row, perplexity_row
from retrofit.metrics.final import results
from retrofit.metrics.matrices import measure_activations
from retrofit.metrics.matrix_rows import MatrixRow
from retrofit.metrics.perplexity import Evaluation, evaluate, perplexity_of
from retrofit.metrics.spectra import (
    activation_eigenvalues,
    activation_kappa,
    activation_moments,
    ff_gram_original,
    ff_gram_original_of_layer,
    up_kappas,
)
from retrofit.metrics.summaries import by_layer, mean_rows, update_means
from retrofit.model import load_model
from retrofit.plan import plan, sweep_of_seeds
from retrofit.report import (
    ablation_table,
    arm_metrics,
    comparison_tables,
    figures_in_words,
    layer_table,
    report_run,
    transport_table,
)
from retrofit.train import console_line
from retrofit.transports import glt_ffn, glt_fold, gradient_less_transport
from studycore.language.pretrained import load_tokenizer
from studycore.metrics_log import read_rows

# -------------------------------------------------------------------------------------------------------------- claims
FEEDS = {  # claim -> (what it is of, treated, control; "start": the arm's own step 0)
    "standard_conditioning": ("cond", "standard", "start"), "gram_conditioning": ("cond", "gram", "start"),
    "geometry_conditioning": ("cond", "geometry", "start"), "standard_perplexity": ("ppl", "standard", "start"),
    "gram_perplexity": ("ppl", "gram", "start"), "geometry_perplexity": ("ppl", "geometry", "start"),
    "gram_vs_standard": ("ppl", "gram", "standard"), "geometry_vs_standard": ("ppl", "geometry", "standard"),
    "gram_scale_free_vs_standard": ("ppl", "gram_scale_free", "standard"),
    "glt_ffn_vs_standard": ("ppl", "glt_ffn", "standard"), "glt_fold_vs_standard": ("ppl", "glt_fold", "standard"),
    "geometry_vs_norm_matched": ("ppl", "geometry", "norm_matched"),
    "geometry_vs_standard_conditioning": ("cond", "geometry", "standard"),
    "gram_vs_norm_matched_conditioning": ("cond", "gram", "norm_matched"), "gram_kappa": ("kappa", "gram", "standard"),
    "gram_scale_free_kappa": ("kappa", "gram_scale_free", "standard"), "glt_fold_kappa": ("kappa", "glt_fold", "standard"),
    "geometry_ffn_vs_standard": ("ppl", "geometry_ffn", "standard"), "gram_ff_gram": ("cond", "gram", "standard"),
    "geometry_ff_gram": ("cond", "geometry", "standard"), "geometry_ffn_ff_gram": ("cond", "geometry_ffn", "standard"),
    "glt_fold_function": ("move", "glt_fold", None), "glt_perm_null": ("ppl", "glt_perm", "standard"),
}  # fmt: skip
ARMS = [name for name in arm_names() if name != "none"]


def test_every_claim_reads_its_own_arms_and_quantity():
    """Each arm has numbers of its own, so that a claim's figure says which two it was made from."""
    logs = {
        what: {arm: -0.02 * (j + 1) * (len(ARMS) - i) for i, arm in enumerate(ARMS)}
        for j, what in enumerate(("ppl", "cond", "kappa"))
    }
    moves = {arm: 0.001 * (i + 1) for i, arm in enumerate(ARMS)}
    runs = [
        row_of_run(arm, seed, ppl=logs["ppl"][arm], cond=logs["cond"][arm], kappa=logs["kappa"][arm], move=moves[arm])
        for arm in ARMS
        for seed in range(3)
    ]
    found = judged(runs)
    assert set(found) == set(FEEDS) | ALONE
    for name, (what, treated, control) in FEEDS.items():
        if what == "move":
            expected = moves[treated]
        else:
            expected = 100 * math.expm1(logs[what][treated] - (0 if control == "start" else logs[what][control]))
        if name == "glt_perm_null":
            expected = abs(expected)
        assert found[name]["measured"] == pytest.approx(expected, rel=1e-4 if "ff_gram" in name else 1e-6), name


def test_a_difference_in_both_directions_has_a_size():
    """+10 % and -10 % in two seeds are no null result."""
    runs = [row_of_run("standard", s) for s in range(2)]
    runs += [row_of_run("glt_perm", s, ppl=math.log(1 + change)) for s, change in enumerate((0.1, -0.1))]
    assert judged(runs)["glt_perm_null"]["measured"] == pytest.approx(10)


def test_a_claim_without_one_of_its_arms_is_not_run_and_the_others_stay():
    for arm in ARMS:
        found = judged([row for row in planted() if row["arm"] != arm])
        missing = {name for name, claim in found.items() if claim["verdict"] == "not run"} - ALONE
        assert missing == {name for name, (_, treated, control) in FEEDS.items() if arm in (treated, control)}


def evaluation(step, **values):
    names = ("val_ppl", "val_loss", "train_ppl", "train_loss", "trajectory_ppl", "trajectory_loss")
    defaults = {name: 10 * (i + 1) + 0.1 * step for i, name in enumerate(names)}
    return {"kind": "evaluation", "step": step, **defaults, **values}


def transport(step, before, after, kl=0.5, kappa=(4.0, 2.0)):
    kappas = dict(zip(("transport_kappa_before", "transport_kappa_after"), kappa, strict=True))
    return {
        "kind": "transport", "step": step, "transport_ppl_before": before, "transport_ppl_after": after,
        "transport_kl": kl, **kappas,
    }  # fmt: skip


def test_the_columns_of_a_run_are_its_first_and_last_evaluation_and_its_worst_transport(tmp_path):
    history = [
        evaluation(0, up_kappa_median=9.0, ff_gram_original=900.0), transport(2, 100.0, 100.1), transport(4, 100.0, 97.0),
        transport(6, 100.0, 100.2), evaluation(4, up_kappa_median=8.0, ff_gram_original=800.0),
        {"kind": "update", "step": 5, "grad_norm": 3.0, "clipped": True},
        {"kind": "update", "step": 6, "grad_norm": 1.0, "clipped": False, "penalty": 7.0, "penalty_grad_norm": 5.0},
        evaluation(8, up_kappa_median=7.0, ff_gram_original=700.0),
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    for step, nll in ((0, [3.0, 0.0, 5.0]), (8, [2.0, 0.0, 4.0])):
        write_documents(tmp_path, step, nll, [6, 0, 7])
    found = columns(tmp_path, RunConfig(method="glt_fold"))
    first, last = found.pop("initial_documents"), found.pop("documents")
    assert found == {
        "arm": "glt_fold", "updates": 8, "weight": 0.01, "val_ppl": 10.8, "initial_val_ppl": 10.0, "val_loss": 20.8, "initial_val_loss": 20.0,
        "up_kappa_median": 7.0, "initial_up_kappa_median": 9.0, "ff_gram_original": 700.0,
        "initial_ff_gram_original": 900.0, "clip_rate": 0.5, "mean_grad_norm": 2.0, "mean_penalty": 7.0,
        "mean_penalty_grad_norm": 5.0, "largest_transport_move": pytest.approx(3.0),
    }  # fmt: skip
    # Documents of which no token was evaluated are left out, and the others keep their numbers.
    assert first.tolist() == [[0, 3, 6], [2, 5, 7]]
    assert last.tolist() == [[0, 2, 6], [2, 4, 7]]


# --------------------------------------------------------------------------------------------------------- evaluations
def test_every_perplexity_is_of_its_own_blocks(small):
    config = small(trajectory_blocks=3, validation_blocks=5)
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    losses = {
        data.train.first(3).name: 1.0, data.validation.first(3).name: 2.0, data.validation.first(5).name: 3.0,
    }  # fmt: skip
    asked = []

    def evaluate(blocks):
        asked.append(blocks.name)
        nll_D = torch.full((2,), losses[blocks.name], dtype=torch.float64) * 4
        return Evaluation(blocks.name, nll_D, torch.full((2,), 4.0))

    row, whole = perplexity_row(config, data, evaluate, end=True, updates=0)
    assert (row["train_loss"], row["trajectory_loss"], row["val_loss"]) == (1, 2, 3)
    for name in ("train", "trajectory", "val"):
        assert row[f"{name}_ppl"] == pytest.approx(math.exp(row[f"{name}_loss"]))
    assert (row["val_tokens"], whole.name) == (8, data.validation.first(5).name)
    row, whole = perplexity_row(config, data, evaluate, end=False, updates=4)
    assert (whole, "val_ppl" in row) == (None, False)
    asked.clear()
    same = small(trajectory_blocks=3, validation_blocks=3)
    row, whole = perplexity_row(same, data, evaluate, end=True, updates=0)
    assert len(asked) == 2  # what is the same set is evaluated once
    assert row["val_loss"] == row["trajectory_loss"] == 2


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
def test_every_conditioning_of_an_evaluation_is_of_its_own_matrices_and_features(small, kind):
    config = small(kind)
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    model, _ = load_model(config.model)
    blocks, ids_NB = find_blocks(model), activation_ids(data, config)
    row = conditioning_row(model, blocks, data, config, end=True)
    for part in ("up", "down"):
        weights = [getattr(block, part).weight_OI.detach().double() for block in blocks]
        assert row[f"{part}_kappa"] == pytest.approx([float(torch.linalg.cond(w)) for w in weights])
        for w, omega in zip(weights, row[f"{part}_omega"], strict=True):
            e_k = torch.linalg.svdvals(w).square()
            assert omega == pytest.approx(float(e_k.mean() / e_k.log().mean().exp()))
    assert row["up_kappa"] != row["down_kappa"] != row["up_omega"]
    moments = activation_moments(model, blocks, ids_NB)
    for key, centred in (("act_kappa_centred", True), ("act_kappa_uncentred", False)):
        assert row[key] == pytest.approx([activation_kappa(m, centred) for m in moments])
        assert row[f"{key}_median"] == pytest.approx(np.median(row[key]))
    assert row["act_kappa_centred"] != row["act_kappa_uncentred"]
    narrow = activation_moments(model, blocks, ids_NB, dtype=torch.float32)
    assert row["ff_gram_original_layers"] == [ff_gram_original_of_layer(m) for m in narrow]
    assert row["ff_gram_original"] == pytest.approx(ff_gram_original(narrow))
    assert row["activation_tokens"] == 64
    between = conditioning_row(model, blocks, data, config, end=False)
    assert {"ff_gram_original", "up_kappa", "down_omega"} <= set(between)
    assert not any(name.startswith("act_kappa") for name in between)
    few = conditioning_row(model, blocks, data, small(kind, activation_tokens=32), end=True)
    assert "ff_gram_original" not in few


def test_one_infinite_layer_leaves_no_mean_of_the_originals_conditioning(small, monkeypatch):
    config = small("gpt_neox")
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    model, _ = load_model(config.model)
    values = iter([math.inf, 7.0])
    monkeypatch.setattr("retrofit.metrics.evaluation.ff_gram_original_of_layer", lambda moments: next(values))
    row = conditioning_row(model, find_blocks(model), data, config, end=False)
    assert row["ff_gram_original_layers"] == [None, 7.0]
    assert row["ff_gram_original_infinite"] == 1
    assert "ff_gram_original" not in row


def test_the_rows_of_measure_are_the_same_values_under_their_names():
    model = tiny_model("gpt2")
    ids = torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(1))
    blocks = find_blocks(model)
    moments = activation_moments(model, blocks, ids)
    for row, block, m in zip(measure_activations(model, ids), blocks, moments, strict=True):
        assert (row.name, row.width, row.tokens) == (block.name, 64, 128)
        assert row.act_kappa_centred == pytest.approx(activation_kappa(m, True))
        assert row.act_kappa_uncentred == pytest.approx(activation_kappa(m, False))
        assert row.act_kappa_centred != pytest.approx(row.act_kappa_uncentred, rel=0.01)
        e_F = activation_eigenvalues(m, centred=True)
        assert row.act_kappa_without_largest == pytest.approx(float(e_F[-4] / e_F[0]))
        assert row.ff_gram_original == pytest.approx(ff_gram_original_of_layer(m), rel=1e-3)


def test_activations_are_of_whole_validation_blocks(small):
    """The last window is filled up with tokens that stand in no document."""
    config = small(activation_tokens=33)
    ids_NT = torch.arange(5 * 17).view(5, 17)
    document_NT = torch.zeros(5, 16, dtype=torch.long)
    document_NT[1, -1] = -1
    data = Data(None, Blocks("v", ids_NT, document_NT, 1), {}, {})
    assert torch.equal(activation_ids(data, config), ids_NT[[0, 2, 3], :-1])


# ---------------------------------------------------------------------------------------------------------- transports
def test_the_kl_divergence_is_from_before_to_after_over_tokens_that_count():
    """By hand, with a change that is not small, and a last window of which half is filled up."""
    model, random = tiny_model("llama").eval(), torch.Generator().manual_seed(3)
    ids_NT = torch.randint(1, 64, (3, 9), generator=random)
    document_NT = torch.zeros(3, 8, dtype=torch.long)
    document_NT[2, 3:] = -1

    def change():
        with torch.no_grad():
            model.lm_head.weight.mul_(torch.linspace(1, 40, 64)[:, None])

    def log_probabilities():
        with torch.no_grad():
            return model(ids_NT[:, :-1]).logits.double().log_softmax(-1)

    before = log_probabilities()
    found = drift(model, Blocks("x", ids_NT, document_NT, 1), 2, change)
    after = log_probabilities()
    counted = document_NT >= 0
    kl = (before.exp() * (before - after)).sum(-1)
    assert found.kl == pytest.approx(float(kl[counted].mean()), rel=1e-4)
    other_way = (after.exp() * (after - before)).sum(-1)
    assert abs(float(other_way[counted].mean()) / found.kl - 1) > 0.05
    assert abs(float(kl.mean()) / found.kl - 1) > 1e-3
    for log_p, ppl in ((before, found.ppl_before), (after, found.ppl_after)):
        nll = -log_p.gather(-1, ids_NT[:, 1:, None])[..., 0]
        assert ppl == pytest.approx(math.exp(float(nll[counted].mean())), rel=1e-5)


def test_a_transports_row_holds_before_and_after(small):
    config = small(transport_blocks=2, batch_size=4)
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    model, _ = load_model(config.model)
    state = StepState(model, find_blocks(model), None, config, 3)
    first, seen = up_kappas(state.blocks), []

    def change(state):
        seen.append(state.step)
        glt_ffn(state.blocks)

    row = transport_row(change, state, data)
    assert seen == [3]
    assert row["transport_kappa_before"] == pytest.approx(np.median(first))
    assert row["transport_kappa_after"] == pytest.approx(np.median(up_kappas(state.blocks)))
    assert row["transport_kappa_after"] != row["transport_kappa_before"]
    again = drift(model, data.validation.first(2), 4, lambda: None)
    assert row["transport_ppl_after"] == pytest.approx(again.ppl_before)
    assert row["transport_ppl_before"] != pytest.approx(row["transport_ppl_after"], rel=1e-6)


def test_a_transport_to_an_infinite_perplexity_is_left_out_of_its_row_and_told(small, tmp_path):
    """The loss itself is still finite: thousands of nats."""
    config = small(transport_blocks=2, batch_size=4)
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    model, _ = load_model(config.model)

    def spoil(state):
        with torch.no_grad():
            state.model.lm_head.weight.mul_(1e5)

    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    row = transport_row(spoil, StepState(model, find_blocks(model), None, config, 3), data)
    assert "transport_ppl_before" in row and "transport_ppl_after" not in row
    assert math.isfinite(evaluate(model, data.validation, 4).loss) and perplexity_of(1e4) == math.inf
    assert perplexity_of(700.5) == math.exp(700.5)
    row["step"] = 3
    table = transport_table({"geometry": [row, transport(6, 100.0, 97.0)]})
    assert table.rows[0][2:5] == ("infinite", pytest.approx(-3), "infinite")
    (line,) = ablation_table([{**row, "kind": "ablation", "matrices": "up"}]).rows
    assert line[:4] == ("up", row["transport_ppl_before"], "infinite", "infinite")
    history = [evaluation(0), {**row, "kind": "transport"}, transport(6, 100.0, 97.0), evaluation(8)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    for step in (0, 8):
        write_documents(tmp_path, step, [1.0], [2])
    assert columns(tmp_path, RunConfig(method="glt_fold"))["largest_transport_move"] == math.inf


# ---------------------------------------------------------------------------------------------------------------- arms
def state_of(kind="gpt_neox", step=3, seed=0, optimized=False, **more):
    """A step's state; with an optimizer that has made an update at rate 0, so that there are moments."""
    model = tiny_model(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0) if optimized else None
    if optimizer is not None:
        ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(2))
        NextTokenLoss(model.eval())(ids).backward()
        optimizer.step()
    config = RunConfig(method="standard", gram_weight=0.25, seed=seed)
    return StepState(model, find_blocks(model), optimizer, config, step, **more)


PENALTIES = {
    "gram": gram_penalty_gradient,
    "geometry": gram_penalty_gradient,
    "geometry_ffn": gram_penalty_gradient,
    "gram_scale_free": scale_free_penalty_gradient,
}
TRANSPORTS = {
    "geometry_ffn": lambda state: gradient_less_transport(state.model, ["up", "gate", "attention", "other"]),
    "geometry": lambda state: gradient_less_transport(state.model), "glt_ffn": lambda state: glt_ffn(state.blocks),
    "glt_fold": lambda state: glt_fold(state.blocks, state.optimizer),
}  # fmt: skip


@pytest.mark.parametrize("name", arm_names())
def test_every_arm_has_the_penalty_and_the_transport_of_the_readmes_table(name):
    arm, state, other = get_arm(name), state_of(optimized=True), state_of(optimized=True)
    penalty = arm.penalty(state)
    assert (penalty is not None) == (name in PENALTIES)
    if penalty is not None:
        value, parts = penalty_of_blocks(other.blocks, 0.25, PENALTIES[name])
        assert float(penalty[0]) == pytest.approx(float(value))
        for (_, one), (_, two) in zip(penalty[1], parts, strict=True):
            torch.testing.assert_close(one, two)
    assert arm.transports == (name in TRANSPORTS or name == "glt_perm")
    arm.transport(state)
    TRANSPORTS.get(name, lambda state: None)(other)
    weights = [dict(s.model.named_parameters()) for s in (state, other)]
    for key, value in weights[0].items():
        same = name != "glt_perm" or ".mlp." not in key or "4h_to_h.bias" in key
        assert torch.equal(value, weights[1][key]) == same, key
        # The optimizer's moments go along, or stay as they are.
        moments = [s.optimizer.state[w[key]]["exp_avg"] for s, w in zip((state, other), weights, strict=True)]
        assert torch.equal(*moments) == same, key


def test_a_permutation_is_another_at_every_step_layer_and_seed():
    def orders(**changes):
        """Where each block's hidden units came from."""
        state = state_of(**changes)
        for block in state.blocks:
            block.up.weight_OI.data[:, 0] = torch.arange(64.0)
        get_arm("glt_perm").transport(state)
        return [tuple(block.up.weight_OI[:, 0].long().tolist()) for block in state.blocks]

    made = [*orders(), *orders(step=4), *orders(seed=1)]
    assert len(set(made)) == 6
    assert all(sorted(order) == list(range(64)) for order in made)
    assert orders() == made[:2]


def test_norms_follow_the_reference_of_their_own_layer_and_step():
    state = state_of(reference={2: [9.0, 9.0], 3: [0.5, 2.5], 4: [9.0, 9.0]})
    directions = [block.up.weight_OI / block.up.weight_OI.norm() for block in state.blocks]
    get_arm("norm_matched").after_update(state)
    for block, norm, direction in zip(state.blocks, (0.5, 2.5), directions, strict=True):
        torch.testing.assert_close(block.up.weight_OI, norm * direction)


def test_the_loss_is_of_the_next_token():
    model = tiny_model("llama").eval()
    ids = torch.randint(0, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    logits = model(ids).logits.log_softmax(-1)
    by_hand = -sum(logits[n, t, ids[n, t + 1]].item() for n in range(3) for t in range(8)) / 24
    assert NextTokenLoss(model)(ids).item() == pytest.approx(by_hand, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ the loop
@pytest.fixture(scope="module")
def trained(tmp_path_factory, made, text):
    """A run's rows: 7 updates, a transport every 3, evaluations every 2, penalty, dropout, clipping."""
    import retrofit.train as module

    folder = tmp_path_factory.mktemp("wiring") / "run"
    seen = {"seeds": [], "states": []}
    forward, steps = NextTokenLoss.forward, module.StepState

    def recording(self, ids_NT):
        seen["seeds"].append(torch.initial_seed())
        return forward(self, ids_NT)

    def stating(*values):
        seen["states"].append(values[4])
        return steps(*values)

    patch = pytest.MonkeyPatch()
    patch.setattr(NextTokenLoss, "forward", recording)
    patch.setattr(module, "StepState", stating)
    values = {
        "method": "geometry", "model": str(made("gpt_neox")), "dataset": str(text[0]), "validation_dataset": str(text[1]),
        "block_size": 16, "trajectory_blocks": 4, "validation_blocks": 8, "transport_blocks": 2, "activation_tokens": 64,
        "num_steps": 7, "batch_size": 4, "glt_interval": 3, "eval_interval": 2, "checkpoint_every": 3, "lr": 1e-3,
        "dropout": 0.1, "gradient_accumulation_steps": 2, "save_model": False,
    }  # fmt: skip
    config = RunConfig(**values)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    train_run(config, folder)
    patch.undo()
    return SimpleNamespace(folder=folder, config=config, rows=read_rows(folder / "metrics.jsonl"), **seen)


def steps_of(trained, kind):
    return [row["step"] for row in trained.rows if row["kind"] == kind]


def test_what_is_due_is_done_at_its_steps_and_no_other(trained):
    assert steps_of(trained, "evaluation") == [0, 2, 4, 6, 7]
    assert steps_of(trained, "transport") == [3, 6]  # not before the first update, nor after the last
    assert steps_of(trained, "update") == list(range(7))
    ends = [row["step"] for row in trained.rows if "val_ppl" in row]
    assert ends == [row["step"] for row in trained.rows if "act_kappa_centred" in row] == [0, 7]
    assert sorted(path.name for path in (trained.folder / "evaluations").iterdir()) == [
        "step-0.parquet",
        "step-7.parquet",
        "windows-0.parquet",
        "windows-7.parquet",
    ]


def test_dropout_is_drawn_anew_in_every_update_and_the_loss_is_the_mean_of_its_parts(trained):
    assert len(trained.seeds) == 14
    assert trained.seeds[::2] == trained.seeds[1::2]  # the stream is seeded once an update; its parts go on in it
    assert len(set(trained.seeds)) == 7


def test_an_update_says_what_was_clipped_and_added(trained):
    updates = [row for row in trained.rows if row["kind"] == "update"]
    for row in updates:
        assert row["clipped"] == (row["grad_norm"] > 1.0)
        assert row["penalty"] > 0
        assert row["penalty_grad_norm"] > 0
        assert len(row["up_norms"]) == 2
    about = json.loads((trained.folder / "results.json").read_text())["metrics"]
    assert about["clip_rate"] == pytest.approx(np.mean([row["clipped"] for row in updates]))
    assert about["mean_grad_norm"] == pytest.approx(np.mean([row["grad_norm"] for row in updates]))
    assert about["mean_penalty"] == pytest.approx(np.mean([row["penalty"] for row in updates]))
    first, last = (row for row in trained.rows if "val_ppl" in row)
    assert (about["initial_val_ppl"], about["val_ppl"]) == (first["val_ppl"], last["val_ppl"])
    assert (about["initial_val_loss"], about["val_loss"]) == (first["val_loss"], last["val_loss"])
    assert about["training_tokens"] == 7 * 4 * 16
    assert about["ffn_width"] == 64
    assert about["parameters"] == sum(p.numel() for p in tiny_model("gpt_neox").parameters())


def test_the_report_of_a_run_reads_its_first_and_last_evaluation(trained):
    manifest = json.loads((trained.folder / "manifest.json").read_text())
    record = SimpleNamespace(config=trained.config, manifest=manifest, folder=trained.folder)
    report = report_run(record)
    first, last = (row for row in trained.rows if "val_ppl" in row)
    assert f"perplexity {first['val_ppl']:.3f} to {last['val_ppl']:.3f}" in report.answer
    assert f"({100 * (last['val_ppl'] / first['val_ppl'] - 1):+.2f} %)" in report.answer
    assert f"{first['up_kappa_median']:.2f} to {last['up_kappa_median']:.2f}" in report.answer
    ends, layers, moves, _ = report.tables
    assert {name: (one, two) for name, one, two in ends.rows}["train_ppl"] == (first["train_ppl"], last["train_ppl"])
    assert all((one, two) == (first[name], last[name]) for name, one, two in ends.rows)
    assert ends.columns[1:] == ("step 0", "step 7")
    assert [row[0] for row in layers.rows] == ["gpt_neox.layers.0.mlp", "gpt_neox.layers.1.mlp"]
    for i, row in enumerate(layers.rows):
        for name, value in zip(layers.columns[1:], row[1:], strict=True):
            key, _, when = name.rpartition(" ")
            assert value == {"start": first, "end": last}[when][key][i], name
    assert {name.rpartition(" ")[0] for name in layers.columns[1:]} == {
        "up_kappa", "down_kappa", "up_omega", "act_kappa_centred", "act_kappa_uncentred", "ff_gram_original_layers",
    }  # fmt: skip
    assert moves.rows[0][:2] == ("geometry", 2)


def test_the_originals_file_has_each_series_under_its_name(trained):
    written = json.loads((trained.folder / "geometry.json").read_text())
    evaluations = [row for row in trained.rows if row["kind"] == "evaluation"]
    for name, column in {
        "conditioning": "ff_gram_original", "perplexity": "trajectory_ppl", "loss": "trajectory_loss",
        "val_perplexity": "trajectory_ppl", "val_loss": "trajectory_loss", "train_perplexity": "train_ppl",
        "train_loss": "train_loss", "steps": "step",
    }.items():  # fmt: skip
        assert written["trajectory"][name] == [row[column] for row in evaluations], name
    for point, row in (("initial", evaluations[0]), ("final", evaluations[-1])):
        names = {"cond": "ff_gram_original", "ppl": "val_ppl", "loss": "val_loss"}
        names |= {name: name for name in ("val_ppl", "val_loss", "train_ppl", "train_loss")}
        assert written[point] == {name: row[column] for name, column in names.items()}
    assert written["layer_conditions"] == evaluations[-1]["ff_gram_original_layers"]
    assert original_values("gram", evaluations, seed=3)["seed"] == 3


def test_the_terminals_line_says_what_the_evaluation_says():
    row = evaluation(4, up_kappa_median=7.25, ff_gram_original=801.0)
    assert (
        console_line(row, 4, 8)
        == "step     4 of 8  perplexity 10.400  kappa of up projections 7.25  ff_gram_original 801"
    )
    row = {"trajectory_ppl": 50.5}
    assert console_line(row, 6, 8) == "step     6 of 8  perplexity 50.500"


# ----------------------------------------------------------------------------------------------------------- summaries
def test_results_are_of_the_first_and_last_evaluation():
    rows = [
        evaluation(0),
        evaluation(2),
        {"kind": "update", "clipped": True, "grad_norm": 2.0},
        evaluation(4, up_kappa=[1.0], x=5),
    ]
    found = results(rows, {"dataset": "d"})
    assert (found["initial_val_ppl"], found["val_ppl"], found["train_ppl"], found["x"]) == (10.0, 10.4, 30.4, 5)
    assert (found["clip_rate"], found["mean_grad_norm"], found["dataset"]) == (1.0, 2.0, "d")
    assert "up_kappa" not in found
    assert "kind" not in found


def test_layers_with_an_infinite_value_are_counted_and_stay_out_of_the_mean():
    assert by_layer("k", [4.0, 1.0, 2.0]) == {
        "k": [4.0, 1.0, 2.0],
        "k_median": 2.0,
        "k_geometric_mean": pytest.approx(2),
    }
    found = by_layer("k", [4.0, math.inf, 1.0])
    assert found == {"k": [4.0, None, 1.0], "k_median": 4.0, "k_geometric_mean": pytest.approx(2), "k_infinite": 1}
    assert by_layer("k", [math.inf, math.inf, 1.0]) == {
        "k": [None, None, 1.0],
        "k_geometric_mean": 1.0,
        "k_infinite": 2,
    }
    assert by_layer("k", [math.inf]) == {"k": [None], "k_infinite": 1}


def test_means_of_updates_are_over_those_that_have_the_value():
    rows = [
        {"kind": "update", "clipped": True, "grad_norm": 3.0}, {"kind": "update", "clipped": False, "penalty": 8.0},
        {"kind": "update", "clipped": False, "grad_norm": 1.0, "penalty_grad_norm": 4.0}, {"kind": "evaluation"},
        {"kind": "update", "clipped": False},
    ]  # fmt: skip
    assert update_means(rows) == {
        "clip_rate": 0.25, "mean_grad_norm": 2.0, "mean_penalty": 8.0, "mean_penalty_grad_norm": 4.0,
    }  # fmt: skip
    assert update_means([{"kind": "evaluation"}]) == {}


def test_rows_of_seeds_are_averaged_column_by_column():
    one = [evaluation(0, val_ppl=2.0, k=[1.0, 3.0], only=5.0), evaluation(4, val_ppl=4.0, k=[2.0, None])]
    two = [evaluation(0, val_ppl=8.0, k=[3.0, 5.0]), evaluation(4, val_ppl=9.0, k=[4.0, 6.0])]
    first, last = mean_rows([one, two])
    assert (first["step"], first["kind"], first["k"]) == (0, "evaluation", [2.0, 4.0])
    assert (first["val_ppl"], last["val_ppl"]) == (pytest.approx(4.0), pytest.approx(6.0))  # geometrically
    assert last["k"] == [3.0, None]
    assert "only" not in first
    assert first["val_loss"] == pytest.approx(20.0)


# --------------------------------------------------------------------------------------------------------------- plans
def test_an_arms_own_values_hold_against_the_base():
    base = {"seed": 5, "save_model": True, "num_steps": 3, "lr": 0.5}
    jobs = {
        job.name: job for job in plan(CompareConfig(base=base, arms=["gram", "standard"], seeds=2, save_models="none"))
    }
    assert list(jobs) == [START, "gram_s5", "standard_s5", "gram_s6", "standard_s6"]
    assert [job.config.method for job in jobs.values()] == ["none", "gram", "standard", "gram", "standard"]
    assert [job.config.seed for job in jobs.values()] == [5, 5, 5, 6, 6]
    assert not any(job.config.save_model for job in jobs.values())
    assert {job.config.lr for job in jobs.values()} == {0.5}
    assert [job.arm for job in jobs.values()][1:] == ["gram", "standard", "gram", "standard"]
    every = plan(CompareConfig(base=base, arms=["gram"], seeds=1, save_models="all"))
    assert [job.config.save_model for job in every] == [False, True]


def test_seeds_of_one_method_keep_what_was_given():
    config = RunConfig(method="gram", lr=0.5, seed=7, num_steps=9, save_model=False)
    verb, whole = sweep_of_seeds(config, 3)
    assert (verb, whole.arms, whole.seeds, whole.save_models) == ("compare", ["gram"], 3, "none")
    assert whole.base == {"lr": 0.5, "seed": 7, "num_steps": 9}
    assert sweep_of_seeds(RunConfig(method="gram"), 2)[1].save_models == "all"


# -------------------------------------------------------------------------------------------------------------- tables
KEYS = ("up_kappa", "down_kappa", "up_omega", "act_kappa_centred", "act_kappa_uncentred")


def merged_rows():
    """Two arms, with a number of its own for every arm, end and quantity."""
    made = {}
    for arm, shift in (("standard", 0.0), ("geometry", 1000.0)):
        made[arm] = []
        for step in (0, 8):
            medians = {f"{key}_median": shift * (step > 0) + step + 100 * (i + 1) for i, key in enumerate(KEYS)}
            means = {f"{key}_geometric_mean": value + 0.5 for key, value in zip(KEYS, medians.values(), strict=True)}
            ends = {"val_ppl": shift * (step > 0) + 10 + step, "ff_gram_original": shift * (step > 0) + 20 + step}
            ends["ff_gram"] = shift * (step > 0) + 40 + 1.25 * step
            made[arm].append(evaluation(step, **medians, **means, **ends))
    return made


def test_every_column_of_the_arms_table_is_its_own():
    merged = merged_rows()
    history = {
        "standard": [[{"kind": "update", "clipped": False, "grad_norm": 3.0}]],
        "geometry": [
            [{"kind": "update", "clipped": True, "grad_norm": g, "penalty_grad_norm": 5.0}] for g in (4.0, 6.0)
        ],
    }
    arms = {arm: arm_metrics(merged[arm], history[arm]) for arm in merged}
    tables = comparison_tables(merged, arms, {"training_tokens": 512, "ffn_width": 64, "lr": 3e-5})
    judged, rest = ({row[0]: row[1:] for row in table.rows} for table in tables)
    assert tables[0].columns[2:] == (
        "lr", "perplexity", "change %", "ff_gram", "change %", "kappa up", "act kappa",
    )  # fmt: skip
    assert tables[1].columns == (
        "arm",
        "tokens",
        "ff_gram_original",
        "change %",
        "kappa down",
        "omega up",
        "grad norm",
        "clip rate",
    )
    assert judged["step 0"] == ("", "", 10, "", 40, "", 100, 400)
    assert rest["step 0"] == (0, 20, "", 200, 300, "", "")
    assert judged["standard"][:3] == (1, 3e-5, 18)
    assert judged["standard"][3:6] == (pytest.approx(80), 50, pytest.approx(25))
    assert judged["standard"][6:] == (108, 408)
    assert rest["standard"] == (512, 28, pytest.approx(40), 208, 308, 3.0, 0.0)
    assert judged["geometry"][:3] == (2, 3e-5, 1018)
    assert judged["geometry"][6:] == (1108, 1408)
    assert rest["geometry"][3:] == (1208, 1308, 5.0, 1.0)
    assert (arms["geometry"]["initial_val_ppl"], arms["geometry"]["final_val_ppl"]) == (10, 1018)
    for i, key in enumerate(KEYS):
        assert arms["geometry"][f"final_{key}_median"] == 1008 + 100 * (i + 1)
        assert arms["geometry"][f"initial_{key}_geometric_mean"] == 100.5 + 100 * i
    answer = figures_in_words(merged, {})
    assert "perplexity changes by: standard +80.0 %, geometry +10,080.0 %." in answer
    assert "ff_gram by: standard +25.0 %, geometry +2,525.0 %." in answer
    assert answer.endswith("The original study's scenarios are of 1,000 updates.")
    for rows in merged.values():
        rows[-1]["step"] = 1000
    assert "geometry does harm" in figures_in_words(merged, {})


def test_a_layers_table_says_what_is_infinite_and_what_was_not_measured():
    first = {"up_kappa": [1.0, None, 3.0], "act_kappa_centred": [5.0, None]}
    last = {"up_kappa": [2.0, 4.0, None], "act_kappa_centred": [6.0, 7.0]}
    names = {"weights": ["a", "b", "c"], "activations": ["a", "c"]}
    table = layer_table(first, last, names, "n")
    assert list(table.columns) == [
        "layer",
        "up_kappa start",
        "up_kappa end",
        "act_kappa_centred start",
        "act_kappa_centred end",
    ]
    assert table.rows == [
        ("a", 1.0, 2.0, 5.0, 6.0), ("b", "infinite", 4.0, None, None), ("c", 3.0, "infinite", "infinite", 7.0),
    ]  # fmt: skip


def test_the_transports_table_takes_each_column_from_its_rows():
    rows = [transport(3, 100.0, 104.0, kl=0.4, kappa=(8.0, 2.0)), transport(6, 100.0, 99.0, kl=0.1, kappa=(4.0, 4.0)),
            transport(9, 100.0, 94.0, kl=0.2, kappa=(9.0, 4.0)), transport(12, 100.0, 101.0, kl=0.3, kappa=(2.0, 2.0))]  # fmt: skip
    (line,) = transport_table({"geometry": rows}).rows
    name, count, first, others, largest, kl_first, kl_others, factor = line
    assert (name, count, kl_first, kl_others) == ("geometry", 4, 0.4, 0.2)
    assert (first, others, largest) == (pytest.approx(4), pytest.approx(-1), pytest.approx(-6))
    assert factor == pytest.approx((2 / 8 * 1 * 4 / 9 * 1) ** 0.25)


# -------------------------------------------------------------------------------------------------------------- figures
@pytest.fixture
def drawn(monkeypatch):
    """Lines of the figures that are saved: axis by axis, label -> (x, y)."""
    caught = []

    def save(figure, path):
        caught.append([
            {line.get_label(): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in axis.lines}
            for axis in figure.axes
        ])  # fmt: skip
        return path

    monkeypatch.setattr(figures, "save_figure", save)
    return caught


def test_figures_draw_what_they_say(drawn):
    merged = merged_rows()
    for row in (row for rows in merged.values() for row in rows):
        row |= {"trajectory_ppl": row["val_ppl"] + 1, "up_kappa": [row["val_ppl"] + 2, row["val_ppl"] + 3]}
    figures.plot_trajectories({arm: [rows] for arm, rows in merged.items()}, Path("x"))
    left, right = drawn.pop()
    assert left["geometry"] == ([0, 8], [20, 1028])
    assert right["geometry"] == ([0, 8], pytest.approx([11, 1019]))
    assert right["standard"] == ([0, 8], pytest.approx([11, 19]))
    for number, row in enumerate(row for rows in merged.values() for row in rows):
        row |= {"act_kappa_centred_median": 7.0 + number, "up_kappa_median": 9.0}
    infinite = {arm: [rows] for arm, rows in merged.items()}
    del infinite["geometry"][0][1]["ff_gram_original"]  # as where it is infinite
    figures.plot_trajectories(infinite, Path("x"))
    left, _ = drawn.pop()
    assert left["standard"][1] == [row["act_kappa_centred_median"] for row in merged["standard"]]
    del infinite["geometry"][0][1]["act_kappa_centred_median"]
    figures.plot_trajectories(infinite, Path("x"))
    left, _ = drawn.pop()
    assert left["standard"][1] == [9.0, 9.0]
    between = [SimpleNamespace(estimate=x, low=x - 1, high=x + 1) for x in (-3.0, 0.1)]
    point = SimpleNamespace(weight=1e-4, kappa=between[0], perplexity=between[1])
    figures.plot_front({"gram": [point]}, (-10, 0.1), Path("x"))
    (axis,) = drawn.pop()
    assert axis["gram"] == ([-3.0], [0.1]), "kappa across, perplexity up"
    figures.plot_layers(merged, Path("x"))
    (axis,) = drawn.pop()
    assert axis["step 0"][1] == [12, 13]
    assert (axis["standard"][1], axis["geometry"][1]) == ([20, 21], [1020, 1021])
    rows = [
        MatrixRow(f"layers.{i}.mlp.{part}", part, "4 x 3", kappa, 1.0, 1.0, 1.0, 1.0, 1.0)
        for i, kappas in enumerate(((5.0, 7.0), (math.inf, 8.0)))
        for part, kappa in zip(("up", "down"), kappas, strict=True)
    ]
    figures.plot_kappas(rows, Path("x"))
    (axis,) = drawn.pop()
    assert axis["mlp.down"] == ([0, 1], [7, 8])
    assert axis["mlp.up"][1][0] == 5
    assert math.isnan(axis["mlp.up"][1][1])
    figures.plot_spectra({"layers.0.mlp.up": torch.tensor([4.0, 2.0, 0.0])}, Path("x"))
    (axis,) = drawn.pop()
    assert axis["mlp.up"] == ([0, 0.5, 1], [1, 0.5, 1e-12])


def test_the_worst_matrix_is_named(made, tmp_path, capsys):
    from retrofit.cli import main

    flags = ["--dataset", "null", "--device", "cpu", "--output-dir", str(tmp_path / "m")]
    assert main(["measure", str(made("llama")), *flags]) == 0
    rows = [row for row in read_rows(tmp_path / "m" / "metrics.jsonl") if row["kind"] == "MatrixRow"]
    worst = max(rows, key=lambda row: row["kappa"])
    report = (tmp_path / "m" / "report.md").read_text()
    assert f"{len(rows)} matrices; the worst conditioned is {worst['name']}" in report
    assert "FFN activations' is" not in report, "they were not measured"
    metrics = json.loads((tmp_path / "m" / "results.json").read_text())["metrics"]
    assert metrics["median_kappa"] == pytest.approx(np.median([row["kappa"] for row in rows]))
    assert metrics["matrices"] == len(rows) == 14
