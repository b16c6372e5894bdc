"""`measure`: what is not measured has no number, and summaries leave nothing out."""

import csv
import json
import math
import os
import re
import shutil
import signal

import pandas as pd
import pytest
from conftest import tiny_model
from safetensors.torch import load_file, save_file

import retrofit.measure as module
from retrofit.claims import over_gaussian
from retrofit.cli import STUDY, main
from retrofit.config import MeasureConfig, MeasureOptions
from retrofit.figures import curve_style, kind_of
from retrofit.metrics import matrices
from retrofit.metrics.matrices import measure_weights, roles_of_matrices
from retrofit.metrics.matrix_rows import (
    ActivationRow,
    MatrixRow,
    massive_note,
    read_csv,
    summarise,
    token_note,
    write_csv,
)
from studycore.errors import Stopped, UserError
from studycore.execution import make_run, report_on


@pytest.fixture
def run(made, text, tmp_path):
    def make(kind="gpt2", **changes):
        values = {"model": str(made(kind)), "dataset": str(text[1]), "block_size": 16, "activation_tokens": 256}
        config = MeasureConfig(**(values | changes))
        make_run(STUDY, "measure", config, tmp_path / "m", MeasureOptions(device="cpu"), ["measure"])
        return tmp_path / "m"

    return make


def read(folder, name):
    return list(csv.DictReader((folder / name).read_text().splitlines()))


def test_fewer_tokens_than_the_width_give_no_number(run, capsys):
    folder = run(activation_tokens=48)  # width 64
    for row in read(folder, "activations.csv"):
        assert (row["tokens"], row["act_kappa_centred"], row["ff_gram_original"]) == ("48", "", "")
    out = capsys.readouterr().out
    assert "not run" in out
    assert "48 tokens are fewer than the FFN's width 64" in out
    assert "give --activation-tokens 256" in out
    results = json.loads((folder / "results.json").read_text())["metrics"]["summary"]
    assert next(row for row in results if row["what"] == "ff_gram_original")["median"] is None


def test_few_tokens_are_warned_of_and_the_noise_floor_is_told(run, capsys):
    folder = run(activation_tokens=128)
    out = capsys.readouterr().out
    assert "warning: 128 tokens are fewer than 4 x the FFN's width 64" in out
    assert "White noise would have 34" in out  # ((1 + sqrt(1/2)) / (1 - sqrt(1/2)))^2 = 33.97
    assert float(read(folder, "activations.csv")[0]["act_kappa_centred"]) > 1


def test_enough_tokens_are_not_warned_of():
    _, warning = token_note([ActivationRow("a", 64, 256, 2.0, 2.0, 2.0)])
    assert warning == ""


def test_text_that_cannot_be_read_leaves_the_weights(run, capsys, monkeypatch):
    from studycore.language import wordnet

    def nowhere():
        raise UserError("WordNet: there is none here; `make setup` fetches it")

    monkeypatch.setattr(wordnet, "documents", nowhere)
    folder = run(dataset="studycore/wordnet")
    assert len(read(folder, "weights.csv")) == 8
    assert not (folder / "activations.csv").exists()
    out = capsys.readouterr().out
    assert out.index("transformer.h.0.mlp.c_fc") < out.index("WordNet: there is none here")
    assert "not run" in (folder / "report.md").read_text()
    assert json.loads((folder / "manifest.json").read_text())["state"] == "done"


def test_nan_in_a_weight_is_said_by_its_name(run, made, tmp_path):
    folder = shutil.copytree(made("gpt2"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 2] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"--model: .*: transformer\.h\.1\.mlp\.c_fc\.weight holds NaN or infinity"):
        run(model=str(folder))


@pytest.mark.parametrize("work", ["spectrum_of", "measure_activations"])
def test_a_signal_ends_a_measurement_between_two_matrices_or_batches(run, made, tmp_path, monkeypatch, work):
    where = matrices if work == "spectrum_of" else module
    original, calls = getattr(where, work), []

    def signals(*arguments):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(where, work, signals)
        with pytest.raises(
            Stopped, match=r"^stopped by SIGTERM without a checkpoint; `retrofit resume .* starts it again"
        ):
            run()
    assert len(calls) == 1
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert (manifest["state"], manifest["reason"]) == ("stopped", "stopped by SIGTERM")
    assert not (tmp_path / "m" / "weights.csv").exists()
    assert main(["resume", str(tmp_path / "m")]) == 0
    assert len(read(tmp_path / "m", "weights.csv")) == len(measure_weights(tiny_model("gpt2"))[0])


def weight(role, kappa):
    return MatrixRow(f"{role}{kappa}", role, "4 x 4", kappa, kappa, kappa, 1.0, 1.0, 1.0)


def test_summaries_by_role_keep_singular_matrices():
    weights = [weight("up", k) for k in (4.0, math.inf, 1.0, 2.0)] + [weight("down", k) for k in (8.0, 2.0)]
    activations = [ActivationRow(str(k), 4, 99, k, 1.0, math.inf) for k in (2.0, 8.0)]
    rows = {row.what: row for row in summarise(weights, activations)}
    up, down, act = rows["kappa, up"], rows["kappa, down"], rows["act_kappa_centred"]
    assert (up.count, up.singular, up.median) == (4, 1, 3.0)
    assert up.geometric_mean == pytest.approx(2)  # of 4, 1 and 2
    assert (down.count, down.singular, down.median) == (2, 0, 5.0)
    assert down.geometric_mean == pytest.approx(4)
    assert (act.count, act.median) == (2, 5.0)
    original = rows["ff_gram_original"]
    assert (original.singular, original.median, original.geometric_mean) == (2, math.inf, math.inf)
    assert "kappa, gate" not in rows
    # Of layers of which some could not be measured, nothing is summed up.
    some = summarise(weights, [*activations, ActivationRow("c", 400, 99, None, 1.0, 2.0)])
    part = next(row for row in some if row.what == "act_kappa_centred")
    assert (part.count, part.median, part.geometric_mean) == (2, None, None)


def test_a_singular_matrix_is_counted_in_the_files(run, made, tmp_path):
    folder = shutil.copytree(made("gpt2"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"][0] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    out = run(model=str(folder))
    assert [row["kappa"] for row in read(out, "weights.csv")].count("inf") == 1
    metrics = json.loads((out / "results.json").read_text())["metrics"]
    up = next(row for row in metrics["summary"] if row["what"] == "kappa, up")
    assert (up["count"], up["singular"], up["median"]) == (2, 1, None)
    other = next(row for row in read(out, "weights.csv") if row["role"] == "up" and row["kappa"] != "inf")
    assert up["geometric_mean"] == pytest.approx(float(other["kappa"]))
    ranks = {row["name"]: int(row["rank"]) for row in read(out, "weights.csv") if row["role"] == "up"}
    assert ranks == {"transformer.h.0.mlp.c_fc": 15, "transformer.h.1.mlp.c_fc": 16}
    assert metrics["median_kappa"] > 1
    answer = (out / "report.md").read_text()
    assert "kappa infinite" in answer


def test_rows_come_back_from_their_files_bit_by_bit(tmp_path):
    weights = [weight("up", 1 / 3), weight("down", math.inf)]
    activations = [ActivationRow("a", 4, 99, 2 / 3, None, math.inf)]
    write_csv(tmp_path / "w.csv", weights)
    write_csv(tmp_path / "a.csv", activations)
    assert read_csv(tmp_path / "w.csv", MatrixRow) == weights
    assert read_csv(tmp_path / "a.csv", ActivationRow) == activations
    assert read_csv(tmp_path / "nowhere.csv", MatrixRow) == []
    activations = [ActivationRow("a", 4, 99, 2 / 3, None, math.inf, 1 / 3, 7.5, 2, "Ġthe")]
    write_csv(tmp_path / "a.csv", activations)
    assert read_csv(tmp_path / "a.csv", ActivationRow) == activations
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "a.csv").write_text("\n".join(",".join(line.split(",")[:6]) for line in lines) + "\n")
    assert read_csv(tmp_path / "a.csv", ActivationRow) == [ActivationRow("a", 4, 99, 2 / 3, None, math.inf)], "earlier"


def test_the_answer_has_the_medians_and_the_report_the_summary_first(run):
    report = (run() / "report.md").read_text()
    summary = report.split("## Summary")[1].split("\n## ")[0]
    medians = {line.split(" | ")[0].strip("| "): line.split(" | ")[3] for line in summary.splitlines() if " | " in line}
    assert f"The up projections' median kappa is {medians['kappa, up']}." in report
    every, without = medians["act_kappa_centred"], medians["act_kappa_without_largest"]
    assert f"The FFN activations' is {every}, and {without} without their 3 largest directions." in report
    assert report.index("## Summary") < report.index("## FFN activations") < report.index("## Weights")


def test_an_earlier_versions_folder_reports(run):
    """Its activations.csv names the original study's recipe otherwise, and it holds no arrays and no claims."""
    folder = run()
    before = (folder / "report.md").read_text()
    path = folder / "activations.csv"
    path.write_text(path.read_text().replace("ff_gram_original", "seed_ff_gram"))
    weights = folder / "weights.csv"
    weights.write_text("".join(line.rpartition(",")[0] + "\n" for line in weights.read_text().splitlines()))
    assert ",rank" not in weights.read_text()
    (folder / "arrays.safetensors").unlink()
    (folder / "claims.json").unlink()
    report_on(STUDY, folder)
    after = (folder / "report.md").read_text()
    assert after.split("## Summary")[1].split("\n## ")[0] == before.split("## Summary")[1].split("\n## ")[0]


def test_up_projections_are_compared_with_gaussian_matrices(run):
    """By hand, from the table of weights."""
    folder = run("llama")
    root = math.sqrt(16 / 40)
    ratios = [
        float(row["kappa"]) * (1 - root) / (1 + root) for row in read(folder, "weights.csv") if row["role"] == "up"
    ]
    (claim,) = json.loads((folder / "results.json").read_text())["claims"]
    assert claim["measured"] == pytest.approx(math.prod(ratios) ** (1 / len(ratios)))
    assert (claim["n"], claim["registered"], claim["threshold"]) == (2, True, 1.1)


def test_an_up_projection_of_lower_rank_is_in_no_claims_interval(run, made, tmp_path):
    """With two equal columns, kappa would be the rounding's: a ratio of 1e15 beside ordinary ones."""
    folder = shutil.copytree(made("llama"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    wide = tensors["model.layers.1.mlp.up_proj.weight"]
    wide[:, 3] = wide[:, 11]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (claim,) = json.loads((run(model=str(folder)) / "results.json").read_text())["claims"]
    assert (claim["verdict"], claim["measured"]) == ("not run", None)
    assert "there are 1" in claim["why"]


def test_a_claims_words_count_what_it_leaves_out():
    table = pd.DataFrame([{"over_gaussian": [2.0, 8.0], "up_not_compared": 3}])
    found, how = over_gaussian().compute(table)
    assert (found.estimate, found.n) == (pytest.approx(4), 2)
    assert "3 up projections of lower rank, or square, are left out" in how
    assert "left out" not in over_gaussian().compute(table.assign(up_not_compared=0))[1]


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "gpt_neox", "llama"])
def test_every_matrix_has_a_role(kind):
    model = tiny_model(kind)
    roles = roles_of_matrices(model)
    expected = {"up", "down", "attention", "embeddings"} | ({"gate"} if kind == "llama" else set())
    assert set(roles.values()) == expected
    rows, _ = measure_weights(model, embeddings=True)
    assert {row.name: row.role for row in rows} == roles
    assert sum(row.role == "up" for row in rows) == 2


def test_figures_keep_kinds_apart(run):
    assert kind_of("transformer.h.0.attn.c_proj") == "attn.c_proj"
    assert kind_of("transformer.h.1.mlp.c_proj") == "mlp.c_proj"
    assert kind_of("model.layers.3.self_attn.q_proj") == "self_attn.q_proj"
    assert kind_of("lm_head") == "lm_head"
    folder = run("llama", embeddings=True)
    for name in ("spectra.svg", "kappa.svg"):
        text = (folder / "figures" / name).read_text()
        for kind in ("self_attn.o_proj", "mlp.down_proj", "lm_head"):
            assert text.count(f">{kind}<") == 1
    assert not re.search(r">\d\.\d+<", text)  # layers are whole numbers


def test_curves_differ_in_colour_line_or_marker():
    assert len({curve_style(i)[:2] for i in range(28)}) == 28
    assert len({curve_style(i)[::2] for i in range(28)}) == 28


def test_massive_activations_are_named():
    def row(name, largest):
        return ActivationRow(name, 4, 99, 2.0, 2.0, 2.0, 1.5, largest, 7, "the")

    rows = [row("a", 1.0), row("b", 900.0), row("c", 2.0), row("d", 19.0), row("e", 2.0)]
    assert massive_note(rows) == (
        "Massive activations, 10 or more times 2, the median layer's largest: b 900 (unit 7, token 'the')."
    )
    assert massive_note(rows[:1]).endswith("largest: none.")
    assert massive_note([ActivationRow("a", 4, 99, 2.0, 2.0, 2.0)]) == "", "an earlier version's folder"


def test_the_largest_activation_is_in_file_and_report(run):
    folder = run()
    for row in read(folder, "activations.csv"):
        assert float(row["largest"]) > 0
        assert 0 <= int(row["unit"]) < int(row["width"])
        assert row["token"]
        assert float(row["act_kappa_without_largest"]) <= float(row["act_kappa_centred"])
    assert "Massive activations, 10 or more times" in (folder / "report.md").read_text()
