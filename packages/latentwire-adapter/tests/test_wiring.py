"""Which value feeds what, in training, evaluation, claims and plan: each has a number of its own here."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_retention import asked
from test_runs import metrics, of, suite

from latentwire_adapter import objectives
from latentwire_adapter.claims import claims, unexplained
from latentwire_adapter.config import EvaluateConfig, FitConfig, Phase2Config, SuiteConfig
from latentwire_adapter.data import Prompt, Prompts, Question, fewer_tokens, training_counts, training_prompts
from latentwire_adapter.evaluation import Arm, make_arm, reconstruction_of, scored, snap_accuracy, summary
from latentwire_adapter.evaluation_files import read_predictions
from latentwire_adapter.fitting import TypeRows, code_dimensions, make_fit
from latentwire_adapter.losses import PromptLosses
from latentwire_adapter.metrics import retention as retained
from latentwire_adapter.metrics.reconstruction import reconstruction_metrics
from latentwire_adapter.model import codecs
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.model.compressor import EmbeddingCompressor
from latentwire_adapter.model.language_model import load_language_model
from latentwire_adapter.plan import plan, sweep_of_seeds
from studycore.claims import NotRun, as_stored, judge_all
from studycore.errors import Stopped, UserError
from studycore.metrics_log import read_rows
from studycore.record import read_arrays
from studycore.run import Run

pytestmark = pytest.mark.usefixtures("checked")


def rows_of(folder, kind="train_step"):
    return [row for row in read_rows(folder / "metrics.jsonl") if row["type"] == kind]


# ---------------------------------------------------------------------------------------------------------- the fit
def test_a_fit_counts_what_it_says_and_weighs_as_it_is_told(small, lm):
    """alpha 0 weighs all seen types alike; `pca_samples` are the compressor's alone."""
    config = small(alpha=0.0, pca_samples=3, samples=30)
    fit = make_fit(config, lm, 8)
    few_V, all_V = (
        training_counts(replace(config, samples=n, pca_samples=None), lm.tokenizer, len(lm.table_VD), lm.context)[0]
        for n in (3, 30)
    )
    assert torch.equal(fit.counts_V, all_V) and not torch.equal(few_V, all_V)
    expected = EmbeddingCompressor(32, 8).fit_counts(lm.table_VD, ((few_V > 0) & ~fit.held_V).double())
    torch.testing.assert_close(fit.compressor.projection, expected.projection, rtol=1e-3, atol=1e-4)
    assert fit.about["types_seen"] == int(((all_V > 0) & ~fit.held_V).sum())
    assert fit.about["types_held_out"] == int(((all_V > 0) & fit.held_V).sum()) > 0
    assert fit.about["unigram_entropy_bits"] == pytest.approx(
        float(torch.distributions.Categorical(probs=all_V).entropy()) / math.log(2)
    )
    prompts = training_prompts(config, lm.tokenizer, lm.context, 30).prompts
    size = sum(len(lm.tokenizer.decode(p.asked_T).encode()) for p in prompts)
    assert fit.about["text_bits"] == pytest.approx(8 * size / sum(len(p.asked_T) for p in prompts))


def test_the_variance_kept_is_that_of_the_first_dimensions(make, small, tmp_path):
    folder = make("fit", of(FitConfig, small()), tmp_path / "fit")
    variances = read_arrays(folder)["variances"]
    assert len(variances) == 32
    for ratio in (2, 4, 8, 16):
        assert metrics(folder)[f"kept_{ratio}x"] == pytest.approx(variances[: 32 // ratio].sum() / variances.sum())


@pytest.mark.parametrize("method", ["pca", "random"])
def test_a_run_of_a_fit_has_the_compressor_of_a_run_alone(make, small, tmp_path, method):
    fit = make("fit", of(FitConfig, small(alpha=0.5)), tmp_path / "fit")
    config = small(alpha=0.5, compress_method=method, epochs=0)
    folders = [make("phase1", config, tmp_path / name, needs=n) for name, n in (("of", {"fit": fit}), ("alone", {}))]
    one, other = (EmbeddingCompressor.from_pretrained(folder / "compressor") for folder in folders)
    torch.testing.assert_close(one.projection, other.projection, rtol=1e-3, atol=1e-4)
    assert code_dimensions(small(ratio=3.0), 32) == 11


# ---------------------------------------------------------------------------------------------------------- training
def test_metrics_of_types_are_those_of_their_counts(trained, small, lm):
    """The arrays that claims read say the same as the metrics that tables read."""
    a, measured = read_arrays(trained), metrics(trained)
    for kind, start in (("seen", ""), ("held_out", "held_out_")):
        for decoder, of_decoder in (("adapter", ""), ("linear", "linear_")):
            count = a[f"{kind}_count"]
            nmse = (count * a[f"{kind}_{decoder}"]).sum() / (count * a[f"{kind}_spread"]).sum()
            assert measured[f"{of_decoder}{start}nmse"] == pytest.approx(float(nmse), rel=1e-4), (kind, decoder)
    fit = make_fit(small(), lm, 8)
    for kind, chosen_V in (("seen", ~fit.held_V), ("held_out", fit.held_V)):
        assert np.array_equal(a[f"{kind}_count"], fit.counts_V[(fit.counts_V > 0) & chosen_V].numpy())


def test_reconstruction_metrics_by_hand():
    x_UD, y_UD = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    measured = reconstruction_metrics(y_UD, x_UD, torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]))
    # Errors 1 and 1, sizes 4 and 1, spreads 1 and 2; weights 3/4 and 1/4.
    assert measured == {
        "recon_mse": pytest.approx(0.5), "recon_cosine_sim": pytest.approx(0.75 + 0.25 / math.sqrt(2)),
        "recon_rel_error": pytest.approx((1 / 3.25) ** 0.5), "nmse": pytest.approx(1 / 1.25),
        "norm_ratio": pytest.approx(0.75 * 0.5 + 0.25 * math.sqrt(2)),
    }  # fmt: skip


def test_an_adapter_is_measured_without_dropout(small, lm):
    config = small()
    data, adapter = TypeRows(lm, make_fit(config, lm, 8), config), Adapter(8, 32, dropout=0.5).train()
    assert data.measure(adapter) == data.measure(adapter.train())


def test_what_is_logged_follows_weight_and_schedule(make, small, tmp_path):
    one = rows_of(make("phase1", small(eval_every=1), tmp_path / "one"))
    three = rows_of(make("phase1", small(eval_every=1, recon_weight=3.0), tmp_path / "three"))
    assert three[0]["loss"] == pytest.approx(3 * one[0]["loss"])
    steps = one[-1]["step"]
    for row in one:
        expected = 1e-2 * (0.01 + 0.99 * math.cos(math.pi * row["step"] / steps / 2) ** 2)
        assert row["lr"] == pytest.approx(expected)
    per_epoch = steps // 4
    assert [row["epoch"] for row in one] == [row["step"] // per_epoch for row in one]


def test_dropout_is_on_in_training_and_its_mask_is_of_the_update(make, small, tmp_path, monkeypatch):
    masks, forward = [], torch.nn.Dropout.forward

    def kept(self, x):
        y = forward(self, x)
        if self.training:
            masks.append((y == 0).flatten()[:200])
        return y

    monkeypatch.setattr(torch.nn.Dropout, "forward", kept)
    make("phase1", small(adapter_dropout=0.5), tmp_path / "run")
    assert len(masks) > 4
    assert all(60 < int(mask.sum()) < 140 for mask in masks)
    assert all(not torch.equal(one, other) for i, one in enumerate(masks) for other in masks[:i])


def test_gradients_are_clipped_and_weights_decay(make, small, tmp_path):
    """A clip far below Adam's epsilon leaves the start; a decay of a tenth at each update shrinks what the loss leaves alone."""
    still = metrics(make("phase1", small(grad_clip=1e-13, adapter_weight_decay=0.0), tmp_path / "still"))
    assert still["nmse"] == pytest.approx(still["linear_nmse"], rel=1e-3)
    norms = [
        float(Adapter.from_pretrained(make("phase1", small(adapter_weight_decay=d), tmp_path / str(d)) / "adapter").hidden1.weight.detach().norm())
        for d in (0.0, 10.0)
    ]  # fmt: skip
    assert norms[1] < 0.6 * norms[0]


def of_phase2(small, trained, **more):
    given = {"phase1": str(trained), "only_below": 101.0, "ce_weight": 1.0, "steps": 3, "phase2_batch_size": 2, "phase2_lr": 3e-3,
             "log_every": 1} | more  # fmt: skip
    return of(Phase2Config, small(), **given)


def test_each_update_of_phase2_asks_the_next_questions(trained, make, small, lm, tmp_path, monkeypatch):
    asked_here = []

    class Watched(PromptLosses):
        def __init__(self, lm, prompts, *rest):
            asked_here.append([p.question.id for p in prompts])
            super().__init__(lm, prompts, *rest)

    monkeypatch.setattr(objectives, "PromptLosses", Watched)
    make("phase2", of_phase2(small, trained), tmp_path / "run")
    taught = [p.question.id for p in training_prompts(of_phase2(small, trained), lm.tokenizer, lm.context, 6).prompts]
    assert asked_here == [taught[0:2], taught[2:4], taught[4:6]]
    assert len(set(taught)) == 6


def test_a_batch_of_phase2_that_cannot_fit_is_refused_before_its_questions_are_made(trained, make, small, tmp_path):
    with pytest.raises(UserError, match=r"^phase2_batch_size: 1000000000000: .* a batch take [\d,]+ GiB"):
        make("phase2", of_phase2(small, trained, phase2_batch_size=10**12), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_weights_of_phase2_weigh_gradients_and_the_logged_loss(trained, make, small, tmp_path):
    made = {
        name: rows_of(make("phase2", of_phase2(small, trained, balance="fixed", **more), tmp_path / name))
        for name, more in {
            "plain": {}, "large": {"recon_weight": 1e3, "ce_weight": 1e3}, "ppl": {"objective": "prompt_ppl"},
        }.items()
    }  # fmt: skip
    plain, large, ppl = (made[name][0] for name in ("plain", "large", "ppl"))
    assert large["gradient_norm"] == pytest.approx(1e3 * plain["gradient_norm"], rel=1e-3)
    assert (large["weight_kl"], large["weight_reconstruction"]) == (1e3, 1e3)
    assert large["loss"] == pytest.approx(1e3 * (large["kl_loss"] + large["recon_loss"]))
    assert all(row["floor_kl"] == 0 for row in made["plain"])
    assert all(abs(row["floor_prompt_ppl"] - row["prompt_ppl_loss"]) > 1e-3 for row in made["ppl"])
    assert plain["recon_loss"] == pytest.approx(ppl["recon_loss"])


def test_phase2_is_due_below_the_threshold_and_not_at_it(trained, make, small, tmp_path):
    f1 = metrics(trained)["f1"]
    at, above = (
        make("phase2", of_phase2(small, trained, only_below=limit, steps=1), tmp_path / name)
        for name, limit in (("at", f1), ("above", f1 + 0.01))
    )
    assert (metrics(at)["due"], metrics(above)["due"]) == (False, True)
    assert metrics(above)["phase1_f1"] == f1


@pytest.mark.parametrize("balance", ["running_means", "uncertainty"])
def test_a_stopped_phase2_goes_on_to_the_same_bits(trained, make, small, tmp_path, monkeypatch, balance):
    """Its balance of the two losses comes back with it."""
    config = of_phase2(small, trained, steps=6, balance=balance, checkpoint_every=2, log_every=1)
    whole, cut, saving = make("phase2", config, tmp_path / "whole"), tmp_path / "cut", Run.saving

    def stop_at_four(self, n):
        self.stopping = self.index == 4
        return saving(self, n)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "saving", stop_at_four)
        with pytest.raises(Stopped):
            make("phase2", config, cut)
    make("phase2", config, cut, resume=True)
    files = [(folder / "adapter" / "model.safetensors").read_bytes() for folder in (whole, cut)]
    assert files[0] == files[1]
    weights = [[row["weight_kl"] for row in rows_of(folder)] for folder in (whole, cut)]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) > 1


# -------------------------------------------------------------------------------------------------------- evaluation
def test_errors_of_a_paragraph_and_of_its_answer_by_hand(lm):
    """The error of token 5 is a tenth of its row, that of the others nothing; only token 6 was held out."""
    answer = lm.tokenizer(" b", add_special_tokens=False)["input_ids"]
    context = (5, *answer, 6, 5)
    prompt = Prompt(Question("q", "p", "", "", ("b",)), context, (7,))
    raw = codecs.raw(lm.table_VD)

    def rows(ids_U):
        return raw(ids_U) * torch.where(ids_U == 5, 1.1, 1.0)[:, None]

    seen_V = torch.ones(len(lm.table_VD), dtype=torch.bool)
    arm, size_V = Arm("linear", None, rows, seen_V), lm.table_VD.square().sum(1)
    errors = reconstruction_of(arm, lm, raw, prompt)
    whole = float(size_V[list(context)].sum())
    assert errors["error"] == pytest.approx(0.01 * 2 * float(size_V[5]) / whole, rel=1e-3)
    assert (errors["answer_error"], errors["answer_seen"]) == (0, True)
    of_answer = replace(prompt, question=replace(prompt.question, answers=(lm.tokenizer.decode([5, *answer]),)))
    if tuple(lm.tokenizer(of_answer.question.answer, add_special_tokens=False)["input_ids"]) == (5, *answer):
        part = reconstruction_of(arm, lm, raw, of_answer)["answer_error"]
        assert part == pytest.approx(0.01 * float(size_V[5] / size_V[[5, *answer]].sum()), rel=1e-3)
    everywhere = Arm("linear", None, lambda ids: 1.1 * raw(ids), seen_V)
    assert reconstruction_of(everywhere, lm, raw, prompt)["answer_error"] == pytest.approx(0.01, rel=1e-3)
    seen_V[answer[0]] = False
    assert reconstruction_of(arm, lm, raw, prompt)["answer_seen"] is False


def test_one_held_out_token_makes_an_answer_unseen(lm):
    answer = lm.tokenizer(" zq", add_special_tokens=False)["input_ids"]
    assert len(answer) > 1
    prompt = Prompt(Question("q", "p", "", "", ("zq",)), (5, *answer), (7,))
    seen_V = torch.ones(len(lm.table_VD), dtype=torch.bool)
    seen_V[answer[-1]] = False
    raw = codecs.raw(lm.table_VD)
    assert reconstruction_of(Arm("linear", None, raw, seen_V), lm, raw, prompt)["answer_seen"] is False


def test_an_example_of_no_answer_counts_as_none():
    none = Prompt(Question("q", "p", "", "", ()), (1,), (2,))
    row = scored(none, "Unanswerable.")
    assert (row["prediction"], row["em"], row["f1"]) == ("", 1, 1)
    assert scored(replace(none, question=replace(none.question, answers=("x",))), "unanswerable")["prediction"]
    assert scored(none, "a name")["f1"] == 0


def test_means_over_questions_by_hand():
    values = [
        (1.0, 1.0, "x", 0, 10, "p"),
        (0.5, 0.0, "y", 3, 20, "p"),
        (0.0, 0.0, "", 0, 60, "q"),
        (0.0, 0.0, "z", 0, 10, "r"),
    ]
    rows = [
        {"f1": f1, "em": em, "prediction": said, "cut": cut, "tokens": tokens, "paragraph": p, "seconds": 2.0}
        for f1, em, said, cut, tokens, p in values
    ]
    assert summary(rows) == {
        "f1": 37.5, "em": 25.0, "eval_samples": 4, "empty_rate": 0.25, "cut_rate": 0.25, "seconds_per_question": 2.0,
        "paragraphs": 3, "tokens_per_question": 25.0,
    }  # fmt: skip


def test_each_arm_reads_its_own_rows_and_prompts(lm, prompts, small):
    fit = make_fit(small(), lm, 8)
    torch.manual_seed(0)
    adapter, ids = Adapter(8, 32).eval(), torch.arange(40)
    arms = {
        name: make_arm(name, lm, prompts, fit, adapter)
        for name in ("linear", "adapter", "int8", "int4", "nearest_int4", "fewer")
    }
    z_UK = fit.compressor.compress(lm.table_VD[ids])
    half_UK = z_UK.half().float()
    assert not torch.equal(half_UK, z_UK)
    table_VK = fit.compressor.compress(lm.table_VD)
    codes_VK, four_UK = codecs.dequantise(*codecs.quantise(table_VK, 4)), codecs.dequantise(*codecs.quantise(z_UK, 4))
    expected = {
        "linear": fit.compressor.decompress(half_UK), "adapter": adapter(half_UK), "fewer": lm.table_VD[ids],
        "nearest_int4": lm.table_VD[torch.cdist(four_UK, codes_VK).argmin(1)],
        "int8": adapter(codecs.dequantise(*codecs.quantise(z_UK, 8))), "int4": adapter(codecs.dequantise(*codecs.quantise(z_UK, 4))),
    }  # fmt: skip
    for name, arm in arms.items():
        # Closer than the 16 bits of a code: an arm that reads codes of another precision fails.
        torch.testing.assert_close(arm.rows(ids), expected[name].detach(), msg=name, rtol=1e-6, atol=1e-7)
        if name != "fewer":
            assert arm.prompts is prompts
            assert torch.equal(arm.seen_V, ~fit.held_V & (fit.counts_V > 0))
    assert arms["fewer"].prompts == fewer_tokens(prompts, 4.0, fit.counts_V)


def test_snap_accuracy_weighs_the_prompts_tokens():
    """Of three types one comes back wrong, once in five tokens."""
    table_VD = torch.arange(8.0).reshape(4, 2)
    raw = codecs.raw(table_VD)
    asked_here = [Prompt(Question("q", "p", "", "", ()), (0, 1, 1), (2, 0))]
    arm = Arm("nearest", Prompts((3,), tuple(asked_here), ""), lambda ids: raw(torch.where(ids == 2, 3, ids)))
    assert snap_accuracy(arm, raw) == {"snap_accuracy": 0.8, "snap_accuracy_types": pytest.approx(2 / 3)}


def test_a_receiver_that_rounds_its_own_table_finds_each_row_by_its_code():
    """In 4 bits a rounded code is often nearer to another row's unrounded code than to its own row's; rows that have the same
    whole numbers and scales that differ in the last bit are told apart; rows of one code give the first."""
    table_VD = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(1, -2, 16)
    twin_D = codecs.dequantise(*codecs.quantise(table_VD[:1], 4))[0]
    table_VD = torch.cat([table_VD, twin_D[None], twin_D[None] * (1 + 2**-10), twin_D[None]])
    compressor = EmbeddingCompressor(16, 16)
    compressor.projection.copy_(torch.eye(16))
    expected = torch.arange(3003)
    expected[[3000, 3002]] = 0  # what has the code of the first row is taken for it
    ids = torch.arange(3003)
    assert torch.equal(codecs.nearest(table_VD, compressor, 4)(ids), table_VD[expected])
    four_UK = codecs.received(compressor, table_VD[:3000], 4)
    confused_U = codecs.nearest_types(compressor.compress(table_VD), four_UK) != ids[:3000]
    assert confused_U.double().mean() > 0.005  # what a receiver that does not round would lose


def test_bits_and_bytes_of_each_arm(trained, make, small, lm, prompts, tmp_path):
    vocabulary, parameters = len(lm.table_VD), metrics(trained)["adapter_parameters"]
    assert parameters == sum(p.numel() for p in Adapter(8, 32).parameters())
    bytes_of = {
        "linear": 2 * (8 + 1) * 32, "nearest": 2 * (vocabulary * 32 + vocabulary * 8), "int4": 2 * parameters,
        "fewer": 0, "ids": 2 * vocabulary * 32, "nearest_int4": 2 * vocabulary * 32 + vocabulary * 48 // 8,
        "adapter_paragraph": 2 * parameters,
    }  # fmt: skip
    for arm, size in bytes_of.items():
        folder = make("evaluate", of(EvaluateConfig, small(), arm=arm, phase1=str(trained)), tmp_path / arm)
        measured = metrics(folder)
        assert measured["receiver_bytes"] == size, arm
        assert measured["adapter_parameters"] == (parameters if arm in ("int4", "adapter_paragraph") else 0), arm
        if arm == "fewer":
            whole = sum(len(p.context_T) for p in prompts.prompts)
            sent = sum(q["paragraph_tokens"] for q in read_predictions(folder)["questions"])
            assert measured["bits_per_token"] == pytest.approx(512 * sent / whole) != 512
    assert metrics(tmp_path / "ids")["bits_per_token"] == math.ceil(math.log2(vocabulary))
    assert metrics(trained)["receiver_bytes"] == 2 * parameters


def test_a_model_is_kept_by_its_precision(reading):
    assert load_language_model(reading, "cpu") is load_language_model(reading, "cpu")
    assert load_language_model(replace(reading, dtype="bfloat16"), "cpu").table_VD.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------------------ claims
MAIN = SuiteConfig(ratios=[4.0, 8.0])


def test_the_thresholds_stand_as_the_readme_has_them():
    of_ratio = {
        "f1": (70, None), "retention": (0.7, None), "correlation": (0, None), "held_out": (None, 0), "seen": (None, 0), "remembered": (None, 0),
        "adapter_vs_linear": (0, None), "nearest": (0.95, None), "nearest_int4": (0.95, None), "fewer": (0, None), "phase2": (0, None),
        "phase2_ppl": (0, None),
        "answer_correlation": (0, None), "cosine": (0.9, None),
    }  # fmt: skip
    expected = {"uncompressed_f1": (60, None), "question_only_f1": (None, 10), "embeddings_are_ids": (None, 1)}
    expected |= {f"{name}_{r}": limits for r in ("4x", "8x") for name, limits in of_ratio.items()}
    assert {claim.id: (claim.above, claim.below) for claim in claims("run", MAIN)} == expected


def test_each_claim_reads_its_own_arms_at_its_own_ratio():
    """Constant scores in each arm, so that a figure says which it was made from; the error tells the order of the adapter's."""
    f1 = {("ids", None): 0.9, ("raw", None): 0.92, ("question_only", None): 0.05, ("shuffled", None): 0.03}
    for i, ratio in enumerate(("4x", "8x")):
        levels = {"adapter": 0.62, "linear": 0.41, "nearest": 0.83, "nearest_int4": 0.79, "fewer": 0.35, "phase2": 0.74,
                  "adapter_paragraph": 0.66, "phase2_ppl": 0.58}  # fmt: skip
        f1 |= {(arm, ratio): level - 0.07 * i * (1 + level) for arm, level in levels.items()}
    rows = [{"arm": arm, "ratio": ratio, "questions": asked([level] * 8)} for (arm, ratio), level in f1.items()]
    for row, sign in zip([r for r in rows if r["arm"] == "adapter"], (1, -1), strict=True):
        steps = 0.001 * np.arange(8) - 0.0035
        level = f1["adapter", row["ratio"]]
        row["questions"] = asked(level + steps, error=1 - sign * steps, answer_error=1 + sign * steps)
        scale = 1 if sign == 1 else 2
        row["arrays"] = {
            f"{kind}_{name}": scale * value * np.ones(5)
            for kind, values in {"seen": (4, 0.3, 0.4), "held_out": (5, 0.8, 0.2)}.items()
            for name, value in zip(("spread", "adapter", "linear"), values, strict=True)
        } | {
            "seen_count": np.ones(5),
            "held_out_count": np.ones(5),
            "seen_cosine": np.full(5, 0.95 - 0.01 * (sign == 1)),
        }
        row["arrays"]["seen_spread"] = row["arrays"]["held_out_spread"] = np.full(5, 4.0)
    every = claims("run", MAIN)
    judged = {c["id"]: c["measured"] for c in judge_all(every, pd.DataFrame(rows), [as_stored(c) for c in every])}
    expected = {"uncompressed_f1": 92.0, "question_only_f1": 5.0, "embeddings_are_ids": 2.0}
    for ratio, sign, scale in (("4x", 1, 1), ("8x", -1, 2)):
        at = {arm: level for (arm, of), level in f1.items() if of == ratio}
        expected |= {
            f"f1_{ratio}": 100 * at["adapter"], f"retention_{ratio}": (at["adapter"] - 0.05) / 0.87, f"correlation_{ratio}": sign,
            f"answer_correlation_{ratio}": -sign, f"cosine_{ratio}": 0.95 - 0.01 * (sign == 1), f"nearest_int4_{ratio}": (at["nearest_int4"] - 0.05) / 0.87,
            f"held_out_{ratio}": scale * 0.15, f"seen_{ratio}": scale * -0.025,
            f"remembered_{ratio}": scale * -0.175,
            f"adapter_vs_linear_{ratio}": 100 * (at["adapter"] - at["linear"]), f"nearest_{ratio}": (at["nearest"] - 0.05) / 0.87,
            f"fewer_{ratio}": 100 * (at["adapter_paragraph"] - at["fewer"]), f"phase2_{ratio}": 100 * (at["phase2"] - at["adapter"]),
            f"phase2_ppl_{ratio}": 100 * (at["phase2_ppl"] - at["adapter"]),
        }  # fmt: skip
    assert judged == {name: pytest.approx(value, abs=1e-9) for name, value in expected.items()}


def test_unexplained_variance_is_a_ratio_of_sums_and_a_mean_over_seeds():
    count, spread = np.array([1.0, 3.0]), np.array([1.0, 5.0])
    arrays = [
        {"seen_count": count, "seen_spread": spread, "seen_adapter": e}
        for e in (np.array([1.0, 0.0]), np.array([0.0, 2.0]))
    ]
    table = pd.DataFrame([{"arm": "adapter", "ratio": "4x", "arrays": a} for a in arrays])
    interval, _ = unexplained("adapter", "seen", "4x").compute(table)
    # Mean errors 1/2 and 1; counted 1/2 + 3 over 1 + 15.
    assert interval.estimate == pytest.approx(3.5 / 16)


def test_a_control_as_good_as_the_prompt_in_some_resamples_is_not_run():
    treated, nothing = asked([0.5] * 8), asked([0.0] * 8)
    whole = asked([1, 1, 0, 0, 0, 0, 0, 0])
    with pytest.raises(NotRun, match="In some resamples"):
        retained.retention(treated, whole, [nothing, nothing])


# -------------------------------------------------------------------------------------------------------------- plan
def test_each_job_has_its_own_seed_and_ratio(small):
    jobs = {
        job.name: job
        for job in plan(suite(small, ratios=[2.0, 4.0], only={"phase2": [2.0], "phase2_ppl": []}, seeds=2))
    }
    for ratio in (2.0, 4.0):
        for seed in (0, 1):
            job = jobs[f"phase1_{ratio:g}x_s{seed}"]
            assert (job.config.ratio, job.config.seed, job.labels["ratio"]) == (ratio, seed, f"{ratio:g}x")
            other = jobs[f"linear_{ratio:g}x_s{seed}"]
            assert (other.config.seed, other.config.arm, other.needs) == (seed, "linear", ("selfcheck", job.name))
    assert {name for name in jobs if name.startswith("phase2")} == {"phase2_2x_s0", "phase2_2x_s1"}
    assert jobs["phase1_2x_s0"].needs == ("selfcheck", "fit")


def test_what_the_runs_share_is_used_or_refused(small, make, tmp_path):
    """`pca_samples` reaches the fit; dimensions that would belie a ratio's name are refused; so is another width."""
    jobs = {job.name: job for job in plan(with_base(small, pca_samples=3))}
    assert jobs["fit"].config.pca_samples == 3
    fits = [make("fit", of(FitConfig, small(pca_samples=n)), tmp_path / str(n)) for n in (3, None)]
    one, other = (EmbeddingCompressor.from_pretrained(folder / "compressor") for folder in fits)
    assert not torch.allclose(one.projection, other.projection, atol=1e-3)
    random = small(pca_samples=3, compress_method="random")
    shared = make(
        "phase1", random, tmp_path / "shared", needs={"fit": make("fit", of(FitConfig, random), tmp_path / "of")}
    )
    alone = make("phase1", random, tmp_path / "alone")
    assert metrics(shared)["linear_nmse"] == pytest.approx(metrics(alone)["linear_nmse"], rel=1e-4)
    with pytest.raises(UserError, match=r"^base: \['compress_dim'\] are no fields of all runs"):
        plan(with_base(small, compress_dim=5))
    with pytest.raises(UserError, match=r"^compress_dim: 5 with --seeds does not fit; give --ratio"):
        sweep_of_seeds(small(compress_dim=5), 2)
    with pytest.raises(UserError, match=r"^objective: prompt_ppl is what the arm phase2_ppl trains on"):
        plan(with_base(small, objective="prompt_ppl"))
    with pytest.raises(ValueError, match=r"^pca_samples: 31 exceeds the 30 samples"):
        small(pca_samples=31)
    for verb, config in (("fit", of(FitConfig, small(input_dim=64))), ("phase1", small(input_dim=64))):
        with pytest.raises(UserError, match=r"^input_dim: 64 does not fit; the embeddings of '.*' have 32 dimensions"):
            make(verb, config, tmp_path / f"width_{verb}")
    make("phase1", small(input_dim=32, epochs=0), tmp_path / "same_width")


def with_base(small, **more):
    given = suite(small, ratios=[2.0])
    return replace(given, base=given.base | more)
