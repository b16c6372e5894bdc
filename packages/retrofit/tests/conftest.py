"""Shared by the tests: one thread, tiny models with a word tokenizer, tiny text."""

import json
import os
import random

# Before anything imports them: no test may look at a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pandas as pd
import pytest
import torch

from retrofit.claims import CLAIMS
from retrofit.cli import STUDY
from retrofit.config import RunConfig, TrainOptions
from studycore.claims import as_stored, judge_all
from studycore.execution import make_run

torch.set_num_threads(1)

CPU = TrainOptions(device="cpu", threads=1)
WORDS = [f"w{i}" for i in range(60)]


def tiny_configs(vocabulary=64):
    """What makes the transformers configuration, of some thousand parameters, of each architecture that the README lists."""
    import transformers as hf

    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "use_cache": False}
    sized = {**common, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    here = {**sized, "max_position_embeddings": 64}
    gated = {**here, "intermediate_size": 40, "num_key_value_heads": 2}
    headed = {**gated, "head_dim": 8}
    neox = {
        **here, "intermediate_size": 64, "hidden_dropout": 0.1, "tie_word_embeddings": True, "initializer_range": 0.2,
    }  # fmt: skip
    # An initializer_range of 0.3 for experts: at 0.02 their part in the output is lost in rounding.
    some = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "initializer_range": 0.3}
    local = {"num_local_experts": 3, "num_experts_per_tok": 2, "initializer_range": 0.3}
    opt = {**here, "ffn_dim": 64, "word_embed_proj_dim": 16}
    return {
        "gpt2": lambda: hf.GPT2Config(**common, n_embd=16, n_layer=2, n_head=2, n_positions=64),
        "gpt_neo": lambda: hf.GPTNeoConfig(
            **common, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64, window_size=16,
        ),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**neox, use_parallel_residual=False),
        "gpt_neox_parallel": lambda: hf.GPTNeoXConfig(**neox, use_parallel_residual=True),
        "llama": lambda: hf.LlamaConfig(**gated, mlp_bias=True),
        "mistral": lambda: hf.MistralConfig(**gated),
        "qwen2": lambda: hf.Qwen2Config(**gated),
        "qwen3": lambda: hf.Qwen3Config(**headed),
        "gemma2": lambda: hf.Gemma2Config(**headed),
        "gemma3": lambda: hf.Gemma3TextConfig(**headed),
        "phi3": lambda: hf.Phi3Config(**gated),
        "opt": lambda: hf.OPTConfig(**opt),
        "opt_norm_after": lambda: hf.OPTConfig(**opt, do_layer_norm_before=False),
        "falcon": lambda: hf.FalconConfig(**sized),
        "falcon_two_norms": lambda: hf.FalconConfig(**sized, new_decoder_architecture=True, num_kv_heads=1),
        "falcon_serial": lambda: hf.FalconConfig(**sized, parallel_attn=False, bias=True),
        "mixtral": lambda: hf.MixtralConfig(**gated, **local),
        "qwen2_moe": lambda: hf.Qwen2MoeConfig(
            **gated, **some, shared_expert_intermediate_size=24, decoder_sparse_step=1
        ),
        "qwen3_moe": lambda: hf.Qwen3MoeConfig(**headed, **some, decoder_sparse_step=2),
        "gpt_oss": lambda: hf.GptOssConfig(**headed, **local),
    }  # fmt: skip


def architectures():
    """Their names."""
    return list(tiny_configs())


def train_run(config, folder, resume=False, needs=None):
    """Trains a run in this process, as `retrofit run` does."""
    make_run(STUDY, "run", config, folder, CPU, ["retrofit", "run"], resume, needs)


KINDS = ["gpt2", "gpt_neo", "gpt_neox", "gpt_neox_parallel", "llama"]
"""Those on which tests of a principle are made; test_architectures.py goes through all architectures."""
FOLDABLE = [*KINDS, "mistral", "qwen2", "qwen3", "phi3", "opt", "falcon_two_norms", "falcon_serial"]
"""Those in which a norm feeds the block alone and has a gain of its own."""
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"]


def tiny_model(kind, seed=0):
    """Weights, norms and biases drawn so that nothing is 0 or 1 by accident; columns of uneven scale."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_configs()[kind]())
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(torch.rand(p.shape, generator=draw) + (0.5 if name.endswith("weight") else -0.5))
    return model


def save_tokenizer(folder, kind=""):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    if kind == "qwen2":  # whatever stands in the folder, transformers reads it as one of bytes
        letters = {"<|endoftext|>": 0} | {letter: i + 1 for i, letter in enumerate("Ġw0123456789")}
        Qwen2Tokenizer(letters, merges=[], bos_token="<|endoftext|>").save_pretrained(folder)
        return
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
            save_tokenizer(folder, kind)
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
            "activation_tokens": 64, "headline_tokens": 128, "num_steps": 8, "batch_size": 4, "glt_interval": 3, "eval_interval": 4,
            "checkpoint_every": 3, "lr": 1e-2, "save_model": False,
        }  # fmt: skip
        return RunConfig(**(values | changes))

    return make


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its first settings for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


def judged(runs, missing=()):
    """Every claim of a comparison on these runs, by id; `missing`: those that failed."""
    table = pd.DataFrame(runs, columns=None if runs else ["run", "arm", "seed", "folder"])
    table.attrs["missing"] = [
        {"run": f"{arm}_s{seed}", "arm": arm, "seed": seed, "failed": True} for arm, seed in missing
    ]
    return {claim["id"]: claim for claim in judge_all(CLAIMS, table, [as_stored(claim) for claim in CLAIMS])}
