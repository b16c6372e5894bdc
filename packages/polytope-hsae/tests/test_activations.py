"""Capturing from tiny models of the architectures that the configurations name, shards, labels, order."""

import numpy as np
import pytest
import torch
from conftest import job
from transformers import AutoConfig, AutoModelForCausalLM

from polytope_hsae.activations import CACHE, Sequences, gather
from polytope_hsae.concepts import Child, Hierarchy, Parent
from polytope_hsae.config import ActivationConfig, GeometryConfig
from polytope_hsae.data import CHOOSE, TEST, TRAIN, open_store
from polytope_hsae.head import head_of, load_head
from polytope_hsae.language import check_capture, final_activations, load_model, load_tokenizer
from polytope_hsae.metrics import cross_entropy
from studycore.errors import UserError
from studycore.language import wordnet
from studycore.testing.interrupted import killed_at
from studycore.testing.runs import same

SHAPES = {
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gemma": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    "gemma2": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.05},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("studycore/wordnet-lm")


@pytest.fixture(params=SHAPES)
def folder(request, tmp_path, tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **SHAPES[request.param])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def geometry(tmp_path, tokenizer):
    """A finished phase 1, as far as a capture reads it: two parents of two children."""
    words = iter(
        [" dog", " cat", " horse", " cow", " oak", " pine", " rose", " lily", " fish", " tree", " bird", " plant"]
    )
    text, parents = {}, []

    def token():
        (found,) = tokenizer(next(words), add_special_tokens=False)["input_ids"][:1]
        text[found] = tokenizer.decode([found]).strip()
        return found

    for p in range(2):
        children = tuple(Child(f"p{p}c{c}", "", ((token(),), (), (token(),))) for c in range(2))
        parents.append(Parent(f"p{p}", "", ((token(),), (), (token(),)), children, ((), ())))
    place = tmp_path / "geometry"
    place.mkdir()
    Hierarchy(tuple(parents), text).save(place / "concepts.json")
    return place


def corpus(tmp_path):
    lines = [f" the dog and the cat number {i} saw a horse under the oak" for i in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    return str(tmp_path / "text.txt")


def config_of(model, tmp_path, **changes):
    values = {"model": str(model), "source": corpus(tmp_path), "token_budget": 400, "window_length": 16, "shard_size_tokens": 100,
              "batch_size": 3, "prompts_per_concept": 1}  # fmt: skip
    return ActivationConfig(**(values | changes))


def test_the_head_reads_what_is_captured(folder):
    model = load_model(str(folder))
    ids_BT = torch.arange(12).view(2, 6)
    check_capture(model, ids_BT)
    logits = model(input_ids=ids_BT).logits.detach()
    head = head_of(model, ids_BT)
    assert (head.softcap is not None) == (model.config.model_type == "gemma2")
    torch.testing.assert_close(head.logits(final_activations(model, ids_BT)), logits, rtol=1e-4, atol=1e-4)
    # So a changed activation has the cross-entropy that the model has with it put in its place.
    x_ND = final_activations(model, ids_BT)[:, :-1].flatten(0, 1)
    theirs = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
    assert cross_entropy(x_ND, head, ids_BT[:, 1:].flatten()) == pytest.approx(float(theirs), rel=1e-5)


def test_a_head_that_does_more_than_a_product_is_refused(folder, monkeypatch):
    model = load_model(str(folder))
    ids_BT, forward = torch.arange(12).view(2, 6), model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(model, "forward", scaled)
    with pytest.raises(UserError, match=r"model.name: the logits of a \w+ are more than a product"):
        head_of(model, ids_BT)


def test_capture_writes_each_shard_once_and_labels_by_the_next_token(
    folder, tmp_path, geometry, monkeypatch, tokenizer
):
    monkeypatch.chdir(tmp_path)
    config = config_of(folder, tmp_path)
    activations = job("activations", config, tmp_path / "one", {"geometry": geometry})
    store = open_store(geometry, activations)
    assert len(store) <= 400
    index = store.split(TRAIN)[-1]
    document = store.arrays["document"]
    x_ND = store.rows(np.array([index]))
    assert x_ND.shape == (1, 16)
    tokens, following = store.arrays["token"], store.arrays["next"]
    within = (document[:-1] == document[1:]) & (document[:-1] >= 0)
    assert (following[:-1][within] == tokens[1:][within]).mean() > 0.9
    labels = store.hierarchy.labels()
    found = store.labels(np.arange(len(store)))
    words = np.where(document < 0, tokens, following)
    for i in range(len(store)):
        expected = labels.get(int(words[i]))
        assert [p for p in range(2) if found[i, p] >= 0] == ([] if expected is None else [expected[0]])
    # The last activation of a row is that of the model on the row alone.
    model = load_model(str(folder))
    sequences = gather(config, store.hierarchy, tokenizer)
    for i in (0, len(sequences.rows) - 1):
        place = sum(len(row) - first for row, first in zip(sequences.rows[: i + 1], sequences.first, strict=False)) - 1
        alone = final_activations(model, torch.tensor(sequences.rows[i])[None])[0, -1]
        torch.testing.assert_close(store.rows(np.array([place]))[0], alone, rtol=1e-4, atol=1e-4)
    written = {path: path.stat().st_mtime_ns for path in CACHE.glob("*.f32")}
    job("activations", config_of(folder, tmp_path, batch_size=4), tmp_path / "two", {"geometry": geometry})
    assert {path: path.stat().st_mtime_ns for path in CACHE.glob("*.f32")} == written
    assert "[" in store.context(int(index))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_no_activation_is_there_twice_and_a_prompts_is_that_of_its_word(
    folder, tmp_path, geometry, monkeypatch, tokenizer
):
    """So none has two labels, and none stands in two splits; texts begin alike, and prompts share their templates."""
    monkeypatch.chdir(tmp_path)
    config = config_of(folder, tmp_path, prompts_per_concept=40, token_budget=700)
    store = open_store(geometry, job("activations", config, tmp_path / "one", {"geometry": geometry}))
    x_ND = store.rows(np.arange(len(store)))
    near = torch.cdist(x_ND, x_ND) + 9 * torch.eye(len(x_ND))
    assert float(near.min()) > 1e-4
    assert len(gather(config, store.hierarchy, tokenizer).rows) > 40
    known = store.hierarchy.labels()
    for which, part in ((TRAIN, 0), (CHOOSE, 1), (TEST, 2)):
        own = store.prompts(which)
        words = store.arrays["token"][own].tolist()
        if part != 1:
            assert words, "the fixture's concepts have words for estimating and for testing"
        assert set(words) <= set(store.hierarchy.labels(part))
        assert not set(own) & set(store.sample(which, 10_000))
        for i, word in zip(own, words, strict=True):
            parent = store.labels(np.array([i]))[0].argmax()
            assert int(parent) == known[word][0]
            assert store.context(int(i)).endswith(store.hierarchy.text[word])
    assert bool((store.arrays["next"][store.arrays["document"] < 0] == -1).all())


def test_what_rows_share_is_kept_once():
    rows = [[1, 2, 3], [1, 2, 4, 5], [9], [1, 2], [1, 2, 4, 5]]
    found = Sequences(
        rows, [0, 0, 0, 1, 0], [7] * 5, [TRAIN, TEST, TRAIN, CHOOSE, TRAIN], [[i] * len(r) for i, r in enumerate(rows)]
    ).distinct()
    kept = [
        (tuple(row[: t + 1]), i)
        for row, first, (i, *_) in zip(found.rows, found.first, found.documents, strict=True)
        for t in range(first, len(row))
    ]
    assert len({prefix for prefix, _ in kept}) == len(kept)
    assert {prefix for prefix, _ in kept} == {(1, 2), (1, 2, 3), (1, 2, 4), (1, 2, 4, 5), (9,)}
    assert ((1, 2), 3) in kept, "what is kept of a prompt stays, and leaves out what begins like it"


def test_a_text_that_is_too_short_is_a_sentence(tmp_path, geometry, tokenizer):
    from polytope_hsae.concepts import load_hierarchy

    with pytest.raises(UserError, match=r"data.token_budget: the texts of .* end"):
        gather(config_of("x", tmp_path, token_budget=90_000), load_hierarchy(geometry / "concepts.json"), tokenizer)


def test_a_dry_run_times_no_more_windows_than_there_are(folder, tmp_path, monkeypatch):
    from polytope_hsae import estimate, language

    shapes = set()
    monkeypatch.setattr(language, "final_activations", lambda model, ids_BT: shapes.add(tuple(ids_BT.shape)))
    for batch_size in (3, 10**8):
        estimate._model(str(folder), config_of(folder, tmp_path, batch_size=batch_size), "cpu")
    assert shapes == {(3, 16), (25, 16)}


def test_a_tokenizer_of_another_model_is_a_sentence(tmp_path, geometry, tokenizer, monkeypatch):
    """In both jobs that read text, and where a concept's word alone is not known."""
    from polytope_hsae import extraction
    from polytope_hsae.concepts import load_hierarchy

    monkeypatch.chdir(tmp_path)
    hierarchy = load_hierarchy(geometry / "concepts.json")
    monkeypatch.setattr(wordnet, "texts", lambda split: [tokenizer.decode([len(tokenizer) - 1])])
    known = max(hierarchy.labels())
    monkeypatch.setattr(extraction, "choose_hierarchy", lambda *args: (hierarchy, {}))
    for vocabulary, where in ((known, "words of the concepts"), (known + 1, "glosses")):
        config = AutoConfig.for_model("llama", vocab_size=vocabulary, **SHAPES["llama"])
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / where)
        tokenizer.save_pretrained(tmp_path / where)
        named = (
            rf"^model.name: '.*{where}': the tokenizer knows .* and the model {vocabulary}: .* stands in the {where}"
        )
        with pytest.raises(UserError, match=named):
            job("geometry", GeometryConfig(model=str(tmp_path / where), contexts=1), tmp_path / f"g {vocabulary}")
    with pytest.raises(UserError, match=r"stands in the text of .*text.txt"):
        job(
            "activations",
            config_of(tmp_path / "words of the concepts", tmp_path),
            tmp_path / "a",
            {"geometry": geometry},
        )


def test_a_planted_store_has_exact_labels(planted):
    store = open_store(planted["geometry"], planted["activations"])
    labels = store.labels(np.arange(len(store)))
    assert labels.shape == (3000, 4)
    assert set(labels.unique().tolist()) == {-1, 0, 1, 2, 3}
    on = (labels >= 0).sum(1)
    assert (int(on.min()), int(on.max())) == (1, 3)
    sizes = [len(store.split(which)) for which in (TRAIN, CHOOSE, TEST)]
    assert sum(sizes) == 3000
    assert abs(sizes[0] - 2100) < 150
    assert store.context(0).startswith("p")


def test_a_shard_that_is_gone_is_a_sentence(planted, tmp_path):
    import shutil

    from studycore.files import read_json, write_json

    copy = tmp_path / "activations"
    shutil.copytree(planted["activations"], copy)
    write_json(copy / "index.json", read_json(copy / "index.json") | {"cache": str(tmp_path)})
    with pytest.raises(UserError, match="the shard is gone"):
        open_store(planted["geometry"], copy)


def test_a_capture_that_was_killed_goes_on_with_what_is_there(tmp_path, geometry, tokenizer, monkeypatch):
    """SIGKILL after two shards, of which neither is written again; then while one is being written."""
    import polytope_hsae.activations as module

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **SHAPES["llama"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    capture, needs = config_of(tmp_path / "model", tmp_path, shard_size_tokens=60), {"geometry": geometry}

    def capture_is_killed_at(name, count):
        cut = tmp_path / "cut"
        act = lambda: job("activations", capture, cut, needs, resume=cut.exists())  # noqa: E731
        return killed_at(module, name, count, act, before=True)

    assert capture_is_killed_at("_write", 3)
    first = {path: path.stat().st_mtime_ns for path in CACHE.glob("*.f32")}
    assert len(first) == 2
    assert capture_is_killed_at("write_atomic", 2)  # when its bytes are there, and its checksum is not
    cut = job("activations", capture, tmp_path / "cut", needs, resume=True)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    kept = {path.name: path.read_bytes() for path in CACHE.glob("*.f32")}
    assert len(kept) > 3
    for path in CACHE.glob("*"):
        path.unlink()
    whole = job("activations", capture, tmp_path / "whole", needs)
    assert {path.name: path.read_bytes() for path in CACHE.glob("*.f32")} == kept
    same(whole, cut)


WORDS = [
    "dog",
    "cat",
    "horse",
    "cow",
    "sheep",
    "bird",
    "fish",
    "tree",
    "rose",
    "oak",
    "grass",
    "flower",
    "house",
    "door",
    "window",
    "wall",
    "king",
    "queen",
    "man",
    "woman",
    "boy",
    "girl",
    "day",
    "night",
    "year",
    "water",
    "fire",
    "air",
    "stone",
    "gold",
    "hand",
    "foot",
    "head",
    "eye",
    "book",
    "word",
    "name",
    "line",
]


@pytest.mark.parametrize("folder", ["gemma", "gpt_neox"], indirect=True)
def test_all_phases_on_the_architectures_that_configurations_name(folder, tmp_path, tokenizer, monkeypatch):
    """Geometry, activations, a teacher's training and its evaluation, on a model of random weights."""
    from polytope_hsae import extraction
    from polytope_hsae.config import EvaluateConfig, GeometryConfig, TrainConfig
    from studycore.files import read_json

    ids = {w: tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in WORDS}
    tokens = [found[0] for found in ids.values() if len(found) == 1]
    text = {token: tokenizer.decode([token]).strip() for token in tokens}
    each = iter(tokens)

    def words():
        return (next(each), next(each), next(each)), (next(each),), (next(each),)

    parents = tuple(
        Parent(f"p{p}", "", words(), tuple(Child(f"p{p}c{c}", "", words()) for c in range(2)), ((), ()))
        for p in range(2)
    )
    hierarchy = Hierarchy(parents, text)
    monkeypatch.setattr(extraction, "choose_hierarchy", lambda *_: (hierarchy, {"parents": 2, "children": 4}))
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    labelled = [text[token] for token in hierarchy.labels()]
    # Words stand twice, and the head is that of the embeddings, so that weights that learnt nothing predict something.
    lines = [" " + " ".join(np.repeat(draw.choice(labelled, 6), 2)) for _ in range(150)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_output_embeddings().weight.data = model.get_input_embeddings().weight.data.clone()
    model.save_pretrained(folder)
    place = tmp_path / "geometry"
    job("geometry", GeometryConfig(str(folder), n_shuffles=3, contexts=4), place)
    capture = ActivationConfig(str(folder), source=str(tmp_path / "text.txt"), token_budget=1500, window_length=16, prompts_per_concept=1)  # fmt: skip
    needs = {
        "geometry": place,
        "activations": job("activations", capture, tmp_path / "activations", {"geometry": place}),
    }
    shape = {
        "m_top": 8,
        "topk_parent": 2,
        "m_low": 2,
        "subspace_dim": 2,
        "batch_size_acts": 64,
        "stage_a_steps": 2,
        "stage_b_steps": 3,
    }
    needs["teacher_s0"] = job("train", TrainConfig(**shape, arm="teacher"), tmp_path / "teacher", needs)
    done = job("evaluate", EvaluateConfig("teacher", ce_size=60), tmp_path / "evaluate", needs)
    metrics = read_json(done / "results.json")["metrics"]
    assert metrics["ce_reconstructed"] > 0
    assert 0 <= metrics["steering_leakage"] <= 1
    capped = load_head(place / "unembedding.safetensors").softcap
    assert (capped is not None) == (AutoConfig.from_pretrained(folder).model_type == "gemma2")
