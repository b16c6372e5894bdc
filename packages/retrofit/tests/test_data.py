"""Documents from every kind of source, the guard against leaks, blocks and their documents."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import retrofit.data as module
from retrofit.config import MeasureConfig, RunConfig
from retrofit.data import check_overlap, hub_commit, load_data, micro_batches, read_both, read_source, without_overlap
from studycore.errors import UserError
from studycore.language.pretrained import load_tokenizer

TEXTS = [f"w{i} w{i + 1} w{i + 2}" for i in range(50)]


def documents(config):
    """(training, validation) documents, as load_data reads them."""
    train, held_out = read_both(config)
    return without_overlap(config, train, held_out), held_out


def write(folder):
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


def test_a_folder_in_the_hubs_form_is_read_by_the_hub_route(tmp_path, monkeypatch):
    """The code path of a hub dataset: splits by name, no more rows than asked for."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    for split, texts in (("train", TEXTS[:40]), ("validation", TEXTS[40:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    config = MeasureConfig()
    assert read_source(config, str(folder), "train", 7) == TEXTS[:7]
    assert read_source(config, str(folder), "validation", None) == TEXTS[40:]
    with pytest.raises(UserError, match="no column 'story'; there are text"):
        read_source(MeasureConfig(text_column="story"), str(folder), "train", 7)
    with pytest.raises(UserError, match="cannot be read"):
        read_source(config, str(folder), "test", 7)
    with pytest.raises(UserError, match="nobody/nothing"):
        read_source(config, "nobody/nothing", "train", 7)


def test_an_overlap_stops_the_run_whatever_the_spacing(small, tmp_path):
    with pytest.raises(UserError, match="1 documents stand in training and validation"):
        check_overlap(["a b c", "d"], ["e", " a  b\nc "])
    path = write(tmp_path)
    with pytest.raises(UserError, match="50 documents stand"):
        documents(small(dataset=str(path), validation_dataset=str(path)))


def test_an_overlap_is_dropped_from_training_on_request_and_counted(small, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"text": f" {t}"}) + "\n" for t in TEXTS[40:]))
    config = small(dataset=str(write(tmp_path)), validation_dataset=str(held_out))
    with pytest.raises(UserError, match=r"10 documents stand .* --on-overlap drop"):
        documents(config)
    config = small(dataset=config.dataset, validation_dataset=str(held_out), on_overlap="drop")
    train, validation = documents(config)
    assert train == TEXTS[:40]
    assert len(validation) == 10
    about = load_data(config, load_tokenizer(config.model), 64, 64).about
    assert (about["training_documents"], about["training_documents_dropped"]) == (40, 10)
    with pytest.raises(UserError, match="all 50 training documents stand in the validation text"):
        documents(small(dataset=config.dataset, validation_dataset=config.dataset, on_overlap="drop"))


def hub(monkeypatch, seen):
    """A hub of two datasets in place of the network's."""
    import datasets
    import huggingface_hub

    class Rows(list):
        column_names = ("text",)

    def load_dataset(source, name, split, streaming, revision):
        seen.append((source, name, split, revision))
        return Rows({"text": t} for t in (TEXTS[:40] if source == "a/train" else TEXTS[40:]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "dataset_info",
        lambda self, source, revision=None: SimpleNamespace(sha=f"{source} at {revision or 'newest'}"),
    )


def test_each_hub_dataset_has_its_own_configuration_and_commit(small, monkeypatch):
    seen = []
    hub(monkeypatch, seen)
    both = {"dataset": "a/train", "dataset_config": "big", "dataset_revision": "r1", "validation_dataset": "a/other"}
    documents(small(**both))
    assert seen == [("a/train", "big", "train", "r1"), ("a/other", None, "validation", None)]
    config = small(**both, validation_dataset_config="small", validation_dataset_revision="r2")
    about = load_data(config, load_tokenizer(config.model), 64, 64).about
    assert seen[-1] == ("a/other", "small", "validation", "r2")
    assert (about["dataset_commit"], about["validation_dataset_commit"]) == ("a/train at r1", "a/other at r2")


def test_what_is_no_hub_dataset_has_no_commit_and_the_network_is_not_asked(small, monkeypatch):
    import huggingface_hub

    def asked(self, *args, **kwargs):
        raise AssertionError("asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", asked)
    config = small()
    assert load_data(config, load_tokenizer(config.model), 64, 64).about["dataset_commit"] is None
    assert hub_commit("studycore/wordnet", None) is None


def test_without_a_network_a_hub_dataset_has_no_commit():
    assert hub_commit("nobody/nothing", None) is None


@pytest.mark.parametrize("field", ["lr", "eps", "gram_weight", "weight_decay", "grad_clip", "beta1", "dropout"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_that_are_not_finite_are_refused(field, value):
    with pytest.raises(ValueError, match=f"^{field}: {value} does not fit; give a finite number$"):
        RunConfig(method="standard", **{field: value})


def test_a_validation_configuration_without_its_dataset_is_refused():
    with pytest.raises(ValueError, match="validation_dataset_revision: 'x' is of no validation_dataset"):
        RunConfig(method="standard", validation_dataset_revision="x")


def test_one_file_is_split_by_hash_and_without_overlap(small, tmp_path):
    path = tmp_path / "many.txt"
    texts = [f"w{i} w{j}" for i in range(60) for j in range(20)]
    path.write_text("\n\n".join(texts))
    train, held_out = documents(small(dataset=str(path), validation_dataset=None, max_docs=None))
    assert set(train) | set(held_out) == set(texts)
    assert not set(train) & set(held_out)
    assert 30 < len(held_out) < 100
    path.write_text("\n\n".join(texts[:-100]))
    _, fewer = documents(small(dataset=str(path), validation_dataset=None, max_docs=None))
    assert set(fewer) <= set(held_out)  # a document's split does not depend on the others


@pytest.mark.parametrize("words", range(4))
def test_one_document_cannot_be_split(small, tmp_path, words):
    """Whichever side its hash would put it on."""
    path = tmp_path / "one.txt"
    path.write_text(f"w{words} w2\nw3 w4\n")
    with pytest.raises(
        UserError, match=r"1 document was found in .* separate documents by empty lines or <\|endoftext\|>"
    ):
        documents(small(dataset=str(path), validation_dataset=None))


@pytest.mark.parametrize("name", ["./texts", "/nowhere/texts", "../texts", "a/b.txt", "b.jsonl", "b.json", "b.parquet"])
def test_a_misspelt_path_is_not_looked_for_on_the_hub(small, tmp_path, monkeypatch, name):
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=f"^--dataset: '{name}': there is no such file or folder"):
        read_source(MeasureConfig(), name, "train", 7)
    with pytest.raises(UserError, match="there is no such file or folder"):
        documents(small(validation_dataset=name))


# ---------------------------------------------------------------------------------------------- lines, marks and columns


def test_a_mark_an_accent_or_spacing_does_not_hide_an_overlap(small, tmp_path):
    """Of a training file with a byte order mark, its first document stands in the validation text."""
    train, held_out = tmp_path / "t.txt", tmp_path / "v.jsonl"
    train.write_text("\n\n".join(TEXTS[:40]), encoding="utf-8-sig")
    held_out.write_text("".join(json.dumps({"text": t}) + "\n" for t in [TEXTS[0], *TEXTS[40:]]))
    with pytest.raises(UserError, match="1 documents stand in training and validation"):
        documents(small(dataset=str(train), validation_dataset=str(held_out)))
    for one, other in (
        ("caf\u00e9 au lait", "cafe\u0301 au  lait"),
        ("a\ufeffb", "ab"),
        ("x\u2028y", "x y"),
        ("zero\u200b", "zero"),
    ):
        with pytest.raises(UserError, match="1 documents stand"):
            check_overlap([one], [other])
    check_overlap(["cafe"], ["caf\u00e9"])


def test_rows_of_a_hub_dataset_are_checked_too(monkeypatch):
    import datasets

    class Rows(list):
        column_names = None

    def of(*rows):
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: Rows(rows))
        return read_source(MeasureConfig(), "a/set", "train", 2)

    assert of({"text": None}, {"text": "\ufeffw1"}, {"text": " "}, {"text": "w2"}, {"text": 3}) == ["w1", "w2"]
    with pytest.raises(UserError, match=r"'a/set' \(train\) row 2 has no text under 'text' \(it is a number\)"):
        of({"text": "w1"}, {"text": 3})

    def broken(*args, **kwargs):
        raise TypeError("a loader's own fault")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(UserError, match=r"'a/set': cannot be read as .* \(TypeError: a loader's own fault\); check"):
        read_source(MeasureConfig(), "a/set", "train", 2)


def test_a_tokenizer_that_makes_nothing_of_the_text_is_refused(small, monkeypatch):
    """transformers reads some tokenizers as another kind than they are, which knows none of the words."""
    tokenizer = load_tokenizer(small().model)
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, texts, **more: {"input_ids": [[] for _ in texts]})
    with pytest.raises(
        UserError, match="makes no tokens of the training documents; put the files of its own beside it"
    ):
        load_data(small(), tokenizer, 64, 64)


# ------------------------------------------------------------------------------------------------- beginning of text
def with_bos(folder, adds):
    """A tokenizer with a beginning-of-text token of its own, 63, which it may put before each text by itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordLevel(
            {"<|endoftext|>": 0, "<unk>": 1, **{f"w{i}": i + 2 for i in range(60)}, "<s>": 63}, unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 63)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>"
    )


@pytest.mark.parametrize(
    ("policy", "adds", "expected"),
    [("tokenizer", True, 63), ("tokenizer", False, None), ("always", False, 63), ("never", True, None)],
)
def test_every_window_begins_with_the_token_that_the_models_tokenizer_puts_there(
    small, tmp_path, policy, adds, expected
):
    tokenizer = with_bos(tmp_path, adds)
    config = small(bos=policy)
    data = load_data(config, tokenizer, 64, 64)
    plain = load_data(small(bos="never"), tokenizer, 64, 64)
    for name in ("train", "validation"):
        blocks, others = getattr(data, name), getattr(plain, name)
        begins = (blocks.ids_NT[:, 0] == 63).all()
        assert bool(begins) == (expected is not None)
        assert int((blocks.ids_NT == 63).sum()) == (len(blocks.ids_NT) if expected else 0)
        if expected is not None:
            # The same stream, in windows that overlap no more; the very first token is predicted too.
            whole = torch.cat([others.ids_NT[:1, 0], others.ids_NT[:, 1:].flatten()])
            targets = blocks.ids_NT[:, 1:].flatten()
            n = min(len(whole), len(targets))
            assert torch.equal(targets[:n], whole[:n])
            assert (blocks.document_NT[0, 0], others.document_NT[0, 0]) == (0, 0)
            if name == "validation":
                assert blocks.tokens == others.tokens + 1
    said = "every window begins with '<s>'" if expected else "none"
    assert data.about["bos"] == data.validation.first(2).bos == said


def test_a_bos_that_is_not_there_or_not_known_is_refused(small, tmp_path):
    tokenizer = with_bos(tmp_path, True)
    with pytest.raises(UserError, match=r"'<s>' \(token 63\) stands in the training documents"):
        load_data(small(), tokenizer, 64, 63)
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="bos: always, and the model's tokenizer has no beginning-of-text token"):
        load_data(small(bos="always"), tokenizer, 64, 64)
    assert load_data(small(), tokenizer, 64, 64).about["bos"] == "none"


def test_windows_predict_each_token_once_and_know_its_document(small):
    config = small(end_of_text="before")
    tokenizer = load_tokenizer(config.model)
    data = load_data(config, tokenizer, 64, 64)
    validation = data.validation
    stream = torch.cat([validation.ids_NT[0, :1], validation.ids_NT[:, 1:].flatten()])
    owner = validation.document_NT.flatten()
    counted = owner >= 0
    assert not counted[int(counted.sum()) :].any()  # only the tail does not count
    starts = (stream[1:][counted] == 0).nonzero().flatten()
    # The end-of-text token before a document belongs to it.
    assert owner[counted][starts].tolist() == list(range(1, validation.documents))
    assert torch.equal(validation.ids_NT[1:, 0], validation.ids_NT[:-1, -1])
    assert (data.train.document_NT >= 0).all()
    plain = load_data(small(end_of_text="none"), tokenizer, 64, 64)
    assert not (plain.train.ids_NT == 0).any()


def test_blocks_longer_than_the_context_and_too_little_text_are_refused(small, tmp_path):
    tokenizer = load_tokenizer(small().model)
    with pytest.raises(UserError, match="block_size: 128 is longer than the model's context of 64"):
        load_data(small(block_size=128), tokenizer, 64, 64)
    short = tmp_path / "short.txt"
    short.write_text("w1 w2")
    with pytest.raises(UserError, match="fewer than a block"):
        load_data(small(dataset=str(short)), tokenizer, 64, 64)
    empty = tmp_path / "empty.txt"
    empty.write_text("  ")
    with pytest.raises(UserError, match="no training documents"):
        load_data(small(dataset=str(empty)), tokenizer, 64, 64)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_where_they_stopped_and_are_shared_out(small, workers):
    config = small(num_workers=workers, gradient_accumulation_steps=2, num_steps=6)
    blocks = load_data(config, load_tokenizer(config.model), 64, 64).train
    whole = list(micro_batches(blocks, small(num_steps=6), range(6), 0, 1))
    assert [len(parts) for parts in whole] == [1] * 6
    late = list(micro_batches(blocks, config, range(4, 6), 0, 1))
    assert len(late) == 2
    for parts, (expected,) in zip(late, whole[4:], strict=True):
        assert torch.equal(torch.cat(parts), expected)
    ranks = [list(micro_batches(blocks, config, range(6), rank, 2)) for rank in (0, 1)]
    for one, two, (expected,) in zip(*ranks, whole, strict=True):
        assert torch.equal(torch.stack([torch.cat(one), torch.cat(two)], 1).flatten(0, 1), expected)
    with pytest.raises(UserError, match="not divisible by 3 processes"):
        next(micro_batches(blocks, config, range(6), 0, 3))


def test_batches_are_drawn_as_they_are_used(small, monkeypatch):
    """A dry run of a billion updates makes a few of them."""
    drawn, draw = [], module.batch_indices

    def counted(blocks, size, seed, step):
        drawn.append(step)
        assert step < 10
        return draw(blocks, size, seed, step)

    monkeypatch.setattr(module, "batch_indices", counted)
    config = small()
    batches = micro_batches(load_data(config, load_tokenizer(config.model), 64, 64).train, config, range(10**9), 0, 1)
    assert drawn == []
    next(batches), next(batches)
    assert drawn == [0, 1]


def test_the_embedded_corpus_has_no_overlap(monkeypatch):
    """Without WordNet itself: a stand-in with every split."""
    from studycore.language import wordnet

    kinds = ["train", "reserve", "validation"]
    made = [wordnet.Document(f"s{i}", f" gloss {i}", kinds[i % 3]) for i in range(60)]
    monkeypatch.setattr(wordnet, "documents", lambda: tuple(made))
    config = MeasureConfig()
    train = read_source(config, config.dataset, "train", None)
    held_out = read_source(config, config.dataset, "validation", None)
    assert set(train) == {d.text for d in made if d.split == "reserve"}
    assert set(held_out) == {d.text for d in made if d.split == "validation"}
    assert read_source(config, config.dataset, "train", 5) == train[:5] != sorted(train)[:5]
