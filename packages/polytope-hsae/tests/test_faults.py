"""What reaches a study from outside and would make wrong numbers, a traceback, or work without an end."""

import os
import shutil
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, job
from safetensors.numpy import load_file, save_file
from test_activations import SHAPES, config_of
from test_steering import HEAD, HIERARCHY
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM

import polytope_hsae.activations as activations
import polytope_hsae.extraction as extraction
import polytope_hsae.steering as steering
from polytope_hsae.activations import CACHE, gather
from polytope_hsae.concepts import Child, Hierarchy, Parent
from polytope_hsae.config import ActivationConfig, EvaluateConfig, GeometryConfig, StudyConfig
from polytope_hsae.data import CHOOSE, TEST, TRAIN, Store, open_store
from polytope_hsae.estimate import estimate
from polytope_hsae.language import final_activations, load_model, load_tokenizer
from polytope_hsae.models import SAEConfig, build_sae
from polytope_hsae.report import figures_in_words
from studycore.errors import Stopped, UserError
from studycore.files import read_json, write_json
from studycore.hashes import tensor_sha256
from studycore.language import wordnet
from studycore.run import Run


# -------------------------------------------------------------------------------- the token that texts begin with
@pytest.fixture(scope="module")
def plain():
    return load_tokenizer("studycore/wordnet-lm")


@pytest.fixture(scope="module")
def begins():
    """A tokenizer that puts <s> before each text by itself, as Llama's and Gemma's do."""
    tokenizer = load_tokenizer("studycore/wordnet-lm")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    single = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = single
    return tokenizer


def animals(tokenizer):
    """A parent with a dog, its child a cat."""
    (dog,), (cat,) = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" dog", " cat"))
    parent = Parent("p", "", ((dog,), (), ()), (Child("c", "", ((cat,), (), (cat,))),), ((),))
    return Hierarchy((parent,), {dog: "dog", cat: "cat"})


@pytest.fixture
def llama(tmp_path, begins):
    """A Llama of random weights with that tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=len(begins), **SHAPES["llama"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    begins.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_window_and_prompt_begins_as_the_tokenizer_begins_a_text(tmp_path, begins, plain):
    """And what the model makes of that token is no activation of the text."""
    config = config_of("x", tmp_path)
    found, without = (gather(config, animals(t), t) for t in (begins, plain))
    bos = begins.bos_token_id
    assert {row[0] for row in found.rows} == {bos}
    assert all(bos not in row[1:] for row in found.rows)
    assert min(found.first) == 1
    prompts = [i < 0 for i, *_ in found.documents]
    assert {len(row) for row, prompt in zip(found.rows, prompts, strict=True) if not prompt} == {16}
    # The text goes on from window to window: what follows one is the second token of the next of its split.
    windows = [(row, after, split) for row, after, split, prompt in zip(found.rows, found.following, found.split, prompts, strict=True) if not prompt]  # fmt: skip
    going_on = [(one, other) for one, other in pairwise(windows) if one[2] == other[2]]
    assert going_on
    assert all(one[1] == other[0][1] for one, other in going_on)
    assert all(len(d) == len(row) for d, row in zip(found.documents, found.rows, strict=True))
    end = plain.eos_token_id
    assert all(row[0] == end for row, (i, *_) in zip(without.rows, without.documents, strict=True) if i < 0)
    assert min(without.first) == 0


def test_without_such_a_token_the_default_text_is_cut_as_it_always_was(plain):
    """So activations of the models that come with the studies are those of earlier runs, in the same splits."""
    found = gather(ActivationConfig(token_budget=3000, window_length=32), animals(plain), plain)
    flat = [found.kept(found.rows), found.kept([[s] * len(r) for s, r in zip(found.split, found.rows, strict=True)])]
    assert len(flat[0]) > 2900
    assert tensor_sha256(torch.tensor(flat)) == AS_IT_WAS


AS_IT_WAS = "9ee80068b1682bd81337f3c723389461c51b08623ac3e9e470bb02d87597cbc0"


def test_a_capture_says_which_token_its_windows_begin_with(llama, tmp_path, begins, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "geometry"
    place.mkdir()
    animals(begins).save(place / "concepts.json")
    capture = config_of(llama, tmp_path)
    folder = job("activations", capture, tmp_path / "a", {"geometry": place})
    metrics = read_json(folder / "results.json")["metrics"]
    assert metrics["bos"] == "every window begins with '<s>'"
    store = open_store(place, folder)
    assert begins.bos_token_id not in store.arrays["token"]
    sequences = gather(capture, store.hierarchy, begins)
    model = load_model(str(llama))
    i = len(sequences.rows) - 1
    alone = final_activations(model, torch.tensor(sequences.rows[i])[None])[0, -1]
    torch.testing.assert_close(store.rows(np.array([len(store) - 1]))[0], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["begins", "plain"])
def test_contexts_are_read_after_their_last_word_from_the_token_that_texts_begin_with(
    llama, kind, request, monkeypatch
):
    """Beside a longer one, which pads it."""
    tokenizer = request.getfixturevalue(kind)
    texts = [" the dog barked", " a cat", " the dog and the cat sat under the oak and the dog barked at the cat again"]
    monkeypatch.setattr(wordnet, "texts", lambda split: texts)
    model = load_model(str(llama))
    _, x_ND = extraction._contexts(model, tokenizer, GeometryConfig(model=str(llama), contexts=3))
    begin = [tokenizer.bos_token_id] if kind == "begins" else []
    each = [tokenizer(text, add_special_tokens=False)["input_ids"][:12] for text in texts]
    expected = torch.stack([final_activations(model, torch.tensor([[*begin, *ids]]))[0, -1] for ids in each])
    order = torch.cdist(x_ND, expected).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(x_ND, expected[order], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ shards of the cache
def short(path):
    os.truncate(path, path.stat().st_size - 4)


def changed(path):
    """One bit of one number in the middle."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


HARM = {
    short: r"the shard has [\d,]+ bytes where [\d,]+ were written",
    changed: "the shard has changed since it was written",
    os.remove: "the shard is gone",
}


@pytest.fixture
def captured(tmp_path, plain, monkeypatch):
    """Makes (geometry's folder, a job's folder, its shards) of a planted tree or of a Llama in a cache of its own."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "geometry"
    place.mkdir()
    animals(plain).save(place / "concepts.json")
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=len(plain), **SHAPES["llama"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llama")
    plain.save_pretrained(tmp_path / "llama")

    def make(kind, name):
        config = ActivationConfig(**SMALL, token_budget=200) if kind == "planted" else config_of(tmp_path / "llama", tmp_path)  # fmt: skip
        return place, job("activations", config, tmp_path / name, {"geometry": place}), sorted(CACHE.glob("*.f32"))

    return make


@pytest.mark.parametrize("kind", ["planted", "llama"])
@pytest.mark.parametrize("harm", HARM, ids=lambda f: f.__name__)
def test_a_shard_that_is_not_as_it_was_written_is_refused_and_made_again(captured, tmp_path, kind, harm):
    geometry, folder, shards = captured(kind, "one")
    kept = {path: path.read_bytes() for path in shards}
    harm(shards[-1])
    with pytest.raises(UserError, match=rf"^.*\.f32: {HARM[harm]}; remove .*one, and it is captured again$"):
        open_store(geometry, folder)
    times = {path: path.stat().st_mtime_ns for path in shards[:-1]}
    captured(kind, "two")
    assert {path: path.read_bytes() for path in shards} == kept
    assert {path: path.stat().st_mtime_ns for path in shards[:-1]} == times, "the others are as they should be"
    assert len(open_store(geometry, tmp_path / "two")) == len(open_store(geometry, folder))


def test_a_shard_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Its checksum too, so that a crash leaves no shard that nothing vouches for."""
    said, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: said.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    monkeypatch.setattr(os, "replace", lambda one, other: said.append(f"= {other}") or replace(one, other))
    path = tmp_path / "key.f32"
    activations._keep(path, [b"1234", b"5678"])
    names = [name.removeprefix(f"{tmp_path}/").replace(f".{os.getpid()}", "") for name in said]
    assert names == [
        ".key.sha256.tmp", f"= {tmp_path}/key.sha256", str(tmp_path), ".key.f32.tmp", f"= {tmp_path}/key.f32", str(tmp_path),
    ]  # fmt: skip
    assert path.read_bytes() == b"12345678"


def test_what_is_given_up_leaves_nothing(tmp_path):
    def parts():
        yield b"1234"
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        activations._keep(tmp_path / "key.f32", parts())
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- texts and splits
@pytest.mark.parametrize(
    "same", ["caf\xe9 au lait ", "cafe\u0301 au lait", "caf\xe9 \ufeffau lait", "caf\xe9  au\tlait\n"]
)
def test_what_is_the_same_to_a_reader_is_in_one_split(same):
    """Over many texts, since a third of all pairs is in one split by chance."""
    config = ActivationConfig(source="x.txt", data_split=[0.34, 0.33, 0.33])
    splits = [[activations._split_of(f"{i} {text}", config) for i in range(60)] for text in ("caf\xe9 au lait", same)]
    assert splits[0] == splits[1]
    assert set(splits[0]) == {TRAIN, CHOOSE, TEST}


@pytest.mark.parametrize(
    ("value", "said"), [(7, "it is a number"), (["a"], "it is an array"), ({"a": 1}, "it is an object")]
)
def test_a_row_of_a_dataset_that_is_no_text_is_named(monkeypatch, value, said):
    rows = [{"text": "one"}, {"text": None}, {"text": " "}, {"text": "two"}, {"text": value}]
    monkeypatch.setattr(activations, "hub_rows", lambda *args, **more: iter(rows))
    texts = activations.documents(ActivationConfig(source="nobody/nothing"))
    assert [next(texts), next(texts)] == ["one", "two"], "null and blank rows hold no text"
    with pytest.raises(
        UserError, match=rf"^data.source: row 4 of 'nobody/nothing' has no text under 'text' \({said}\)"
    ):
        next(texts)


# -------------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("verb", "config", "said"),
    [
        ("activations", ActivationConfig(**SMALL, token_budget=10**12), "data.token_budget: 1,000,000,000,000 activations of the planted tree take"),
        ("activations", ActivationConfig(token_budget=10**13), "data.token_budget: the tokens and labels of 10,000,000,000,000 activations take"),
        ("geometry", GeometryConfig(**SMALL, contexts=10**12), "eval.validation.contexts: 1,000,000,000,000 activations"),
        ("geometry", GeometryConfig(**SMALL | {"tree_words": 10**10}), "synthetic.parents, children, words, dim: 5"),
        ("geometry", GeometryConfig(**SMALL | {"tree_dim": 10**7}), "synthetic.parents, children, words, dim: .* in 10000000 dimensions"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_fit_is_refused_before_the_work(verb, config, said, planted, tmp_path):
    with pytest.raises(UserError, match=rf"^{said}.* [\d,]+ GiB of memory and [\d,]+ GiB are free; lower"):
        job(verb, config, tmp_path / "run", planted)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", [{"name": "synthetic-tree"}, {}])
def test_so_it_is_by_a_dry_run(model):
    with pytest.raises(UserError, match=r"^data.token_budget: .* take [\d,]+ GiB"):
        estimate(StudyConfig(model=model, data={"token_budget": 10**13}), "cpu")


# ------------------------------------------------------------------------------------------------------ odd folders
def lacking(name):
    def lack(path):
        save_file({key: value for key, value in load_file(path).items() if key != name}, path)

    return lack


def junk(path):
    path.write_bytes(b'{"half": ')


def other_json(path):
    write_json(path, {"parents": [{"name": "p"}], "width": 24})


@pytest.mark.parametrize(
    ("folder", "name", "harm", "said"),
    [
        ("geometry", "concepts.json", junk, "not valid JSON"),
        ("geometry", "concepts.json", other_json, r"cannot be read as concepts \(KeyError: 'about'\)"),
        ("geometry", "concepts.json", os.remove, "there is no such file"),
        ("geometry", "arrays.safetensors", junk, "cannot be read as the vectors of phase 1"),
        ("geometry", "arrays.safetensors", os.remove, "cannot be read as the vectors of phase 1"),
        ("geometry", "arrays.safetensors", lacking("unified_parents"), r"\(KeyError: 'unified_parents'\)"),
        ("geometry", "unembedding.safetensors", junk, "cannot be read as the head of a model"),
        ("geometry", "unembedding.safetensors", lacking("unembedding"), r"\(KeyError: 'unembedding'\)"),
        ("activations", "index.json", junk, "not valid JSON"),
        ("activations", "index.json", other_json, r"cannot be read as activations \(KeyError: 'shards'\)"),
        ("activations", "arrays.safetensors", junk, "cannot be read as activations"),
        ("activations", "arrays.safetensors", lacking("split"), r"\(KeyError: 'split'\)"),
        ("random_s0", "arrays.safetensors", junk, "cannot be read"),
        ("random_s0", "arrays.safetensors", os.remove, r"cannot be read as a trained autoencoder \(KeyError"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_something_else_is_one_sentence(folder, name, harm, said, planted, tmp_path, small):
    """For the job that reads it: a training reads the vectors that it ends with before it begins."""
    own = tmp_path / "own"
    build_sae(SAEConfig("topk", 24, 8, 2)).save_pretrained(own / "sae")
    save_file({"parent_of_concept": np.arange(4)}, own / "arrays.safetensors")
    needs = {**planted, "random_s0": own}
    copy = tmp_path / folder
    shutil.copytree(needs[folder], copy)
    needs[folder] = copy
    harm(copy / name)
    evaluates = folder == "random_s0" or name == "unembedding.safetensors"
    verb, config = ("evaluate", EvaluateConfig("random")) if evaluates else ("train", small(arm="random"))
    with pytest.raises(UserError, match=rf"{copy}.*{said}"):
        job(verb, config, tmp_path / "run", needs)
    assert evaluates or not (tmp_path / "run").exists()


def test_jobs_of_models_of_other_widths_are_refused_before_the_work(planted, small, tmp_path):
    other = GeometryConfig(**SMALL | {"tree_dim": 20}, n_shuffles=3, contexts=4)
    needs = {**planted, "geometry": job("geometry", other, tmp_path / "other")}
    with pytest.raises(
        UserError, match=r"^geometry: .*other is of width 20 and the activations of 24; name jobs of one model"
    ):
        job("train", small(), tmp_path / "run", needs)


# -------------------------------------------------------------------------------------------------------- told to stop
@pytest.mark.parametrize(("verb", "least"), [("geometry", 5), ("activations", 6), ("train", 9), ("evaluate", 6)])
def test_long_work_outside_the_loop_heeds_a_signal(verb, least, captured, planted, small, tmp_path, monkeypatch):
    """Once or more for each part of it: draws, parents and batches."""
    own = tmp_path / "own"
    build_sae(SAEConfig("topk", 24, 8, 2)).save_pretrained(own / "sae")
    save_file({"parent_of_concept": np.arange(4)}, own / "arrays.safetensors")
    asked = []
    monkeypatch.setattr(Run, "check_stop", lambda self: asked.append(1))
    if verb == "activations":
        captured("llama", "run")
    else:
        config = {"geometry": GeometryConfig(**SMALL, n_shuffles=19, contexts=8), "train": small(), "evaluate": EvaluateConfig("random")}[verb]  # fmt: skip
        job(verb, config, tmp_path / "run", {**planted, "random_s0": own} if verb == "evaluate" else planted)
    assert len(asked) >= least

    def stop(self):
        raise Stopped("stopped")

    monkeypatch.setattr(Run, "check_stop", stop)
    if verb == "geometry":
        with pytest.raises(Stopped):
            job(verb, config, tmp_path / "again")
        assert read_json(tmp_path / "again" / "manifest.json")["state"] == "stopped"


# ----------------------------------------------------------------------------------------------- which value feeds what
@pytest.fixture
def store(tmp_path):
    """120 activations of 2 numbers in a folder of their own: of each split 40, every fourth of them a prompt, every third
    without a next token; tokens are 0, next ones 1 or 2."""
    n = np.arange(120)
    x_ND = np.stack([np.sin(n), np.cos(1.7 * n)], 1).astype(np.float32) + (n % 3)[:, None].astype(np.float32)
    activations._keep(tmp_path / "key.f32", [x_ND.tobytes()])
    shard = {"key": "key", "rows": 120, "sha256": activations.recorded(tmp_path / "key.f32")}
    write_json(tmp_path / "index.json", {"width": 2, "cache": str(tmp_path), "shards": [shard]})
    following = np.where(n % 5 == 0, -1, 1 + n % 2)
    arrays = {
        "split": n % 3,
        "document": np.where(n % 4 == 0, -1, 1),
        "token": 0 * n,
        "next": following,
        "word": following,
    }
    save_file(arrays, tmp_path / "arrays.safetensors")
    return Store(tmp_path, HIERARCHY)


def test_what_phase_4_reads_and_predicts(store, tmp_path, monkeypatch):
    """Steering on activations for choosing; the next token of those for testing that have one, against their own mean."""
    seen, own = {}, tmp_path / "own"
    build_sae(SAEConfig("topk", 2, 2, 1)).save_pretrained(own / "sae")
    steps = np.arange(4, dtype="float64").reshape(2, 2)
    save_file({"parent_of_concept": np.arange(2), "causal_parents": steps}, own / "arrays.safetensors")
    monkeypatch.setattr(steering, "open_store", lambda *folders: store)
    monkeypatch.setattr(
        steering, "untrained_steering", lambda *arguments: seen.setdefault("untrained", arguments) and {}
    )
    monkeypatch.setattr(steering, "load_head", lambda path: HEAD)

    def noted(name, value):
        return lambda *arguments: seen.setdefault(name, arguments) and value

    monkeypatch.setattr(steering, "steering_metrics", noted("steering", ({}, {})))
    monkeypatch.setattr(steering, "target_probability", noted("probability", torch.zeros(1)))
    monkeypatch.setattr(steering, "ce_recovered", noted("ce", {"ce_recovered": 0.5}))
    job(
        "evaluate",
        EvaluateConfig("random", ce_size=24),
        tmp_path / "run",
        {"random_s0": own, "geometry": own, "activations": own},
    )
    choose, test = (store.sample(which, 24) for which in (CHOOSE, TEST))
    assert torch.equal(seen["steering"][2], store.rows(choose))
    assert seen["untrained"][0].tolist() == steps.tolist()
    assert torch.equal(seen["untrained"][3], store.rows(choose))
    assert torch.equal(seen["probability"][2], store.rows(choose)[:32])
    with_next = [i for i in test if i % 5 != 0]
    assert 0 < len(with_next) < len(test)
    _, x_ND, mean_D, head, following = seen["ce"]
    assert torch.equal(x_ND, store.rows(np.array(with_next)))
    assert following.tolist() == [1 + i % 2 for i in with_next]
    every_test = np.array([i for i in range(120) if i % 3 == TEST and i % 4 != 0])
    torch.testing.assert_close(mean_D, store.rows(every_test).mean(0))
    assert head is HEAD


def test_the_smallest_eigenvalue_is_that_of_the_covariance(planted):
    found, arrays = (
        read_json(planted["geometry"] / "results.json")["metrics"],
        load_file(planted["geometry"] / "arrays.safetensors"),
    )
    ends = found["eigenvalue_smallest"], found["eigenvalue_largest"]
    assert ends == (arrays["eigenvalues"].min(), arrays["eigenvalues"].max())
    assert 0 < ends[0] < ends[1]
    assert found["bos"] == "none"


def test_each_figure_in_words_stands_where_its_name_does():
    g = {
        "held_out_projection": 0.11, "held_out_projection_shuffled": 0.12, "disjoint_angle": 61.3, "disjoint_angle_shuffled": 61.4,
        "disjoint_angle_label_permutation": 61.5, "nested_angle": 61.6, "nested_angle_shuffled": 61.7,
        "held_out_projection_euclidean": 0.13, "disjoint_angle_euclidean": 61.8,
    }  # fmt: skip
    rows = [{"arm": "geometry", "seed": 0} | {f"{name}_median": value for name, value in g.items()}]
    for arm, start in (("teacher", 0.2), ("random", 0.5)):
        rows.append(
            {"arm": arm, "seed": 0, "purity": start + 0.01, "leakage": start + 0.02, "explained_variance": start + 0.03}
        )
    table = pd.DataFrame(rows).assign(purity_reference=0.7)
    carried, words = figures_in_words(SimpleNamespace(table=table))
    assert "rests on the projection of held-out words, and on the angle" in carried
    for part in (
        "project on their concept's vector at 0.11 (shuffled 0.12)", "child minus parent is 61.3 degrees from disjoint words (shuffled 61.4, ",
        "random parts of the parent's words 61.5)", "nested words give 61.6 whatever their rows are (shuffled 61.7)",
        "in the Euclidean metric, held-out projection is 0.13 and the angle 61.8",
        "has purity 0.21 and leakage 0.22, from a random start 0.51 and 0.52, at explained variance 0.230 and 0.530",
        "Ten points of purity above a random start: 0.61; phase 1's own vectors, untrained, reach 0.7.",
    ):  # fmt: skip
        assert part in words, words
