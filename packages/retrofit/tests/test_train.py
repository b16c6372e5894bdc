"""Training: reproducible, resumable to the bit, the penalty once per update, the same on two processes, exact perplexity."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import KINDS, train_run
from safetensors.torch import load_file

import retrofit.train as module
from retrofit.blocks import find_blocks
from retrofit.cli import STUDY
from retrofit.metrics import evaluation, perplexity
from retrofit.metrics.documents import read_documents
from retrofit.model import load_model
from studycore.checkpoints import read_index
from studycore.configuration import to_dict, to_yaml
from studycore.errors import Stopped, UserError
from studycore.execution import report_on
from studycore.metrics_log import read_rows
from studycore.testing.runs import cut_off, output_of, same

COMMAND = ("-m", "retrofit")
METHODS = ["standard", "gram", "gram_scale_free", "geometry", "glt_ffn", "glt_fold", "glt_perm"]


def rows_of(folder: Path, kind: str) -> list[dict]:
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == kind]


def final(folder: Path) -> dict[str, torch.Tensor]:
    checkpoints = folder / "checkpoints"
    return load_file(checkpoints / read_index(checkpoints)["last"] / "model.safetensors")


def test_the_first_twenty_steps_are_the_recorded_ones(small, tmp_path):
    """A change that moves these numbers changes every result; do it on purpose, and say so in the change log."""
    config = small(method="geometry", num_steps=20, eval_interval=20, glt_interval=6, lr=1e-3)
    train_run(config, tmp_path / "run")
    losses = [row["loss"] for row in rows_of(tmp_path / "run", "update")]
    recorded = json.loads((Path(__file__).parent / "loss_series.json").read_text())
    assert losses == pytest.approx(recorded, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_trains_with_the_fold_and_learns(small, tmp_path, kind):
    config = small(kind, method="glt_fold", num_steps=12, save_model=True)
    train_run(config, tmp_path / "run")
    first, last = (rows_of(tmp_path / "run", "evaluation")[i] for i in (0, -1))
    assert last["val_ppl"] < first["val_ppl"]
    for row in rows_of(tmp_path / "run", "transport"):
        assert row["transport_ppl_after"] == pytest.approx(row["transport_ppl_before"], rel=1e-4)
        assert row["transport_kl"] < 1e-5
    # The saved folder is an ordinary one, with the trained weights.
    model, _ = load_model(str(tmp_path / "run" / "model"))
    kept = {name: p for name, p in final(tmp_path / "run").items() if name in model.state_dict()}
    for name, value in kept.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert (tmp_path / "run" / "model" / "tokenizer.json").exists()


@pytest.mark.parametrize("method", METHODS)
def test_resuming_is_bitwise(small, tmp_path, monkeypatch, method):
    """Cut off in the middle of step 5 of 8, after the checkpoint at 3; accumulation does not divide the epoch."""
    config = small(method=method, gradient_accumulation_steps=2, dropout=0.1, eval_interval=3)
    train_run(config, tmp_path / "straight")
    original = module.clip_gradients
    calls = {"n": 0}

    def dies(*arguments):
        calls["n"] += 1
        if calls["n"] == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "clip_gradients", dies)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "cut")
    monkeypatch.undo()
    train_run(config, tmp_path / "cut", resume=True)
    same(tmp_path / "straight", tmp_path / "cut")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_resumes_to_the_bit(small, tmp_path, sign):
    config = small(
        method="geometry", num_steps=150, num_workers=1, checkpoint_every=10, eval_interval=50, glt_interval=20,
        gradient_accumulation_steps=4, lr=1e-3,
    )  # fmt: skip
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(to_dict(config)))
    flags = ["--config", str(file), "--device", "cpu", "--threads", "1"]
    cut_off(tmp_path / "cut", 26, sign, *COMMAND, "run", *flags, "--output-dir", tmp_path / "cut")
    output_of(*COMMAND, "resume", tmp_path / "cut")
    train_run(config, tmp_path / "straight")
    same(tmp_path / "straight", tmp_path / "cut")


@pytest.mark.parametrize(
    ("method", "parts", "updates"), [("gram", 14, 3), ("geometry", 16, 4)], ids=["gram", "after a transport"]
)
def test_a_signal_is_heeded_between_the_parts_of_an_update(small, tmp_path, monkeypatch, method, parts, updates):
    """Of the fourth update, of four parts. One that began with a transport is finished: it is made once."""
    config = small(method=method, gradient_accumulation_steps=4, glt_interval=3, lr=1e-3, dropout=0.1)
    train_run(config, tmp_path / "straight")
    forward, calls = module.NextTokenLoss.forward, []

    def signals(loss, ids_NT):
        calls.append(len(ids_NT))
        if len(calls) == 3 * 4 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(loss, ids_NT)

    with monkeypatch.context() as patch:
        patch.setattr(module.NextTokenLoss, "forward", signals)
        with pytest.raises(Stopped):
            train_run(config, tmp_path / "cut")
    assert len(calls) == parts
    assert len(rows_of(tmp_path / "cut", "update")) == updates
    train_run(config, tmp_path / "cut", resume=True)
    same(tmp_path / "straight", tmp_path / "cut")


def test_a_signal_is_heeded_between_the_parts_of_an_evaluation(small, tmp_path, monkeypatch):
    """Batches, matrices and tokens of one: what is not finished is given up, and made again to the bit."""
    config = small(method="gram", activation_tokens=256)
    train_run(config, tmp_path / "straight")
    for name, where, call, step in (
        ("perplexity", perplexity, "logits_of", 4), ("weights", evaluation, "spectrum_of", 4),
        ("activations", evaluation, "activation_moments", 4), ("windows", evaluation, "ff_gram_of_windows", 8),
    ):  # fmt: skip
        folder, original, calls = tmp_path / name, getattr(where, call), []

        def signals(*arguments, original=original, calls=calls, folder=folder, step=step, **more):
            if read_rows(folder / "metrics.jsonl") and read_rows(folder / "metrics.jsonl")[-1]["step"] == step - 1:
                calls.append(1)
                if len(calls) == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(where, call, signals)
            with pytest.raises(Stopped, match=f"stopped by SIGTERM at step {step} and saved; "):
                train_run(config, folder)
        assert len(calls) == 1, name
        assert json.loads((folder / "manifest.json").read_text())["state"] == "stopped"
        assert read_index(folder / "checkpoints")["last"] == f"step-{step}"
        train_run(config, folder, resume=True)
        same(tmp_path / "straight", folder)


def test_a_signal_is_heeded_between_the_transports_of_an_ablation(small, tmp_path, monkeypatch):
    """Each changes the weights and puts them back: no checkpoint is made of what is between."""
    original, made = module.ablation_rows, []

    def signals(*arguments):
        for row in original(*arguments):
            made.append(row)
            if len(made) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield row

    monkeypatch.setattr(module, "ablation_rows", signals)
    with pytest.raises(Stopped, match=r"at step 0 without a checkpoint; `retrofit resume .* starts it again"):
        train_run(small(method="none"), tmp_path / "run")
    assert len(rows_of(tmp_path / "run", "ablation")) == 2 == len(made)


def test_a_batch_far_above_the_training_blocks_is_refused(small, tmp_path):
    with pytest.raises(UserError, match=r"^batch_size: 100000000 is more than 10 times the \d+ training blocks"):
        train_run(small(method="gram", batch_size=10**8, gradient_accumulation_steps=10**8), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_is_asked_for_its_memory_before_the_run_begins(small, tmp_path, monkeypatch):
    asked = []

    def none_free(size, what, mend, device):
        asked.append(size)
        raise UserError(f"{what}; {mend}")

    monkeypatch.setattr(module, "check_memory", none_free)
    config = small(method="gram", batch_size=8, gradient_accumulation_steps=2)
    with pytest.raises(UserError, match=r"^batch_size: .* the logits of 4 blocks at a time; lower it"):
        train_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model, _ = load_model(config.model)
    numbers = sum(p.numel() for p in model.parameters())
    assert asked == [3 * 4 * numbers + 2 * 4 * 4 * config.block_size * model.config.vocab_size]


def test_two_processes_equal_one(small, tmp_path):
    config = small(method="geometry", gradient_accumulation_steps=2, lr=1e-3)
    train_run(config, tmp_path / "one")
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(to_dict(config)))
    flags = ["--config", file, "--device", "cpu", "--threads", "1", "--num-processes", "2"]
    assert "2 processes" in output_of(*COMMAND, "run", *flags, "--output-dir", tmp_path / "two")
    one, two = (rows_of(tmp_path / name, "evaluation") for name in ("one", "two"))
    # The untrained model's perplexity: exact but for the order of sums.
    assert two[0]["val_ppl"] == pytest.approx(one[0]["val_ppl"], rel=1e-6)
    assert two[-1]["val_ppl"] == pytest.approx(one[-1]["val_ppl"], rel=1e-4)
    losses = [[row["loss"] for row in rows_of(tmp_path / name, "update")] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_accumulation_leaves_the_trajectory(small, tmp_path):
    """The penalty too enters once per update, however many parts it has."""
    for parts in (1, 4):
        config = small(method="gram", gradient_accumulation_steps=parts, lr=1e-3)
        train_run(config, tmp_path / str(parts))
    one, four = (rows_of(tmp_path / str(parts), "update") for parts in (1, 4))
    for key in ("loss", "penalty", "penalty_grad_norm", "grad_norm"):
        assert [r[key] for r in four] == pytest.approx([r[key] for r in one], rel=2e-3), key


def test_clipping_is_of_the_cross_entropy_alone(small, tmp_path, monkeypatch):
    """A huge penalty leaves the reported cross-entropy gradient and its clipping as they are."""
    seen = []
    original = torch.optim.AdamW.step

    def recording_step(self, *arguments, **more):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(float(torch.stack(torch._foreach_norm(grads)).norm()))
        return original(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording_step)
    norms = {}
    for weight in (0.0, 100.0):
        config = small(method="gram", num_steps=1, gram_weight=weight, grad_clip=0.01)
        train_run(config, tmp_path / str(weight))
        (norms[weight],) = rows_of(tmp_path / str(weight), "update")
    assert norms[0.0]["grad_norm"] == norms[100.0]["grad_norm"] > 0.01
    assert norms[0.0]["clipped"]
    assert norms[100.0]["clipped"]
    assert seen[0] == pytest.approx(0.01, rel=1e-3)
    assert seen[1] == pytest.approx(norms[100.0]["penalty_grad_norm"], rel=0.01)


def test_the_null_arm_is_the_standard_one_but_for_rounding(small, tmp_path):
    for method in ("standard", "glt_perm"):
        train_run(small(method=method, lr=1e-3), tmp_path / method)
    losses = [[row["loss"] for row in rows_of(tmp_path / name, "update")] for name in ("standard", "glt_perm")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_norm_matched_follows_the_other_runs_norms(small, tmp_path):
    train_run(small(method="geometry"), tmp_path / "geometry_s0")
    config = small(method="norm_matched", norm_reference="../geometry_s0")
    train_run(config, tmp_path / "norm_matched_s0")
    one, two = ([r["up_norms"] for r in rows_of(tmp_path / n, "update")] for n in ("geometry_s0", "norm_matched_s0"))
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    with pytest.raises(UserError, match="norm_reference"):
        train_run(small(method="norm_matched", norm_reference="nowhere"), tmp_path / "x")
    longer = small(method="norm_matched", norm_reference=str(tmp_path / "geometry_s0"), num_steps=9)
    with pytest.raises(UserError, match="8 updates, and 9"):
        train_run(longer, tmp_path / "y")


def test_arms_of_a_seed_see_the_same_batches_and_seeds_do_not(small):
    from retrofit.data import Blocks, micro_batches

    config, other = small(), small(seed=1)
    blocks = Blocks("numbered", torch.arange(10)[:, None], torch.zeros(10, 0), 1)
    orders = [
        [parts[0].flatten().tolist() for parts in micro_batches(blocks, c, range(5), 0, 1)]
        for c in (config, small(method="geometry"), other)
    ]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:  # each epoch covers all blocks once; batches go on over its end
        flat = [index for batch in order for index in batch]
        assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))


def test_perplexity_is_the_sum_over_every_token_once(small, tmp_path):
    """Against a plain loop over the stream, one window at a time."""
    from retrofit.data import load_data
    from retrofit.metrics.perplexity import evaluate
    from studycore.language.pretrained import load_tokenizer

    config = small(validation_blocks=None)
    model, _ = load_model(config.model)
    data = load_data(config, load_tokenizer(config.model), 64, 64)
    texts = [json.loads(line)["text"] for line in Path(config.validation_dataset).read_text().splitlines()]
    tokenizer = load_tokenizer(config.model)
    stream = [i for t in texts for i in [0, *tokenizer(t)["input_ids"]]]
    total = 0.0
    with torch.no_grad():
        for at in range(0, len(stream) - 1, 16):
            window = torch.tensor(stream[at : at + 17])
            logits = model.eval()(window[None, :-1]).logits[0].double()
            total -= float(logits.log_softmax(-1).gather(1, window[1:, None]).sum())
    for batch in (1, 5, 64):
        found = evaluate(model, data.validation, batch)
        assert found.tokens == len(stream) - 1
        assert found.perplexity == pytest.approx(math.exp(total / (len(stream) - 1)), rel=1e-6)
    halves = [evaluate(model, data.validation, 4, rank=r, world=2) for r in (0, 1)]
    assert float(sum(h.nll_D.sum() for h in halves)) == pytest.approx(total, rel=1e-6)
    assert float(sum(h.tokens_D.sum() for h in halves)) == found.tokens


def test_perplexity_of_windows_that_begin_with_bos(small, monkeypatch):
    """Against a plain loop: every token once, the first of each window from the beginning-of-text token alone."""
    from retrofit.data import load_data
    from retrofit.metrics.perplexity import evaluate
    from studycore.language.pretrained import load_tokenizer

    config = small(validation_blocks=None, bos="always")
    tokenizer, model = load_tokenizer(config.model), load_model(config.model)[0].eval()
    tokenizer.bos_token = "w59"
    data = load_data(config, tokenizer, 64, 64)
    texts = [json.loads(line)["text"] for line in Path(config.validation_dataset).read_text().splitlines()]
    stream = [i for t in texts for i in [0, *tokenizer(t)["input_ids"]]]
    total = 0.0
    with torch.no_grad():
        for at in range(0, len(stream), 16):
            window = torch.tensor([61, *stream[at : at + 16]])
            logits = model(window[None, :-1]).logits[0].double()
            total -= float(logits.log_softmax(-1).gather(1, window[1:, None]).sum())
    found = evaluate(model, data.validation, 5)
    assert found.tokens == len(stream)
    assert found.perplexity == pytest.approx(math.exp(total / len(stream)), rel=1e-6)
    plain = evaluate(model, load_data(small(validation_blocks=None), tokenizer, 64, 64).validation, 5)
    assert abs(found.perplexity / plain.perplexity - 1) > 1e-4


def test_a_run_folder_holds_what_the_contract_names(small, tmp_path):
    train_run(small(method="geometry", save_model=True), tmp_path / "run")
    names = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert names >= {
        "config.yaml", "manifest.json", "metrics.jsonl", "history.parquet", "results.json", "report.html", "report.md",
        "geometry.json", "figures/trajectories.svg", "model/config.json", "model/model.safetensors",
    }  # fmt: skip
    about = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert about["block_size"] == about["stride"] == 16
    assert (about["end_of_text"], about["bos"], about["left_out"]) == ("before", "none", "")
    assert "first 8 of" in about["validation_set"] and "first 4 of" in about["trajectory_set"]
    assert about["training_tokens"] == 8 * 4 * 16
    table = read_documents(tmp_path / "run", 8)
    assert table[:, 2].sum() == 8 * 16
    assert math.exp(table[:, 1].sum() / 128) == pytest.approx(rows_of(tmp_path / "run", "evaluation")[-1]["val_ppl"])


def test_resume_refuses_another_configuration_data_and_model(small, tmp_path):
    train_run(small(), tmp_path / "run")
    with pytest.raises(UserError, match=r"lr: stored 0.01, given 0.5"):
        train_run(small(lr=0.5), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="holds a run already"):
        train_run(small(), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["data_fingerprints"]["training"] = "0" * 64
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="its data are not those"):
        train_run(small(), tmp_path / "run", resume=True)


@pytest.mark.parametrize("which", ["--model", "--dataset", "--validation-dataset"])
def test_a_relative_path_is_meant_from_where_the_run_began(small, text, made, tmp_path, monkeypatch, which):
    """Resumed elsewhere, with the model's folder under a name that a hub's could have."""
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    shutil.copytree(made("gpt_neox"), here / "m")
    for file, name in zip(text, ("train.jsonl", "validation.jsonl"), strict=True):
        shutil.copy(file, here / name)
    monkeypatch.chdir(here)
    config = small(model="m", dataset="train.jsonl", validation_dataset="validation.jsonl", num_steps=2)
    train_run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    monkeypatch.chdir(there)
    name = {"--model": "m", "--dataset": "train.jsonl", "--validation-dataset": "validation.jsonl"}
    for flag, other in name.items():
        if flag != which:
            (there / other).symlink_to(here / other)
    with pytest.raises(UserError) as caught:
        train_run(config, tmp_path / "run", resume=True)
    assert str(caught.value) == (
        f"{which}: '{name[which]}': is not here; it is meant from {here}, where the run began, so resume it from there"
    )
    monkeypatch.chdir(here)
    train_run(config, tmp_path / "run", resume=True)


def test_a_run_without_a_checkpoint_resumes_at_step_zero(small, tmp_path):
    train_run(small(), tmp_path / "straight")
    train_run(small(), tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    train_run(small(), tmp_path / "cut", resume=True)
    same(tmp_path / "straight", tmp_path / "cut")


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_measured(small, tmp_path):
    with pytest.raises(UserError, match=r"lr: 1e\+30 made"):
        train_run(small(lr=1e30, num_steps=50), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert rows_of(tmp_path / "run", "evaluation")[0]["val_ppl"] > 1
    with pytest.raises(UserError, match=r"the run is failed; `retrofit resume .*` continues it"):
        report_on(STUDY, tmp_path / "run")


def test_an_earlier_versions_folder_reports(small, tmp_path):
    """It names the original study's recipe otherwise, and holds no claims and no names of layers."""
    folder = tmp_path / "run"
    train_run(small(), folder)
    before = (folder / "report.md").read_text()
    rows = folder / "metrics.jsonl"
    rows.write_text(rows.read_text().replace("ff_gram_original", "seed_ff_gram"))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["layers"], manifest["identity"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "claims.json").unlink()
    report_on(STUDY, folder)
    after = (folder / "report.md").read_text()
    assert "| ff_gram_original |" in before
    assert after.split("## Start and end")[1].split("\n## ")[0] == before.split("## Start and end")[1].split("\n## ")[0]


def test_a_start_with_another_text_is_refused(small, text, tmp_path):
    train_run(small(method="none"), tmp_path / "start")
    other = small(dataset=str(text[1]), validation_dataset=str(text[0]))
    with pytest.raises(UserError, match="the comparison began with another model or text: training"):
        train_run(other, tmp_path / "run", needs={"start": tmp_path / "start"})
    train_run(small(), tmp_path / "same", needs={"start": tmp_path / "start"})
    one, two = (rows_of(tmp_path / name, "evaluation")[0] for name in ("start", "same"))
    assert one == two


def test_mixed_precision_trains_and_the_weights_stay_float32(small, tmp_path):
    train_run(small(mixed_precision="bf16"), tmp_path / "run")
    assert {t.dtype for t in final(tmp_path / "run").values()} == {torch.float32}
    one, two = rows_of(tmp_path / "run", "evaluation")[0], rows_of(tmp_path / "run", "evaluation")[-1]
    assert two["val_ppl"] < one["val_ppl"]
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        train_run(small(mixed_precision="fp16"), tmp_path / "y")


def test_a_penalty_in_a_loop_of_ones_own_lowers_kappa(small):
    """The plain functions, without the package's training loop."""
    from retrofit.losses import penalty_of_blocks, scale_free_penalty_gradient
    from retrofit.metrics.spectra import up_kappas

    model, _ = load_model(small().model)
    blocks = find_blocks(model)
    kappa = up_kappas(blocks)
    for _ in range(300):
        _, parts = penalty_of_blocks(blocks, 1.0, scale_free_penalty_gradient)
        for parameter, gradient in parts:
            parameter.data -= 0.02 * gradient
    after = up_kappas(blocks)
    assert all(b < a for a, b in zip(kappa, after, strict=True))
