"""Shared by the tests: one thread, a tiny Llama with a byte-level tokenizer, life sketches as a SQuAD file."""

import json
import os

# Before anything imports them: no test may look at a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from latentwire_adapter import selfcheck
from latentwire_adapter.cli import STUDY
from latentwire_adapter.config import Options, Phase1Config, Reading
from latentwire_adapter.data import scored_prompts
from latentwire_adapter.model.language_model import load_language_model
from latentwire_adapter.texts import life_sketches
from studycore.execution import make_run

torch.set_num_threads(1)

CPU = Options(device="cpu", threads=1)


def make_tokenizer():
    """Byte-level BPE, trained on some sketches."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"Context: {life_sketches.paragraph('train', i)['context']}\nQuestion: ?\nAnswer:" for i in range(20)]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", pad_token="<end>")


def tiny_llama(vocabulary, **more):
    """A Llama of some thousand parameters whose answers vary with the prompt."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=1024, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        initializer_range=0.3, **more,
    )  # fmt: skip
    torch.manual_seed(1)
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The tiny model as a Hugging Face folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    place, tokenizer = tmp_path_factory.mktemp("llama"), make_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def squad_file(tmp_path_factory):
    place = tmp_path_factory.mktemp("squad") / "sketches.json"
    place.write_text(json.dumps(life_sketches.squad("train", 12, 3)))
    return place


@pytest.fixture
def values(folder):
    """Fields of a tiny setting."""
    return {
        "model": str(folder), "eval_samples": 6, "questions_per_paragraph": 2, "examples": 1, "max_new_tokens": 4, "eval_batch_size": 4,
        "samples": 30, "fit_text": None, "always_seen": 20,
    }  # fmt: skip


@pytest.fixture
def reading(values):
    names = set(Reading.__dataclass_fields__)
    return Reading(**{k: v for k, v in values.items() if k in names})


@pytest.fixture
def small(values):
    """A configuration of phase 1, with changes."""

    def make(**changes):
        of_training = {
            "ratio": 4.0,
            "epochs": 4,
            "batch_size": 64,
            "eval_every": 4,
            "checkpoint_every": 5,
            "adapter_lr": 1e-2,
        }
        return Phase1Config(**(values | of_training | changes))

    return make


@pytest.fixture
def lm(reading):
    return load_language_model(reading, "cpu")


@pytest.fixture
def prompts(reading, lm):
    return scored_prompts(reading, lm.tokenizer, lm.context)


@pytest.fixture
def make():
    """Makes a run in this process, as the command does, without its report."""

    def run(verb, config, folder, resume=False, needs=None):
        make_run(STUDY, verb, config, folder, CPU, ["latentwire-adapter", verb], resume, needs, quiet=True)
        return folder

    return run


@pytest.fixture
def checked(monkeypatch):
    """The checks have tests of their own."""
    monkeypatch.setattr(selfcheck, "run_checks", lambda *a: {"table": ""})


@pytest.fixture
def trained(make, small, tmp_path):
    """A finished phase 1 run."""
    return make("phase1", small(), tmp_path / "phase1_4x")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its first settings for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
