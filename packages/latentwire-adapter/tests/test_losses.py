"""Losses, their masks, and how they are weighed."""

import pytest
import torch

from latentwire_adapter.losses import Balance, PromptLosses, gradient_shares, reconstruction_loss, teaching


def test_weighted_types_have_the_loss_and_the_optimum_of_positions():
    draw = torch.Generator().manual_seed(0)
    z_UK, x_UD = torch.randn(40, 3, generator=draw).double(), torch.randn(40, 5, generator=draw).double()
    counts_U = torch.randint(1, 9, (40,), generator=draw)
    z_NK, x_ND = z_UK.repeat_interleave(counts_U, 0), x_UD.repeat_interleave(counts_U, 0)
    mean_D = x_ND.mean(0)
    variance = float((x_ND - mean_D).square().sum(1).mean())
    guess = torch.randn(3, 5, generator=draw).double()
    by_type = reconstruction_loss(z_UK @ guess, x_UD, counts_U.double(), variance, float(counts_U.sum()))
    by_position = (z_NK @ guess - x_ND).square().sum() / (x_ND - mean_D).square().sum()
    torch.testing.assert_close(by_type, by_position)
    assert float(
        reconstruction_loss(mean_D.expand(40, 5), x_UD, counts_U.double(), variance, float(counts_U.sum()))
    ) == pytest.approx(1)
    root_U1 = counts_U.double().sqrt()[:, None]
    torch.testing.assert_close(
        torch.linalg.lstsq(z_UK * root_U1, x_UD * root_U1).solution, torch.linalg.lstsq(z_NK, x_ND).solution
    )


@pytest.mark.parametrize("objective", ["prompt_ppl", "answer_ce", "kl"])
def test_losses_through_the_model_score_what_they_say(lm, prompts, objective):
    asked = list(prompts.prompts[:3])
    through = PromptLosses(lm, asked, prompts.prefix_T, objective)
    total = 0.0
    n = 0
    for prompt in asked:
        before = [*prompts.prefix_T, *prompt.asked_T]
        answer = [] if objective == "prompt_ppl" else lm.tokenizer(f" {prompt.question.answer}\n")["input_ids"]
        ids = torch.tensor([[*before, *answer]])
        logits = lm.model(input_ids=ids).logits[0, :-1].float()
        first = len(before) if objective == "answer_ce" else 1
        nll = torch.nn.functional.cross_entropy(logits[first - 1 :], ids[0, first:], reduction="none")
        total, n = total + float(nll.detach().sum()), n + len(nll)
    rows_BTD = lm.table_VD[through.ids_BT]
    loss, floor = through(rows_BTD, through.uncompressed())
    if objective == "kl":
        assert float(loss) == pytest.approx(0, abs=1e-6)
        assert floor == 0
        assert float(through(rows_BTD + 0.3, through.uncompressed())[0]) > 1e-3
        assert len(through.uncompressed()) == n
    else:
        assert float(loss) == pytest.approx(total / n, rel=1e-4)
        assert floor == pytest.approx(total / n, rel=1e-4)


@pytest.mark.parametrize("objective", ["prompt_ppl", "answer_ce", "kl"])
def test_a_loss_is_of_the_model_through_the_rows_and_its_floor_of_the_uncompressed(lm, prompts, objective):
    """KL goes from the uncompressed model's words to those through the rows, summed over words, its mean over targets."""
    through = PromptLosses(lm, list(prompts.prompts[:3]), prompts.prefix_T, objective)
    rows_BTD = lm.table_VD[through.ids_BT]
    clean, moved = through.uncompressed(), through.logits(through.rows(rows_BTD + 0.3))
    loss, floor = through(rows_BTD + 0.3, clean)
    if objective == "kl":
        p, q = torch.distributions.Categorical(logits=clean), torch.distributions.Categorical(logits=moved)
        there, back = torch.distributions.kl_divergence(p, q).mean(), torch.distributions.kl_divergence(q, p).mean()
        assert float(loss) == pytest.approx(float(there), rel=1e-4)
        assert abs(float(there - back)) > 0.01
    else:
        assert abs(float(loss) - floor) > 0.05
        assert floor == pytest.approx(float(through(rows_BTD, clean)[0]), rel=1e-5)


def test_what_arrives_reconstructed_is_what_is_when_answers_are_scored(lm, prompts):
    asked = list(prompts.prompts[:3])
    length_P = [len(p.context_T) for p in asked]
    whole, paragraph = (
        PromptLosses(lm, asked, prompts.prefix_T, "kl", scope).compressed_BT.sum(1).tolist()
        for scope in ("prompt", "paragraph")
    )
    assert paragraph == length_P
    assert whole == [len(prompts.prefix_T) + len(p.asked_T) for p in asked]
    through = PromptLosses(lm, asked, prompts.prefix_T, "kl", "paragraph")
    for row, prompt in enumerate(asked):
        assert tuple(through.ids_BT[row][through.compressed_BT[row].bool()].tolist()) == prompt.context_T


def test_rows_that_teach_nothing_are_read_and_have_no_gradient():
    rows = torch.ones(1, 3, 2, requires_grad=True)
    out = teaching(rows, torch.tensor([[True, False, True]]))
    assert torch.equal(out, rows)
    (gradient,) = torch.autograd.grad(out.sum(), rows)
    assert gradient[0, :, 0].tolist() == [1, 0, 1]


def test_positions_count_each_prompts_own_tokens(lm, prompts, monkeypatch):
    """Rotary positions show no shift of a whole prompt; a model with learned positions would read another prompt."""
    through = PromptLosses(lm, list(prompts.prompts[:4]), prompts.prefix_T, "kl")
    seen, forward = [], lm.model.forward

    def watched(*args, **kwargs):
        seen.append(kwargs["position_ids"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(lm.model, "forward", watched)
    through.uncompressed()
    lengths = through.mask_BT.sum(1).tolist()
    assert len(set(lengths)) > 1
    for position_T, length in zip(seen[0], lengths, strict=True):
        assert position_T[-length:].tolist() == list(range(length))


def test_the_answer_is_read_as_it_is(lm, prompts):
    """Only the prompt's rows are replaced, and padding is not scored."""
    through = PromptLosses(lm, list(prompts.prompts), prompts.prefix_T, "answer_ce")
    arrived = torch.full((*through.ids_BT.shape, lm.table_VD.shape[1]), 7.0)
    replaced = (through.rows(arrived) == 7).all(-1)
    assert torch.equal(replaced, through.compressed_BT.bool())
    assert not (through.scored_BT.bool() & (through.mask_BT == 0)).any()
    assert not (through.scored_BT.bool() & through.compressed_BT.bool()).any()


def test_running_means_are_bias_corrected_and_above_the_floor():
    balance = Balance("running_means", {"a": 1.0, "b": 1.0})
    first = balance.weigh({"a": 0.5, "b": 3.0}, {"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    assert first == {
        "a": pytest.approx(2.0),
        "b": pytest.approx(1.0),
    }  # not 1e8 of an empty mean, nor 1/3 with the floor
    for _ in range(200):
        last = balance.weigh({"a": 0.25, "b": 2.1}, {"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    assert last == {"a": pytest.approx(4.0), "b": pytest.approx(10.0)}


def test_a_loss_at_or_below_its_floor_has_no_weight_and_one_next_to_it_no_boundless_one():
    balance, norms = Balance("running_means", {"a": 1.0, "b": 1.0}), {"a": 1.0, "b": 1.0}
    balance.weigh({"a": 0.5, "b": 3.0}, {"a": 0.0, "b": 2.0}, norms)
    for below in (1.5, 2.0):
        weights = balance.weigh({"a": 0.5, "b": below}, {"a": 0.0, "b": 2.0}, norms)
        assert weights == {"a": pytest.approx(2.0), "b": 0.0}
    # What was below has not moved the mean: with this excess of 1 it is 1 again.
    assert balance.weigh({"a": 0.5, "b": 3.0}, {"a": 0.0, "b": 2.0}, norms)["b"] == pytest.approx(1.0)
    for _ in range(300):
        last = balance.weigh({"a": 0.5, "b": 2.0 + 1e-5}, {"a": 0.0, "b": 2.0}, norms)
    assert last["b"] == pytest.approx(1 / (0.01 * 2.0))


def test_gradient_norms_are_made_equal():
    balance = Balance("gradient_norms", {"a": 1.0, "b": 1.0})
    norms = {"a": 0.1, "b": 10.0}
    weights = balance.weigh({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}, norms)
    assert gradient_shares(norms, weights) == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}


@pytest.mark.parametrize("method", ["running_means", "gradient_norms", "uncertainty"])
def test_the_given_weights_multiply_whatever_the_balance(method):
    values = [{"a": 0.5, "b": 3.0}, {"a": 0.0, "b": 2.0}, {"a": 0.25, "b": 8.0}]
    plain, given = Balance(method, {"a": 1.0, "b": 1.0}), Balance(method, {"a": 2.0, "b": 0.25})
    for _ in range(3):
        one, other = plain.weigh(*values), given.weigh(*values)
        assert other == {"a": pytest.approx(2 * one["a"]), "b": pytest.approx(0.25 * one["b"])}


def test_uncertainty_weights_approach_one_over_the_loss():
    balance = Balance("uncertainty", {"a": 1.0, "b": 1.0})
    for _ in range(2000):
        weights = balance.weigh({"a": 0.2, "b": 4.0}, {"a": 0.0, "b": 0.0}, {})
    assert weights == {"a": pytest.approx(5.0, rel=0.01), "b": pytest.approx(0.25, rel=0.01)}


def test_fixed_weights_stay_and_state_comes_back():
    assert Balance("fixed", {"a": 3.0}).weigh({"a": 9.0}, {"a": 0.0}, {}) == {"a": 3.0}
    for method in ("running_means", "uncertainty"):
        one, other = Balance(method, {"a": 1.0}), Balance(method, {"a": 1.0})
        for _ in range(2):
            one.weigh({"a": 9.0}, {"a": 0.0}, {})
        other.restore(one.state())
        assert one.weigh({"a": 1.0}, {"a": 0.0}, {}) == other.weigh({"a": 1.0}, {"a": 0.0}, {})
