"""Shared by the tests: one thread, tiny models with a word tokenizer, tiny text."""

import json
import os
import random

# Before anything imports them: no test may look at a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from retrofit.cli import STUDY
from retrofit.config import RunConfig, TrainOptions
from studycore.execution import make_run

torch.set_num_threads(1)

CPU = TrainOptions(device="cpu", threads=1)
WORDS = [f"w{i}" for i in range(60)]


def tiny_config(kind, vocabulary=64):
    """transformers configurations of some thousand parameters."""
    from transformers import GPT2Config, GPTNeoConfig, GPTNeoXConfig, LlamaConfig

    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "use_cache": False}
    if kind == "gpt2":
        return GPT2Config(**common, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    if kind == "gpt_neo":
        return GPTNeoConfig(
            **common, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64, window_size=16,
        )  # fmt: skip
    if kind in ("gpt_neox", "gpt_neox_parallel"):
        return GPTNeoXConfig(
            **common, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=64, use_parallel_residual=kind == "gpt_neox_parallel", hidden_dropout=0.1,
            tie_word_embeddings=True, initializer_range=0.2,
        )  # fmt: skip
    assert kind == "llama"
    return LlamaConfig(
        **common, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=40, max_position_embeddings=64, mlp_bias=True,
    )  # fmt: skip


def train_run(config, folder, resume=False, needs=None):
    """Trains a run in this process, as `retrofit run` does."""
    make_run(STUDY, "run", config, folder, CPU, ["retrofit", "run"], resume, needs)


KINDS = ["gpt2", "gpt_neo", "gpt_neox", "gpt_neox_parallel", "llama"]


def tiny_model(kind, seed=0):
    """Weights, norms and biases drawn so that nothing is 0 or 1 by accident; columns of uneven scale."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind))
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(torch.rand(p.shape, generator=draw) + (0.5 if name.endswith("weight") else -0.5))
    return model


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|endoftext|>": 0, "<unk>": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


def documents(n, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS[: 5 + seed % 3], k=draw.randint(5, 20))) for _ in range(n)]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folder of a model of a kind, with tokenizer."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    folders = {}

    def make(kind="gpt_neox"):
        if kind not in folders:
            folder = tmp_path_factory.mktemp(kind)
            tiny_model(kind).save_pretrained(folder)
            save_tokenizer(folder)
            folders[kind] = folder
        return folders[kind]

    return make


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """(training, validation) JSONL files."""
    folder = tmp_path_factory.mktemp("text")
    for name, n, seed in (("train", 120, 0), ("validation", 40, 1)):
        rows = "".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in enumerate(dict.fromkeys(documents(n, seed))))
        (folder / f"{name}.jsonl").write_text(rows)
    return folder / "train.jsonl", folder / "validation.jsonl"


@pytest.fixture
def small(made, text):
    """A configuration of a tiny run, with changes."""

    def make(kind="gpt_neox", **changes):
        values = {
            "method": "standard", "model": str(made(kind)), "dataset": str(text[0]), "validation_dataset": str(text[1]),
            "block_size": 16, "trajectory_blocks": 4, "validation_blocks": 8, "transport_blocks": 2,
            "activation_tokens": 64, "num_steps": 8, "batch_size": 4, "glt_interval": 3, "eval_interval": 4,
            "checkpoint_every": 3, "lr": 1e-2, "save_model": False,
        }  # fmt: skip
        return RunConfig(**(values | changes))

    return make


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its first settings for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
