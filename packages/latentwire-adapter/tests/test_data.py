"""Paragraphs, prompts, counts."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentwire_adapter.config import Reading
from latentwire_adapter.data import (
    CUE,
    build_prompts,
    count_tokens,
    fewer_tokens,
    held_out_types,
    load_squad_subset,
    read_questions,
    scored_prompts,
    shown,
    shuffled_contexts,
    training_counts,
    training_prompts,
    without_contexts,
    worked_examples,
)
from latentwire_adapter.texts import life_sketches
from studycore.errors import UserError


def test_no_wording_and_no_question_stands_in_two_splits():
    """By their texts: two numbers of a wording may have the same one."""
    for part in (1, 2):
        texts = {
            split: {fact[part][way] for fact in life_sketches.FACT.values() for way in ways}
            for split, ways in life_sketches.WORDINGS.items()
        }
        for one, other in itertools.combinations(texts, 2):
            assert not texts[one] & texts[other], (one, other)


@pytest.mark.parametrize("split", life_sketches.SPLITS)
def test_answers_are_spans_and_every_question_is_answered_once(split):
    for i in range(60):
        entry = life_sketches.paragraph(split, i)
        assert 5 <= len(entry["qas"]) <= 8
        for asked in entry["qas"]:
            (answer,) = asked["answers"]
            assert entry["context"][answer["answer_start"] :].startswith(answer["text"])
        answers = [asked["answers"][0]["text"] for asked in entry["qas"]]
        assert len(set(answers)) == len(answers)


def test_splits_share_no_value_name_or_wording():
    parts = {
        split: {(kind, word) for kind, words in life_sketches.values(split).items() for word in words}
        for split in life_sketches.SPLITS
    }
    words = {split: {word for _, word in part} for split, part in parts.items()}
    assert not words["train"] & words["validation"]
    assert not words["train"] & words["development"]
    assert not words["development"] & words["validation"]
    assert min(len(life_sketches.values(split)[kind]) for split in words for kind in life_sketches.values(split)) >= 5
    used = [set(way) for way in life_sketches.WORDINGS.values()]
    assert sorted(number for way in used for number in way) == [0, 1, 2, 3, 4]
    total = sum(len(values) for part in [life_sketches.values(s) for s in words] for values in part.values())
    assert total > 1500


def test_a_paragraph_is_a_function_of_split_and_index():
    assert life_sketches.paragraph("train", 5) == life_sketches.paragraph("train", 5)
    contexts = {life_sketches.paragraph("train", i)["context"] for i in range(200)}
    assert len(contexts) == 200


def test_parts_of_a_prompt_are_the_tokens_of_the_whole(reading, lm, prompts):
    examples = worked_examples(reading, read_questions(reading, "validation", 6, 2, 0))
    for prompt in prompts.prompts:
        q = prompt.question
        text = f"{shown(examples)}Context: {q.context}\nQuestion: {q.question}\n{CUE}"
        whole = lm.tokenizer(text)["input_ids"]
        assert list(prompts.prefix_T + prompt.context_T + prompt.question_T) == whole
        assert lm.tokenizer.decode(prompt.question_T) == f"\nQuestion: {q.question}\n{CUE}"


def test_the_chat_template_stands_around_it(reading, lm):
    lm.tokenizer.chat_template = "{% for m in messages %}<user>{{ m['content'] }}</user>{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
    try:
        chat = scored_prompts(replace(reading, chat_template=True), lm.tokenizer, lm.context)
    finally:
        lm.tokenizer.chat_template = None
    assert lm.tokenizer.decode(chat.prefix_T).startswith("<user>Context:")
    assert lm.tokenizer.decode(chat.prompts[0].question_T).endswith(f"{CUE}</user><model>")


def test_truncation_takes_the_paragraph_alone(reading, lm):
    questions = read_questions(reading, "validation", 2, 1, 0)
    plain = build_prompts(reading, lm.tokenizer, questions, [], 1024).prompts[0]
    room = len(plain.question_T) + 7
    cut = build_prompts(replace(reading, max_length=room), lm.tokenizer, questions, [], 1024).prompts[0]
    assert cut.question_T == plain.question_T
    assert cut.context_T == plain.context_T[:7]
    assert cut.cut == len(plain.context_T) - 7
    with pytest.raises(UserError, match="exceed 40 tokens"):
        build_prompts(replace(reading, max_length=3), lm.tokenizer, questions, [], 40)


def test_room_is_left_for_examples_question_and_answer_to_the_last_token(reading, lm):
    questions = read_questions(reading, "validation", 2, 1, 0)
    examples = worked_examples(reading, questions)
    plain = build_prompts(reading, lm.tokenizer, questions[:1], examples, 4096)
    (whole,) = plain.prompts
    assert whole.cut == 0
    least = len(plain.prefix_T) + len(whole.question_T) + reading.max_new_tokens
    for more in (0, 7):
        (cut,) = build_prompts(reading, lm.tokenizer, questions[:1], examples, least + more).prompts
        assert cut.context_T == whole.context_T[:more]
        assert cut.cut == len(whole.context_T) - more
    with pytest.raises(UserError, match="exceed"):
        build_prompts(reading, lm.tokenizer, questions[:1], examples, least - 1)


def test_the_fingerprint_is_of_tokens_and_answers(reading, lm):
    questions = read_questions(reading, "validation", 2, 1, 0)
    changes = [
        questions, questions[::-1], [replace(questions[0], answers=("other",)), questions[1]],
        [replace(questions[0], question="Other?"), questions[1]],
    ]  # fmt: skip
    prints = [build_prompts(reading, lm.tokenizer, asked, [], 1024).fingerprint for asked in changes]
    assert len(set(prints)) == 4
    assert build_prompts(reading, lm.tokenizer, questions, [], 1024).fingerprint == prints[0]


def test_paragraphs_of_a_file_come_in_an_order_of_the_seed(squad_file):
    orders = []
    for seed in (0, 1):
        chosen = read_questions(Reading(dataset=str(squad_file)), "x", 1000, None, seed)
        order = list(dict.fromkeys(q.paragraph for q in chosen))
        assert [q.paragraph for q in chosen] == [name for name in order for _ in range(3)]
        orders.append(order)
    assert sorted(orders[0]) == sorted(orders[1])
    assert sorted(orders[0]) != orders[0] != orders[1] != sorted(orders[1])


def test_examples_from_the_scored_file_are_other_paragraphs_with_other_answers(squad_file, tmp_path):
    config = Reading(dataset=str(squad_file), examples=4)
    scored = read_questions(config, "x", 6, 1, 0)
    examples = worked_examples(config, scored)
    assert len(examples) == 4
    assert not {q.context for q in scored} & {q.context for asked in examples for q in asked}
    entry = {"context": "Paris.", "qas": [{"id": 1, "question": "?", "answers": [{"text": "PARIS"}]}]}
    (tmp_path / "one.json").write_text(json.dumps({"data": [{"paragraphs": [entry]}]}))
    one = replace(config, dataset=str(tmp_path / "one.json"), examples=1)
    with pytest.raises(UserError, match="no more than 0 paragraphs"):
        worked_examples(one, [replace(scored[0], answers=("Paris",))])
    assert worked_examples(one, scored)[0][0].answer == "PARIS"


def test_worked_examples_answer_nothing_that_is_scored(reading):
    scored = read_questions(reading, "validation", 200, 4, 0)
    right = {answer for question in scored for answer in question.answers}
    examples = worked_examples(replace(reading, examples=4), scored)
    assert len(examples) == 4
    assert not right & {q.answer for asked in examples for q in asked}
    assert all(len({q.context for q in asked}) == 1 for asked in examples)


def test_controls(prompts, reading):
    moved = shuffled_contexts(prompts)
    for before, after in zip(prompts.prompts, moved.prompts, strict=True):
        assert after.question == before.question
        assert after.context_T != before.context_T
    assert sorted({p.context_T for p in moved.prompts}) == sorted({p.context_T for p in prompts.prompts})
    assert all(p.context_T == () and p.question_T for p in without_contexts(prompts).prompts)


def test_fewer_tokens_keeps_the_rarest_of_the_paragraph_in_their_order_at_its_bytes(prompts):
    counts_V = torch.arange(500.0)
    for ratio in (2.0, 7.0, 16.0):  # all paragraphs together have their bytes, to less than a token
        lengths = {
            p.context_T: len(q.context_T)
            for p, q in zip(prompts.prompts, fewer_tokens(prompts, ratio, counts_V).prompts, strict=True)
        }
        assert 0 <= sum(map(len, lengths)) / ratio - sum(lengths.values()) < 1
    for before, after in zip(prompts.prompts, fewer_tokens(prompts, 2.0, counts_V).prompts, strict=True):
        assert after.question_T == before.question_T
        assert abs(len(after.context_T) - len(before.context_T) / 2) < 1
        kept = list(after.context_T)
        assert max(kept) <= sorted(before.context_T)[len(kept) - 1]
        positions = iter(before.context_T)
        assert all(token in positions for token in kept)
    assert all(p.context_T == () for p in fewer_tokens(prompts, 1000.0, counts_V).prompts)


def test_counts():
    assert count_tokens([[1, 1, 3], [3]], 5).tolist() == [0, 2, 0, 2, 0]


def test_held_out_types_leave_the_most_frequent_and_are_always_the_same():
    counts_V = torch.cat([torch.full((100,), 50.0), torch.ones(4000)])
    held_V = held_out_types(counts_V, 0.2, 100)
    assert not held_V[:100].any()
    assert 0.16 < held_V[100:].double().mean() < 0.24
    assert torch.equal(held_V[:100], held_out_types(counts_V.flip(0), 0.2, 0)[:100] & False)
    assert not held_out_types(counts_V, 0.0, 100).any()
    assert held_out_types(counts_V, 1.0, 100).nonzero().flatten().tolist() == list(range(100, 4100))
    other = held_out_types(torch.rand(4100, generator=torch.Generator().manual_seed(0)), 0.2, 0)
    assert torch.equal(other[100:], held_out_types(counts_V, 0.2, 0)[100:])


def test_training_prompts_hold_none_of_the_scored_paragraphs(small, lm, squad_file):
    config = small(dataset=str(squad_file), examples=0)
    scored = {p.question.context for p in scored_prompts(config, lm.tokenizer, 1024).prompts}
    taught = training_prompts(config, lm.tokenizer, 1024, 100)
    assert len(taught.prompts) == 12 * 3 - 3 * len(scored)
    assert not scored & {p.question.context for p in taught.prompts}
    # As many as asked for, although scored ones are left out first.
    assert len(training_prompts(config, lm.tokenizer, 1024, 20).prompts) == 20


def test_a_file_in_squads_format_reads_as_what_it_was_made_from(squad_file):
    questions = read_questions(Reading(dataset=str(squad_file)), "x", 1000, None, 0)
    made = [q for i in range(12) for q in life_sketches.paragraph("train", i, 3)["qas"]]
    assert {q.id: q.answers for q in questions} == {q["id"]: (q["answers"][0]["text"],) for q in made}
    capped = read_questions(Reading(dataset=str(squad_file)), "x", 5, 1, 0)
    assert len(capped) == len({q.paragraph for q in capped}) == 5
    assert capped == read_questions(Reading(dataset=str(squad_file)), "x", 5, 1, 0)
    assert capped != read_questions(Reading(dataset=str(squad_file)), "x", 5, 1, 1)


def test_questions_without_an_answer(tmp_path):
    asked = {"id": 1, "question": " Who? ", "answers": [{"text": "x", "answer_start": 0}], "is_impossible": True}
    path = tmp_path / "v2.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "x y", "qas": [asked]}]}]}))
    (question,) = read_questions(Reading(dataset=str(path)), "validation", 5, None, 0)
    assert question.answers == ()
    assert (question.id, question.question) == ("1", "Who?")
    path.write_text('{"data": [{"paragraphs": [{"text": 1}]}]}')
    with pytest.raises(UserError, match="SQuAD's JSON format"):
        read_questions(Reading(dataset=str(path)), "validation", 5, None, 0)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("answer", 7, "the answer of paragraph 1, question 2 is no text: 7"),
        ("answer", None, "the answer of paragraph 1, question 2 is no text: null"),
        ("context", None, "the context of paragraph 1 is no text: null"),
        ("question", ["Who?"], 'the question of paragraph 1, question 2 is no text: ["Who?"]'),
    ],
)
def test_what_should_be_text_and_is_not_is_named_with_its_place(squad_file, tmp_path, where, value, said):
    content = json.loads(squad_file.read_text())
    paragraph = [entry for article in content["data"] for entry in article["paragraphs"]][1]
    if where == "context":
        paragraph["context"] = value
    elif where == "question":
        paragraph["qas"][2]["question"] = value
    else:
        paragraph["qas"][2]["answers"][0]["text"] = value
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_questions(Reading(dataset=str(path)), "x", 5, None, 0)
    assert str(caught.value).startswith(f"--dataset: {said}; give ")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("context", None, "the context of row 1 of train is no text"),
        ("answers", {"text": [3]}, "the answer of row 1 of train is no text: 3"),
        ("answers", {"text": None}, "the answers of row 1 of train are no list: null"),
    ],
)
def test_so_is_a_row_of_a_hub_dataset(monkeypatch, column, value, said):
    row = {"id": "a", "context": "One.", "question": "q", "answers": {"text": ["x"]}}
    monkeypatch.setattr("latentwire_adapter.data.hub_rows", lambda *args, **kwargs: [row, row | {column: value}])
    with pytest.raises(UserError, match=rf"^--dataset: {said}"):
        read_questions(Reading(dataset="nobody/nothing"), "train", 5, None, 0)


def test_a_hub_dataset_is_read_through_datasets(monkeypatch):
    import datasets

    rows = {
        "id": ["a", "b"],
        "context": ["One.", "One."],
        "question": ["q1", "q2"],
        "answers": [{"text": ["x", "y"]}, {"text": []}],
    }
    asked = {}

    def load_dataset(name, subset, split, revision, streaming):
        asked.update(name=name, split=split, revision=revision)
        return datasets.Dataset.from_dict(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    questions = read_questions(Reading(dataset="rajpurkar/squad_v2", dataset_revision="abc"), "validation", 9, None, 0)
    assert asked == {"name": "rajpurkar/squad_v2", "split": "validation", "revision": "abc"}
    assert {q.id: q.answers for q in questions} == {"a": ("x", "y"), "b": ()}
    assert len({q.paragraph for q in questions}) == 1
    del rows["answers"]
    with pytest.raises(UserError, match="'answers'"):
        read_questions(Reading(dataset="rajpurkar/squad"), "validation", 9, None, 0)


def test_load_squad_subset_needs_no_hub_and_a_number():
    items = load_squad_subset("train", 10)
    assert len(items) == 10
    assert load_squad_subset("train", 10) == items
    with pytest.raises(UserError, match="samples"):
        load_squad_subset("train")


def test_further_text_has_its_share_of_the_count_however_long_it_is(small, lm, tmp_path):
    alone, _ = training_counts(small(), lm.tokenizer, 500, 1024)
    (tmp_path / "text.txt").write_text("a b c zzz\n" * 500)
    both, about = training_counts(
        small(fit_text=str(tmp_path / "text.txt"), fit_text_share=0.25), lm.tokenizer, 500, 1024
    )
    assert float(alone.sum() / both.sum()) == pytest.approx(0.75)
    assert (both >= alone).all()
    assert about["positions"] > 2 * about["prompt_tokens"]
    with pytest.raises(UserError, match="fit_text: 'x'"):
        training_counts(small(fit_text="x"), lm.tokenizer, 500, 1024)


def test_the_fresh_wordings_share_no_value_with_the_sketches_and_leave_paragraphs_for_examples():
    """What README's figure on wordings that nobody edited is of; years alone are those of the sketches."""
    config = Reading(dataset=str(Path(__file__).parent / "fresh_wordings.json"), eval_samples=256)
    questions = read_questions(config, "validation", 1000, None, 0)
    assert (len(questions), len({q.paragraph for q in questions})) == (288, 72)
    assert all(answer in q.context for q in questions for answer in q.answers)
    of_sketches = {
        word for split in life_sketches.SPLITS for words in life_sketches.values(split).values() for word in words
    }
    assert all(q.answer not in of_sketches or q.answer.isdigit() for q in questions)
    scored = read_questions(config, "validation", config.eval_samples, config.questions_per_paragraph, 0)
    right = {answer for q in scored for answer in q.answers}
    assert len(scored) == 256
    assert not right & {q.answer for asked in worked_examples(config, scored) for q in asked}
