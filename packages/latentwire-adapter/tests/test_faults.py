"""What reaches the study from outside and would make wrong numbers, a traceback, or work without an end; what its log says."""

import json
import os
import unicodedata
from dataclasses import replace

import pytest
import torch
from conftest import CPU
from safetensors.torch import load_file, save_file
from test_runs import of

from latentwire_adapter import selfcheck, train, verbs
from latentwire_adapter.cli import STUDY
from latentwire_adapter.config import EvaluateConfig, FitConfig, Options, Phase2Config, Reading, SelfcheckConfig
from latentwire_adapter.data import (
    build_prompts,
    load_squad_subset,
    read_questions,
    training_counts,
    training_prompts,
    worked_examples,
)
from latentwire_adapter.fitting import TypeRows, load_fit
from latentwire_adapter.model.adapter import Adapter
from latentwire_adapter.selfcheck import CHECKS, run_checks
from latentwire_adapter.texts import life_sketches
from studycore.errors import Stopped, UserError
from studycore.execution import make_run
from studycore.files import read_json
from studycore.language.documents import as_read
from studycore.metrics_log import read_rows
from studycore.run import Run

pytestmark = pytest.mark.usefixtures("checked")


def of_phase2(small, trained, **more):
    values = {
        "phase1": str(trained),
        "ce_weight": 1.0,
        "only_below": 101.0,
        "steps": 2,
        "phase2_batch_size": 2,
        "log_every": 1,
    }
    return of(Phase2Config, small(), **values | more)


# ------------------------------------------------------------------------------------------------------- the same text
@pytest.mark.parametrize(
    "altered",
    [
        lambda text: f"{text} ",
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.replace(" was ", " \ufeffwas ").replace(" is ", " \u200bis "),
        lambda text: text.replace(" ", "  ", 1),
    ],
    ids=["trailing blank", "accents in parts", "marks inside", "spacing"],
)
def test_a_scored_paragraph_in_other_spelling_is_neither_taught_nor_shown(altered, small, lm, tmp_path):
    """Every paragraph stands twice in the file, and one question of it is scored."""
    (article,) = life_sketches.squad("train", 8, 3)["data"]
    own = [entry | {"context": f"Caf\xe9. {entry['context']}"} for entry in article["paragraphs"]]
    twins = [
        {
            "context": altered(entry["context"]),
            "qas": [asked | {"id": f"{asked['id']} again"} for asked in entry["qas"]],
        }
        for entry in own
    ]
    assert all(one["context"] != other["context"] for one, other in zip(own, twins, strict=True))
    path = tmp_path / "twice.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [*own, *twins]}]}))
    for seed in range(4):
        config = small(dataset=str(path), eval_samples=5, questions_per_paragraph=1, examples=2, data_seed=seed)
        scored = read_questions(config, config.split, 5, 1, seed)
        known = {as_read(question.context) for question in scored}
        taught = training_prompts(config, lm.tokenizer, 1024, 1000).prompts
        assert taught
        assert not known & {as_read(prompt.question.context) for prompt in taught}
        assert not known & {as_read(q.context) for asked in worked_examples(config, scored) for q in asked}


# --------------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("verb", "cls", "field"),
    [
        ("evaluate", EvaluateConfig, "eval_samples"), ("selfcheck", SelfcheckConfig, "eval_samples"),
        ("fit", FitConfig, "samples"), ("fit", FitConfig, "eval_samples"),
    ],
)  # fmt: skip
def test_more_sketches_than_memory_holds_are_refused_before_one_is_made(verb, cls, field, make, small, tmp_path):
    config = replace(of(cls, small()), **{field: 10**10})
    with pytest.raises(
        UserError, match=rf"^{field}: 10,000,000,000 questions take [\d,]+ GiB of memory and .*; lower it$"
    ):
        make(verb, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_so_are_those_of_the_original_studys_function():
    with pytest.raises(UserError, match=r"^samples: 10,000,000,000 questions take"):
        load_squad_subset("train", 10**10)


def test_sketches_are_made_once_each_in_their_order(monkeypatch):
    asked, squad = [], life_sketches.squad
    monkeypatch.setattr(
        life_sketches, "squad", lambda split, n, per, first: asked.append((first, n)) or squad(split, n, per, first)
    )
    questions = read_questions(Reading(), "train", 700, 2, 0)
    assert [question.paragraph for question in questions] == [f"paragraph {i // 2}" for i in range(700)]
    assert asked == [(first, 64) for first in range(0, 350, 64)]


def test_two_questions_of_one_id_are_refused(tmp_path):
    """Answers are kept by id: an arm that takes over another's would give both the last one's."""
    content = life_sketches.squad("development", 2, 3, 0)
    asked = [question for article in content["data"] for entry in article["paragraphs"] for question in entry["qas"]]
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert len(read_questions(Reading(dataset=str(tmp_path / "x.json")), "validation", 6, None, 0)) == 6
    asked[4]["id"] = asked[1]["id"]
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"x\.json' has the question id '{asked[1]['id']}' more than once; give each"):
        read_questions(Reading(dataset=str(tmp_path / "x.json")), "validation", 6, None, 0)


def test_phase2_makes_no_more_prompts_than_there_are_training_questions(trained, make, small, tmp_path, monkeypatch):
    """However many steps there are: after `samples` of them it begins again."""
    asked, real = [], train.training_prompts
    monkeypatch.setattr(train, "training_prompts", lambda *a: asked.append(a[3]) or real(*a[:3], min(a[3], 30), *a[4:]))
    monkeypatch.setattr(train, "train", lambda *a: asked.append(a[3]) or (_ for _ in ()).throw(Stopped("here")))
    for steps in (10**7, 3):
        with pytest.raises(Stopped):
            make("phase2", of_phase2(small, trained, steps=steps), tmp_path / f"{steps}")
    assert asked[::2] == [30, 6]
    assert [objective.steps for objective in asked[1::2]] == [10**7, 3]
    assert [asked[1].epoch(step) for step in (0, 14, 15, 30)] == [0, 0, 1, 2]


# ---------------------------------------------------------------------------------------------------------- tracebacks
@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "chat_template: '.*' has none"),
        ("{{ raise_exception('roles must alternate') }}", r"cannot be read as a template of one question \(TemplateError: roles must alternate\)"),
        ("{% for m in %}", r"cannot be read as a template of one question \(TemplateSyntaxError"),
        ("<s>{{ messages[0]['content'] | upper }}", "alters what is asked"),
        ("{{ bos_token }}", "alters what is asked"),
    ],
)  # fmt: skip
def test_a_chat_template_that_does_not_serve_is_one_sentence(template, said, reading, lm, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "chat_template", template)
    questions = read_questions(reading, "validation", 2, 1, 0)
    with pytest.raises(
        UserError, match=rf"^chat_template: .*{said.removeprefix('chat_template: ')}.*; give --chat_template false"
    ):
        build_prompts(replace(reading, chat_template=True), lm.tokenizer, questions, [], 1024)


@pytest.mark.parametrize("text", ["\n \n\t\n", "\ufeff\n", "   "])
def test_further_text_of_blanks_is_refused(text, small, lm, tmp_path):
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"^fit_text: '.*t.txt' has no token of text; give another file"):
        training_counts(small(fit_text=str(tmp_path / "t.txt")), lm.tokenizer, 500, 1024)


def test_a_further_text_that_is_not_there_says_whence_its_path_is_meant(small, lm):
    with pytest.raises(
        UserError, match=r"^fit_text: 'x' is no file; .* from where the command is called or the run began"
    ):
        training_counts(small(fit_text="x"), lm.tokenizer, 500, 1024)


@pytest.mark.parametrize("answers", [{"answer_start": [0]}, {}, 7])
def test_answers_of_a_hub_dataset_without_texts_are_shown(answers, monkeypatch):
    row = {"id": "a", "context": "One.", "question": "q", "answers": answers}
    monkeypatch.setattr("latentwire_adapter.data.hub_rows", lambda *args, **kwargs: [row])
    with pytest.raises(UserError) as caught:
        read_questions(Reading(dataset="nobody/nothing"), "train", 5, None, 0)
    assert f"the answers of row 0 of train are no list: {json.dumps(answers)}" in str(caught.value)


def junk(path):
    path.write_bytes(b'{"half": ')


def changed(**values):
    """Tensors of a file exchanged, or left out."""

    def change(path):
        kept = load_file(path) | values
        save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, path)

    return change


def said(**metrics):
    return lambda path: path.write_text(json.dumps({"metrics": metrics, "claims": []}))


def other_adapter(path):
    Adapter(5, 32, 4, 0.0).save_pretrained(path.parent)


@pytest.mark.parametrize(
    ("verb", "name", "harm", "reason"),
    [
        ("evaluate", "counts.safetensors", junk, "cannot be read as counts of a training text"),
        ("evaluate", "counts.safetensors", os.remove, "holds no counts.safetensors"),
        ("evaluate", "counts.safetensors", changed(held_out=None), r"cannot be read as counts of a training text \(KeyError: 'held_out'\)"),
        ("evaluate", "counts.safetensors", changed(counts=torch.ones(7)), "counts 7 token types and the model has 500"),
        ("evaluate", "compressor/config.json", junk, "not valid JSON"),
        ("evaluate", "adapter/model.safetensors", junk, "cannot be read as a saved Adapter"),
        ("evaluate", "adapter/config.json", other_adapter, "has an adapter from 5 to 32 dimensions and codes of 8 of 32"),
        ("phase2", "adapter/config.json", other_adapter, "has an adapter from 5 to 32 dimensions and codes of 8 of 32"),
        ("phase2", "results.json", junk, "not valid JSON"),
        ("phase2", "results.json", os.remove, "there is no such file"),
        ("phase2", "results.json", said(em=1.0), r"cannot be read as results of a phase 1 run \(KeyError: 'f1'\)"),
        ("phase2", "results.json", said(f1="good"), "cannot be read as results of a phase 1 run"),
    ],
)  # fmt: skip
def test_a_phase1_folder_that_is_damaged_or_another_is_one_sentence(
    verb, name, harm, reason, trained, make, small, tmp_path
):
    harm(trained / name)
    config = (
        of_phase2(small, trained)
        if verb == "phase2"
        else of(EvaluateConfig, small(), arm="adapter", phase1=str(trained))
    )
    with pytest.raises(UserError, match=rf"{trained}.*{reason}"):
        make(verb, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------- what the log says
def rows_of(folder, kind="train_step"):
    return [row for row in read_rows(folder / "metrics.jsonl") if row["type"] == kind]


def test_the_logged_loss_is_what_the_updates_minimise(trained, make, small, lm, tmp_path):
    """Of all rows, with the weights of the adapter's training: phase 2 finds the same in a batch of all of them."""
    data = TypeRows(lm, load_fit(trained, lm), small())
    w_U = data.w_U / data.w_U.sum()
    last = Adapter.from_pretrained(trained / "adapter").eval()
    with torch.no_grad():
        error_U = (last(data.z_UK) - data.x_UD).square().sum(1)
    spread_U = (data.x_UD - data.mean_D).square().sum(1)
    expected = float(w_U @ error_U / (w_U @ spread_U))
    row = rows_of(trained)[-1]
    assert row["loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(row["loss"] / row["nmse"] - 1) > 0.01, "weights by counts give another figure"
    after = make("phase2", of_phase2(small, trained, batch_size=10_000), tmp_path / "two")
    assert rows_of(after)[0]["recon_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_last_row_stands_at_the_last_update_and_epoch(trained):
    (row,), last = rows_of(trained, "full_eval"), rows_of(trained)[-1]
    assert (row["epoch"], row["step"]) == (4, last["step"]) == (last["epoch"], last["step"])


def test_phase2_logs_its_reconstruction_as_the_original_study_did(trained, small, tmp_path):
    log = tmp_path / "log.jsonl"
    options = Options(**vars(CPU) | {"diagnostic_log": str(log)})
    config = of_phase2(small, trained, eval_every=1, steps=15, samples=10)
    make_run(STUDY, "phase2", config, tmp_path / "run", options, ["latentwire-adapter", "phase2"], quiet=True)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    named = {"step", "epoch", "timestamp", "recon_mse", "recon_cosine_sim", "recon_rel_error"}
    of_kind = {
        kind: [row for row in rows if row["type"] == kind] for kind in ("reconstruction", "train_step", "full_eval")
    }
    assert [row["step"] for row in of_kind["reconstruction"]] == list(range(16))
    assert all(named <= set(row) for row in of_kind["reconstruction"])
    for kind in ("reconstruction", "train_step"):  # five updates to a pass through ten questions
        assert [row["epoch"] for row in of_kind[kind]] == [row["step"] // 5 for row in of_kind[kind]]
    assert [(row["epoch"], row["step"]) for row in of_kind["full_eval"]] == [(3, 15)]


# --------------------------------------------------------------------------------------------------------- told to stop
@pytest.mark.parametrize(("verb", "least"), [("fit", 31), ("evaluate", 12), ("phase1", 42), ("phase2", 16)])
def test_long_work_outside_the_loop_heeds_a_signal(verb, least, make, small, trained, tmp_path, monkeypatch):
    """For each question that is made into tokens, and for each whose error is measured."""
    asked = []
    monkeypatch.setattr(Run, "check_stop", lambda self: asked.append(1))
    config = {
        "fit": of(FitConfig, small()), "evaluate": of(EvaluateConfig, small(), arm="linear", phase1=str(trained)),
        "phase1": small(), "phase2": of_phase2(small, trained),
    }[verb]  # fmt: skip
    make(verb, config, tmp_path / verb)
    assert len(asked) >= least


def test_so_do_the_checks_for_each_of_them_and_each_batch(lm, prompts, reading, monkeypatch, make, small, tmp_path):
    asked = []
    assert set(run_checks(lm, prompts, reading, lambda: asked.append(1)).values()) == {""}
    assert len(asked) > 2 * len(CHECKS)

    def stopped_in_the_third(*arguments):
        asked.clear()
        return run_checks(*arguments)

    def check_stop(self):
        asked.append(1)
        if len(asked) == 3:
            raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(selfcheck, "run_checks", stopped_in_the_third)
    monkeypatch.setattr(verbs, "read", lambda config, run: (lm, prompts))
    monkeypatch.setattr(Run, "check_stop", check_stop)
    with pytest.raises(Stopped):
        make("selfcheck", of(SelfcheckConfig, small()), tmp_path / "run")
    assert read_json(tmp_path / "run" / "manifest.json")["state"] == "stopped"
    assert not (tmp_path / "run" / "results.json").exists()


def test_so_does_further_text_for_each_thousand_of_its_documents(small, lm, tmp_path):
    """Counted as if it were made into tokens at once."""
    (tmp_path / "t.txt").write_text("\n\n".join(f"a b c {i % 7}" for i in range(2500)))
    asked = []
    config = small(fit_text=str(tmp_path / "t.txt"), fit_text_share=0.5)
    counts_V, about = training_counts(config, lm.tokenizer, 500, 1024, lambda: asked.append(1))
    assert len(asked) == about["prompts"] + 3
    further_V = counts_V - training_counts(small(), lm.tokenizer, 500, 1024)[0]
    (seven,) = lm.tokenizer("6", add_special_tokens=False)["input_ids"]
    assert float(further_V[seven] / further_V.sum()) > 0.02
    assert float(counts_V.sum() / further_V.sum()) == pytest.approx(2)
