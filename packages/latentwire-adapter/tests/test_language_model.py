"""Reading by embeddings: the same tokens as transformers generates, models that scale, models that are refused."""

from dataclasses import replace

import pytest
import torch
from conftest import make_tokenizer, tiny_llama

from latentwire_adapter.config import EvaluateConfig, FitConfig, Reading
from latentwire_adapter.data import Prompt, Question, scored_prompts, tokens_of, training_counts, training_prompts
from latentwire_adapter.losses import PromptLosses
from latentwire_adapter.model import codecs, reader as reading_rows
from latentwire_adapter.model.language_model import load_language_model, wrap
from latentwire_adapter.model.reader import Reader, batches, text_of
from latentwire_adapter.selfcheck import TIE, Harness, run_checks
from studycore.errors import UserError


def prompt(context, question, paragraph="p"):
    return Prompt(Question("q", paragraph, "", "", ("x",)), tuple(context), tuple(question))


def alone(lm, ids, n):
    """Greedy tokens by whole passes of the model, one at a time, without any cache."""
    answer = []
    for _ in range(n):
        token = int(lm.model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
        if token in lm.ends:
            break
        answer.append(token)
    return answer


def test_answers_are_those_of_whole_passes_with_any_padding_and_prefix(lm):
    prompts = [prompt([5, 6, 7, 8, 9, 10], [20, 21]), prompt([5, 6, 7, 8, 9, 10], [22, 23, 24, 25]), prompt([40], [30])]
    for prefix in ((), (3, 4, 11)):
        for embed in (None, codecs.raw(lm.table_VD)):
            answers = Reader(lm, prefix, embed).answer(prompts, 5)
            assert answers == [alone(lm, [*prefix, *p.asked_T], 5) for p in prompts]
    assert len(set(map(tuple, answers))) > 1


def test_answers_without_a_paragraph(lm):
    mixed = [prompt([], [20, 21]), prompt([5, 6], [20, 21])]
    for prefix in ((), (3, 4)):
        answers = Reader(lm, prefix, codecs.raw(lm.table_VD)).answer(mixed, 4)
        assert answers == [alone(lm, [*prefix, *p.asked_T], 4) for p in mixed]
        assert Reader(lm, prefix, None).answer(mixed[:1], 4) == answers[:1]


def test_an_answer_ends_before_its_end(lm):
    whole = Reader(lm, (3,), None).answer([prompt([5, 6], [20])], 6)[0]
    stopped = replace(lm, ends=frozenset({whole[2]}))
    assert Reader(stopped, (3,), None).answer([prompt([5, 6], [20])], 6)[0] == whole[: whole.index(whole[2])]
    assert lm.tokenizer.convert_tokens_to_ids("\u010a") in lm.ends
    assert lm.tokenizer.eos_token_id in lm.ends
    assert text_of(lm, lm.tokenizer(" a name \nmore")["input_ids"]) == "a name"


def test_another_embedding_for_all_but_the_paragraph(lm):
    table = codecs.raw(lm.table_VD)

    def noisy(ids):
        return table(ids) + 0.5

    p = [prompt([5, 6, 7], [20, 21])]
    both = Reader(lm, (3,), noisy, table).first_logits(p)[-1]
    rows = torch.cat([table(torch.tensor([3])), noisy(torch.tensor([5, 6, 7])), table(torch.tensor([20, 21]))])[None]
    expected = lm.model(inputs_embeds=rows).logits[0, -1]
    torch.testing.assert_close(both[0], expected.detach(), rtol=1e-4, atol=1e-4)


def test_a_paragraph_is_read_once_and_an_ended_answer_not_at_all(lm, monkeypatch):
    read, forward = [], Reader._forward

    def counted(self, past, row, new, *rest):
        read.append(len(new.position_T))
        return forward(self, past, row, new, *rest)

    monkeypatch.setattr(Reader, "_forward", counted)
    prompts = [prompt([5, 6, 7], [20, 21]), prompt([5, 6, 7], [22, 23, 24]), prompt([8, 9], [20])]
    reader = Reader(lm, (3, 4, 11, 12), codecs.raw(lm.table_VD))
    answers = [reader.answer(prompts, 6) for _ in range(2)]
    assert answers[0] == answers[1]
    # Worked examples once, two paragraphs and three questions for each call, then what goes on of the answers.
    longest = max(map(len, answers[0]))
    steps = [sum(len(a) > n for a in answers[0]) for n in range(min(longest, 5))]
    assert read == [4, *(2 * [5 + 6, *steps])]


def test_batches_hold_every_question_once_and_whole_paragraphs_by_length(prompts):
    parts = list(batches(prompts, 4))
    assert sorted(i for part in parts for i in part) == list(range(len(prompts.prompts)))
    assert max(map(len, parts)) <= 4
    homes = [{prompts.prompts[i].context_T for i in part} for part in parts]
    assert sum(map(len, homes)) == len(set().union(*homes))
    assert [len(list(part)) for part in batches(prompts, 1)] == [1] * len(prompts.prompts)
    # Six questions on three paragraphs: a batch is filled to its size, short paragraphs first.
    assert [len(part) for part in parts] == [4, 2]
    sizes = [len(prompts.prompts[i].context_T) for part in parts for i in part]
    assert sizes == sorted(sizes)


def test_rows_of_another_precision_are_refused(lm):
    with pytest.raises(TypeError, match="float64"):
        Reader(lm, (3,), lambda ids: lm.table_VD[ids].double())


def tiny_gemma(window=64):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=500, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=24, max_position_embeddings=256, initializer_range=0.3, sliding_window=window, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def tiny_gemma_with_short_windows():
    return tiny_gemma(3)


def tiny_mistral_with_short_windows():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=500, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=24, max_position_embeddings=256, initializer_range=0.3, sliding_window=3, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return MistralForCausalLM(config)


def tiny_granite():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=500, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=256, initializer_range=0.3, embedding_multiplier=12.0, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GraniteForCausalLM(config)


def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=500,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=256,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@pytest.mark.parametrize(
    "model",
    [tiny_gemma, tiny_gemma_with_short_windows, tiny_mistral_with_short_windows, tiny_granite, tiny_gpt2],
    ids=lambda f: f.__name__,
)
def test_models_that_scale_add_positions_or_have_windows_read_rows_as_they_read_ids(model):
    lm = wrap(model(), make_tokenizer())
    prompts = [prompt([5, 6, 7, 8], [20, 21]), prompt([9], [22, 23, 24])]
    answers = Reader(lm, (3, 4), codecs.raw(lm.table_VD)).answer(prompts, 4)
    assert answers == Reader(lm, (3, 4), None).answer(prompts, 4)
    assert answers == [alone(lm, [3, 4, *p.asked_T], 4) for p in prompts]


def test_models_with_embeddings_in_every_layer_are_refused():
    model = tiny_llama(500)
    model.config.hidden_size_per_layer_input = 8
    with pytest.raises(UserError, match="into every layer"):
        wrap(model, make_tokenizer())


def test_models_that_cannot_read_questions_in_one_row_are_refused():
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=500, hidden_size=16, n_layer=1, n_head=2))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=500, hidden_size=16, state_size=4, num_hidden_layers=1))
    for model, lacks in ((bloom, "takes no position_ids,"), (mamba, "takes no position_ids nor past_key_values,")):
        with pytest.raises(UserError, match=lacks):
            wrap(model, make_tokenizer())


def test_what_cannot_be_loaded(tmp_path, folder):
    for name, word in (
        (str(tmp_path), "no config.json"),
        ("/nowhere", "no such file"),
        ("nobody/nothing", "cannot be read as a causal language model"),
    ):
        with pytest.raises(UserError, match=word):
            load_language_model(Reading(model=name), "cpu")


def test_a_model_is_loaded_once(reading):
    assert load_language_model(reading, "cpu") is load_language_model(reading, "cpu")


def test_half_precision_reads_its_own_rows(reading):
    lm = load_language_model(replace(reading, dtype="bfloat16"), "cpu")
    assert lm.table_VD.dtype == torch.bfloat16
    answers = Reader(lm, (3,), lambda ids: lm.table_VD[ids]).answer([prompt([5, 6], [20])], 3)
    assert answers == Reader(lm, (3,), None).answer([prompt([5, 6], [20])], 3)


# ------------------------------------------------------------------------------------------------------- self-check
@pytest.fixture
def harness(lm, prompts, reading):
    return Harness(lm, prompts, reading)


def test_every_check_holds_of_a_sound_harness(lm, prompts, reading):
    assert set(run_checks(lm, prompts, reading).values()) == {""}


def test_each_check_fails_when_what_it_names_is_broken(harness, monkeypatch, lm, reading, prompts):
    from latentwire_adapter import selfcheck as checks

    def everything_before(new, row):
        place = torch.arange(len(row.position_T))
        return place <= place[-len(new.position_T) :, None]

    with monkeypatch.context() as patch:  # other prompts are attended
        patch.setattr(reading_rows, "visible", everything_before)
        assert "beside another" in checks.check_mask_and_positions(harness)
        assert checks.check_grouping(harness)
    forward = Reader._forward
    with monkeypatch.context() as patch:  # positions go on through the row
        place = lambda new, row: len(row.position_T) + torch.arange(len(new.position_T))  # noqa: E731
        patch.setattr(
            Reader,
            "_forward",
            lambda self, past, row, new, *rest: forward(
                self, past, row, replace(new, position_T=place(new, row)), *rest
            ),
        )
        assert "beside another" in checks.check_mask_and_positions(harness)
    with monkeypatch.context() as patch:  # rows that are not the model's
        patch.setattr(harness, "uncompressed", None)  # nothing has been read yet
        patch.setattr(harness, "raw", lambda ids: lm.table_VD[ids].roll(1, 0) * 2)
        assert "by generate" in checks.check_plain_generation(harness)
    with monkeypatch.context() as patch:  # an adapter that is no identity
        patch.setattr(checks.Adapter, "forward", lambda self, z: z.roll(1, -1))
        assert "through the identity" in checks.check_identity_adapter(harness)
    with monkeypatch.context() as patch:  # a silent cast
        patch.setattr(reading_rows, "in_precision_of", lambda lm, rows: rows.to(lm.table_VD.dtype))
        assert "were taken" in checks.check_dtype(harness)
    with monkeypatch.context() as patch:  # truncation from the right, question and all
        whole = checks.build_prompts

        def cut_right(*arguments):
            made = whole(*arguments)
            return replace(made, prompts=tuple(replace(p, question_T=p.question_T[:3]) for p in made.prompts))

        patch.setattr(checks, "build_prompts", cut_right)
        assert "is left" in checks.check_truncation(harness)
    with monkeypatch.context() as patch:
        patch.setattr(harness, "uncompressed", None)
        patch.setattr(harness, "answers", lambda *a: [[], [], [1]])
        assert "67%" in checks.check_empty_answers(harness)
    mixed = checks.check_leak(harness, lambda ids: lm.table_VD[ids] + lm.table_VD[ids].mean(0))
    assert "moved" in mixed
    other = Harness(replace(lm, table_VD=lm.table_VD * 2), prompts, reading)
    assert "other rows" in checks.check_table(other)


def test_a_failing_check_is_named():
    from latentwire_adapter.selfcheck import demand

    demand({"table": "", "leak": ""})
    with pytest.raises(UserError, match=r"^selfcheck leak: rows moved; nothing is measured"):
        demand({"table": "", "leak": "rows moved"})


# ------------------------------------------------------------------------------------------ a tokenizer of another model
@pytest.fixture
def smaller(tmp_path, reading):
    """A model with fewer embeddings than its tokenizer has tokens."""
    tiny_llama(300).save_pretrained(tmp_path / "smaller")
    make_tokenizer().save_pretrained(tmp_path / "smaller")
    return replace(reading, model=str(tmp_path / "smaller"))


def test_a_tokenizer_of_another_model_is_one_sentence(smaller, make, tmp_path):
    named = r"^--model: '.*smaller': the tokenizer knows \d+ tokens and the model 300: .* stands in the "
    with pytest.raises(UserError, match=named + "scored questions"):
        make("evaluate", EvaluateConfig(**vars(smaller)), tmp_path / "e")
    fit = FitConfig(**vars(smaller), samples=3, fit_text=None)
    with pytest.raises(UserError, match=named + "training questions"):
        make("fit", fit, tmp_path / "f")


def test_so_is_one_that_makes_such_tokens_of_further_text_or_of_answers(lm, prompts, small, tmp_path):
    config = small(samples=1)
    types = max(tokens_of(training_prompts(config, lm.tokenizer, lm.context, 1))) + 1
    assert training_counts(config, lm.tokenizer, types, lm.context)[0].shape == (types,)
    (tmp_path / "t.txt").write_text(lm.tokenizer.decode(list(range(1, len(lm.tokenizer)))).replace("\0", " "))
    with pytest.raises(UserError, match=rf"the model {types}: .* stands in the text of .*t.txt"):
        training_counts(replace(config, fit_text=str(tmp_path / "t.txt")), lm.tokenizer, types, lm.context)
    answers = [lm.tokenizer(f" {p.question.answer}\n", add_special_tokens=False)["input_ids"] for p in prompts.prompts]
    largest = max(map(max, answers))
    few = replace(lm, table_VD=lm.table_VD[:largest])
    with pytest.raises(UserError, match=rf"the model {largest}: .* stands in the training answers"):
        PromptLosses(few, prompts.prompts, prompts.prefix_T, "answer_ce")
    PromptLosses(few, prompts.prompts, prompts.prefix_T, "prompt_ppl")


# -------------------------------------------------------------------------------------------- half precision's ties
def test_half_precision_may_break_ties_and_single_may_not(lm, prompts, reading):
    """Answers that go apart at close logits are the same in bfloat16; at distant ones, or in float32, they are not."""
    half = load_language_model(replace(reading, dtype="bfloat16"), "cpu")
    for model, close_holds in ((half, True), (lm, False)):
        h = Harness(model, prompts, reading)
        ids_1T = torch.tensor([[*prompts.prefix_T, *prompts.prompts[0].asked_T]])
        logits_V = model.model(input_ids=ids_1T).logits[0, -1].float()
        logits_V[sorted(model.ends)] = -torch.inf
        best, *_, worst = logits_V.argsort(descending=True).tolist()[: -len(model.ends)]
        gaps_V = (logits_V - logits_V[best]).abs()
        gaps_V[best] = torch.inf
        second = int(gaps_V.argmin())
        near = gaps_V[second] / logits_V[torch.isfinite(logits_V)].abs().max() < TIE[torch.bfloat16]
        assert (h.same([[best]], [[second]], "a", "b") == "") is (close_holds and bool(near))
        assert "question 0 is answered" in h.same([[best]], [[worst]], "a", "b")
        assert h.same([[best]], [[best]], "a", "b") == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_checks_hold_of_a_sound_harness_in_half_precision(reading, dtype):
    config = replace(reading, dtype=dtype)
    lm = load_language_model(config, "cpu")
    assert set(run_checks(lm, scored_prompts(config, lm.tokenizer, lm.context), config).values()) == {""}
