"""What the original study's plan names exists under that name, and its examples run with only the import's prefix changed."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from latentwire_adapter.cli import STUDY, main
from latentwire_adapter.config import Phase2Config
from latentwire_adapter.core_utils import (
    Adapter,
    EmbeddingCompressor,
    batch_metrics,
    load_squad_subset,
    log_diagnostics,
)
from studycore.files import read_json

README = (Path(__file__).parents[1] / "README.md").read_text()


# The three tests of the plan, as they stand there.
def test_pca_reconstruction_quality():
    compressor = EmbeddingCompressor(input_dim=128, output_dim=32, method="pca")
    embeddings = torch.randn(1000, 128)
    compressor.fit(embeddings)

    # Test reconstruction error
    compressed = compressor.compress(embeddings[:100])
    # Should maintain reasonable quality
    assert compressed.shape == (100, 32)


def test_adapter_shape_preservation():
    adapter = Adapter(d_z=512, d_model=4096)
    compressed = torch.randn(8, 20, 512)
    reconstructed = adapter(compressed)
    assert reconstructed.shape == (8, 20, 4096)


def test_squad_data_format():
    dataset = load_squad_subset("train", 10)
    assert len(dataset) == 10
    assert "source" in dataset[0]
    assert "answer" in dataset[0]
    assert "Context:" in dataset[0]["source"]
    assert "Question:" in dataset[0]["source"]


def test_the_quick_evaluation_and_the_diagnostics_of_the_plan(tmp_path):
    pred, val_item = "in Paris ", {"answer": "Paris"}
    _, f1 = batch_metrics([pred.strip()], [val_item["answer"]])
    assert f1 == pytest.approx(2 / 3)
    orig_embeds, attention_mask = torch.randn(2, 5, 8), torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    reconstructed = orig_embeds + 0.1
    with torch.no_grad():
        cos_sim = F.cosine_similarity(
            reconstructed[attention_mask.bool()], orig_embeds[attention_mask.bool()], dim=-1
        ).mean()
        rel_error = (reconstructed - orig_embeds).norm() / orig_embeds.norm()
        log_diagnostics(
            tmp_path / "log",
            3,
            1,
            {"recon_mse": 0.01, "recon_cosine_sim": cos_sim.item(), "recon_rel_error": rel_error.item()},
        )
    (row,) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert {"step", "epoch", "timestamp", "recon_mse", "recon_cosine_sim", "recon_rel_error"} == set(row)
    with pytest.raises(ValueError, match="JSON"):
        log_diagnostics(tmp_path / "log", 3, 1, {"recon_mse": float("nan")})


def test_the_smoke_test_of_the_plan(folder, tmp_path, monkeypatch):
    """`--samples 1000 --epochs 1 --batch_size 32 --compress_dim 512 --recon_weight 1.0 --ce_weight 0.0`, on a tiny Llama."""
    monkeypatch.setattr("latentwire_adapter.selfcheck.run_checks", lambda *a: {})
    flags = [
        "--samples",
        "40",
        "--epochs",
        "1",
        "--batch_size",
        "32",
        "--compress_dim",
        "8",
        "--recon_weight",
        "1.0",
        "--ce_weight",
        "0.0",
    ]
    here = [
        "--model_id",
        str(folder),
        "--save_dir",
        str(tmp_path / "run"),
        "--diagnostic_log",
        str(tmp_path / "log.jsonl"),
    ]
    small = [
        "--eval_samples",
        "4",
        "--examples",
        "1",
        "--max_new_tokens",
        "3",
        "--fit_text",
        "null",
        "--always_seen",
        "10",
        "--eval_every",
        "2",
        "--quick_eval_samples",
        "2",
    ]
    assert main(["phase1", "--device", "cpu", "--threads", "1", *flags, *here, *small]) == 0
    assert "f1" in read_json(tmp_path / "run" / "results.json")["metrics"]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["type"] == "train_step"
    assert rows[-1]["type"] == "full_eval"
    assert all(0 <= row["quick_f1"] <= 100 for row in rows if row["type"] == "quick_eval")
    assert {row["type"] for row in rows} == {"train_step", "quick_eval", "full_eval"}
    assert all({"step", "epoch", "timestamp"} <= set(row) for row in rows)


def test_the_flags_of_the_original_scripts_are_flags_here():
    names = set(Phase2Config.__dataclass_fields__) | set(STUDY.aliases) | {"diagnostic_log"}
    wanted = {
        "model_id", "compress_dim", "compress_method", "pca_samples", "adapter_hidden_mult", "adapter_dropout", "adapter_lr", "samples",
        "epochs", "batch_size", "recon_weight", "ce_weight", "eval_every", "eval_samples", "save_dir", "diagnostic_log",
    }  # fmt: skip
    assert wanted <= names


# ------------------------------------------------------------------------------------------------------------ README
# What every README promises alike is tested in tests/test_readmes.py of the repository.
TABLE = README.split("## From the original study's names")[1].split("\n## ")[0]


def test_the_table_covers_the_plan():
    for name in ("EmbeddingCompressor", "Adapter", "load_squad_subset", "batch_metrics", "log_diagnostics", "train_adapter_only.py",
                 "scripts/run_stage1_h100.sh", "recon_loss", "prompt_ppl_loss", "alpha", "recon_mse", "recon_cosine_sim", "recon_rel_error",
                 "quick_f1", "--ce_weight", "--compress_dim"):  # fmt: skip
        assert f"`{name}`" in TABLE, name
