"""Old `.pt` files: what comes in does what its tensors did, and nothing comes in by guessing or by running code."""

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from studycore.cli import report_verb, resume_verb
from studycore.errors import UserError
from studycore.files import write_json
from studycore.record import read_config, read_record
from studycore.run_folder import read_manifest, read_results
from ternary_vae.checkpoint import load_model
from ternary_vae.cli import STUDY, import_command, main
from ternary_vae.data import Operations
from ternary_vae.legacy import old_file
from ternary_vae.legacy.importing import forms_of, shown_fields
from ternary_vae.legacy.inspection import examine_old
from ternary_vae.legacy.old_file import read_old
from ternary_vae.legacy.verbs import inspect_command
from ternary_vae.metrics.evaluate import all_metrics

torch.set_num_threads(1)
TRITS, D, SIZES, H = 3, 2, (8, 4), 40
CONFIG = {"latent_dim": D, "curvature": 1.0, "max_radius": 0.95, "dual_projection": True, "lr": 1e-3}


def old_state(dropout=True, controller=False, manifold=None, dual=True):
    """A state dict of the old layout, by the names and shapes of its description."""
    draw = torch.Generator().manual_seed(0)
    state = {}

    def linear(name, out, width):
        state[f"{name}.weight"] = torch.randn(out, width, generator=draw)
        state[f"{name}.bias"] = 0.3 * torch.randn(out, generator=draw)

    def norm(name, width):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=draw)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=draw)

    for x in "AB":
        linear(f"encoder_{x}.encoder.0", SIZES[0], TRITS)
        linear(f"encoder_{x}.encoder.2", SIZES[1], SIZES[0])
        linear(f"encoder_{x}.fc_mu", D, SIZES[1])
        linear(f"encoder_{x}.fc_logvar", D, SIZES[1])
    linear("decoder_A.decoder.0", 5, D)
    linear("decoder_A.decoder.2", 3 * TRITS, 5)
    for p in ("projection.proj_A", "projection.proj_B") if dual else ("projection",):
        linear(f"{p}.direction_net.0", H, D)
        norm(f"{p}.direction_net.1", H)
        linear(f"{p}.direction_net.{4 if dropout else 3}", D, H)
        linear(f"{p}.radius_net.0", max(32, H // 2), D)
        linear(f"{p}.radius_net.{3 if dropout else 2}", 1, max(32, H // 2))
        if manifold is not None:
            state[f"{p}.manifold.isp_c"] = torch.tensor(math.log(math.expm1(manifold)))
    if controller:
        for k, (out, width) in {0: (32, 8), 3: (32, 32), 5: (6, 32)}.items():
            linear(f"controller.net.{k}", out, width)
        norm("controller.net.1", 32)
    return state


def old_forward(state, x, view, max_radius):
    """mu, point of the ball and, of view A, logits: plain torch, without our model."""

    def at(h, name):
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    h = F.relu(at(F.relu(at(x, f"encoder_{view}.encoder.0")), f"encoder_{view}.encoder.2"))
    mu = at(h, f"encoder_{view}.fc_mu")
    p = f"projection.proj_{view}" if f"projection.proj_{view}.radius_net.0.bias" in state else "projection"
    last = 4 if f"{p}.direction_net.4.bias" in state else 3
    h = at(mu, f"{p}.direction_net.0")
    h = F.layer_norm(h, (H,), state[f"{p}.direction_net.1.weight"], state[f"{p}.direction_net.1.bias"])
    direction = mu + at(F.silu(h), f"{p}.direction_net.{last}")
    direction = direction / direction.norm(dim=-1, keepdim=True)
    radius = max_radius * torch.sigmoid(at(F.silu(at(mu, f"{p}.radius_net.0")), f"{p}.radius_net.{last - 1}"))
    logits = at(F.relu(at(mu, "decoder_A.decoder.0")), "decoder_A.decoder.2").reshape(-1, TRITS, 3)
    return mu, radius * direction, logits


@pytest.fixture
def write(tmp_path):
    def make(state, config=CONFIG, name="model_state", file="best.pt", **more):
        path = tmp_path / file
        torch.save({name: state, "config": config, "epoch": 12, **more}, path)
        return str(path)

    return make


def bring_in(path, tmp_path, *flags):
    folder = tmp_path / "run"
    import_command([path, str(folder), *flags])
    return folder


def check_outputs(folder, state, max_radius=0.95):
    _, config, model = load_model(str(folder))
    model.eval()
    x = Operations.all(TRITS).x_NM.float()
    out = model(x)
    for view in "AB":
        mu, point, logits = old_forward(state, x, view, max_radius)
        torch.testing.assert_close(out[f"mu_{view}"], mu)
        torch.testing.assert_close(out[f"z_{view}_hyp"], point, rtol=1e-5, atol=1e-6)
        if view == "A":
            torch.testing.assert_close(out["logits"], logits)
    return config


@pytest.mark.parametrize("name", ["model", "model_state", "model_state_dict"])
def test_an_old_file_does_the_same_as_its_tensors(write, tmp_path, capsys, name):
    state = old_state()
    folder = bring_in(write(state, name=name), tmp_path, "--projection-dropout", "0.1", "--max-radius", "0.8")
    config = check_outputs(folder, state, 0.8)
    assert (config.trits, config.latent_dim, config.encoder_sizes, config.decoder_sizes) == (TRITS, D, [8, 4], [5])
    assert (config.hidden_dim, config.n_projection_layers, config.use_dual_projection) == (H, 1, True)
    assert (config.projection_dropout, config.max_radius, config.radius) == (0.1, 0.8, "euclidean")
    assert (config.activation, config.projection_dtype) == ("relu", "float32")
    assert "coverage" in capsys.readouterr().out


@pytest.mark.parametrize("dropout", [False, True])
def test_the_run_is_finished_and_inspect_agrees_with_it(write, tmp_path, capsys, dropout):
    path = write(old_state(dropout=dropout), {**CONFIG, "projection_dropout": 0.1 * dropout})
    folder = bring_in(path, tmp_path, "--view=a")
    manifest = read_manifest(folder)
    assert (manifest["state"], manifest["verb"], manifest["imported"]["epoch"]) == ("done", "import", 12)
    assert (manifest["imported"]["file"], len(manifest["imported"]["sha256"])) == ("best.pt", 64)
    checkpoint, config, model = load_model(str(folder))
    metrics = all_metrics(model.eval(), Operations.all(TRITS), "a", config.seed)
    results = read_results(folder)["metrics"]
    assert set(results.pop("baselines")) == {"closed_form", "untrained"}
    assert results == pytest.approx(metrics) == checkpoint.state["state"]["metrics"]
    assert read_config(STUDY, folder) == config and (config.stages, config.view) == ("coverage", "a")
    assert (folder / "history.parquet").exists()
    inspect_command([str(folder)])
    assert "rebuild: yes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spelling",
    [
        {"use_dual_projection": True, "hidden_dim": H, "n_projection_layers": 1},
        {"dual_projection": True, "projection_hidden_dim": H, "projection_layers": 1},
    ],
)
def test_each_spelling_of_the_configuration_is_understood_and_checked(write, tmp_path, spelling):
    base = {"curvature": 1.0, "max_radius": 0.95}
    bring_in(write(old_state(dropout=False), {**base, **spelling}), tmp_path)
    for name, wrong in zip(spelling, (False, 64, 2), strict=True):
        ours = {"dual_projection": "use_dual_projection", "projection_hidden_dim": "hidden_dim"}.get(name, name)
        ours = ours.replace("projection_layers", "n_projection_layers") if name == "projection_layers" else ours
        path = write(old_state(dropout=False), {**base, **spelling, name: wrong})
        with pytest.raises(UserError, match=f"{ours}: its configuration says {wrong} and the tensors say"):
            import_command([path, str(tmp_path / "other")])


def test_two_spellings_that_disagree(write, tmp_path):
    path = write(old_state(dropout=False), {**CONFIG, "use_dual_projection": False})
    with pytest.raises(UserError, match="use_dual_projection twice"):
        bring_in(path, tmp_path)


def test_flags_win_over_the_files_configuration(write, tmp_path):
    path = write(old_state(dropout=False), {**CONFIG, "hidden_dim": 256, "max_radius": 0.5})
    with pytest.raises(
        UserError, match="hidden_dim: its configuration says 256 and the tensors say 40; give --hidden-dim 40"
    ):
        bring_in(path, tmp_path)
    config = check_outputs(bring_in(path, tmp_path, "--hidden-dim=40", "--max-radius=0.95"), old_state(dropout=False))
    assert config.max_radius == 0.95
    with pytest.raises(UserError, match="hidden_dim: the flag says 41"):
        import_command([path, str(tmp_path / "other"), "--hidden-dim=41"])


@pytest.mark.parametrize("name", ["curvature", "max_radius"])
def test_what_no_tensor_shows_must_be_said(write, tmp_path, name):
    config = {key: value for key, value in CONFIG.items() if key != name}
    path = write(old_state(dropout=False), config)
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(UserError, match=f"{name}: shown in no tensor.*{flag}"):
        bring_in(path, tmp_path)
    assert not (tmp_path / "run").exists()
    assert getattr(read_config(STUDY, bring_in(path, tmp_path, flag, "0.9")), name) == 0.9


def test_dropout_is_seen_in_the_indices(write, tmp_path):
    path = write(old_state(dropout=True))
    with pytest.raises(
        UserError, match=r"projection_dropout: the tensors' indices show dropout.*give --projection-dropout"
    ):
        bring_in(path, tmp_path)
    with pytest.raises(UserError, match=r"projection_dropout: the flag says 0\.0.*show dropout"):
        bring_in(path, tmp_path, "--projection-dropout=0")
    with pytest.raises(UserError, match=r"projection_dropout: its configuration says 0\.1.*show none"):
        bring_in(write(old_state(dropout=False), {**CONFIG, "projection_dropout": 0.1}), tmp_path)


def test_controller_and_single_projection(write, tmp_path):
    state = old_state(dropout=False, controller=True, dual=False, manifold=1.0)
    config = check_outputs(bring_in(write(state, {"curvature": 1.0, "max_radius": 0.95}), tmp_path), state)
    assert config.use_controller and not config.use_dual_projection


def test_geoopts_curvature_is_checked_and_let_go(write, tmp_path):
    path = write(old_state(dropout=False, manifold=0.5))
    with pytest.raises(UserError, match=r"curvature: 1\.0 is declared and .*isp_c says 0\.5"):
        bring_in(path, tmp_path)
    folder = bring_in(path, tmp_path, "--curvature=0.5")
    assert read_manifest(folder)["imported"]["dropped"] == [f"projection.proj_{x}.manifold.isp_c" for x in "AB"]
    check_outputs(folder, old_state(dropout=False))


def test_norms_in_the_encoder_ask_for_the_activation(write, tmp_path):
    state = old_state(dropout=False)
    for x in "AB":
        for part in ("weight", "bias"):
            state[f"encoder_{x}.encoder.3.{part}"] = state.pop(f"encoder_{x}.encoder.2.{part}")
            for k, width in ((1, 8), (4, 4)):
                state[f"encoder_{x}.encoder.{k}.{part}"] = torch.ones(width)
    path = write(state)
    with pytest.raises(UserError, match=r"activation: .*--activation"):
        bring_in(path, tmp_path)
    config = read_config(STUDY, bring_in(path, tmp_path, "--activation=silu"))
    assert (config.encoder_norm, config.activation, config.encoder_dropout) == (True, "silu", 0.0)


def test_keys_left_over_missing_or_of_another_shape_are_listed(write, tmp_path):
    state = old_state(dropout=False)
    with pytest.raises(UserError, match=r"no name here for homeostasis\.ema, decoder_B\.bias"):
        bring_in(write({**state, "homeostasis.ema": torch.ones(1), "decoder_B.bias": torch.ones(1)}), tmp_path)
    broken = {**state, "encoder_B.encoder.7.bias": torch.ones(1), "encoder_B.fc_mu.bias": torch.ones(9)}
    del broken["encoder_B.fc_logvar.bias"]
    with pytest.raises(UserError) as raised:
        bring_in(write(broken), tmp_path)
    for part in (
        "1 missing (encoder_B.fc_logvar.bias)",
        "1 left over (encoder_B.encoder.7.bias)",
        "encoder_B.fc_mu.bias is [9] float32 and not [2] float32",
    ):
        assert part in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_key_map_names_another_layout(write, tmp_path):
    state = old_state(dropout=False)
    other = {f"module.{key}".replace("decoder_A.decoder", "dec"): tensor for key, tensor in state.items()}
    other["module.ema"] = torch.ones(1)
    (tmp_path / "map.yaml").write_text("module.: ''\nmodule.dec.: decoder_A.decoder.\nmodule.ema: null\n")
    folder = bring_in(write(other), tmp_path, "--key-map", str(tmp_path / "map.yaml"))
    check_outputs(folder, state)
    assert read_manifest(folder)["imported"]["dropped"] == ["module.ema"]
    (tmp_path / "map.yaml").write_text("encoder_B.: encoder_A.\n")
    with pytest.raises(UserError, match="would both be encoder_A"):
        bring_in(write(state), tmp_path, "--key-map", str(tmp_path / "map.yaml"))
    (tmp_path / "map.yaml").write_text("encoder_B.: 3\n")
    with pytest.raises(UserError, match=r"encoder_B\.: 3 is no prefix"):
        bring_in(write(state), tmp_path, "--key-map", str(tmp_path / "map.yaml"))


def test_weights_that_are_not_numbers_or_of_mixed_precision(write, tmp_path):
    state = old_state(dropout=False)
    state["encoder_B.fc_mu.bias"][0] = math.nan
    with pytest.raises(UserError, match=r"encoder_B\.fc_mu\.bias holds NaN"):
        bring_in(write(state), tmp_path)
    state = old_state(dropout=False)
    state["projection.proj_B.radius_net.0.bias"] = state["projection.proj_B.radius_net.0.bias"].double()
    with pytest.raises(UserError, match=r"projection\.\* are float32 and float64; save them as"):
        bring_in(write(state), tmp_path)


def test_numpys_scalars_become_plain_numbers_without_numpy(write, tmp_path, monkeypatch):
    """The old metrics are made of them; numpy's own scalar() would unpickle what an object type carries."""
    values = {"f": np.float64(-0.625), "s": np.float32(0.5), "n": np.int64(-7), "b": np.bool_(True), "p": 1.25}
    read = read_old(path := Path(write(old_state(), metrics=values)))
    assert read.metrics == {"f": -0.625, "s": 0.5, "n": -7, "b": True, "p": 1.25}
    assert {type(value) for value in read.metrics.values()} == {float, int, bool}
    assert read.epoch == 12
    with pytest.raises(pickle.UnpicklingError, match="little-endian"):
        old_file.STAND_INS[0][0]("f8").__setstate__((3, ">", None))
    monkeypatch.setattr(old_file, "STAND_INS", [])
    with pytest.raises(UserError, match="holds more than weights"):
        read_old(path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class ObjectScalar:
    """numpy's scalar of an object type, which carries a pickle of its own."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        from numpy._core.multiarray import scalar

        return (scalar, (np.dtype("O"), pickle.dumps(Trap(self.path))))


@pytest.mark.parametrize("kind", ["object", "array", "object scalar", "plain class"])
def test_a_file_that_needs_pickle_is_refused_and_nothing_runs(write, tmp_path, kind):
    mark = tmp_path / "executed"
    value = {
        "object": Trap(mark), "array": np.ones(3), "object scalar": ObjectScalar(mark), "plain class": CONFIG.keys,
    }[kind]  # fmt: skip
    value = Path("x") if kind == "plain class" else value
    path = write(old_state(), metrics={"x": value})
    for command in (lambda: bring_in(path, tmp_path), lambda: inspect_command([path])):
        with pytest.raises(UserError, match=r"holds more than weights and plain values.*save its weights"):
            command()
    assert not mark.exists() and not (tmp_path / "run").exists()


def test_files_that_are_none(write, tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        bring_in(str(tmp_path / "none.pt"), tmp_path)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pt"):
        bring_in(str(tmp_path / "text.pt"), tmp_path)
    whole = Path(write(old_state())).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.pt"):
        bring_in(str(tmp_path / "half.pt"), tmp_path)
    with pytest.raises(UserError, match="there must be exactly one"):
        bring_in(write(old_state(), name="weights"), tmp_path)
    with pytest.raises(UserError, match="there must be exactly one"):
        bring_in(write(old_state(), model=old_state()), tmp_path)
    with pytest.raises(UserError, match="first, then the flags"):
        import_command(["--curvature=1", "x.pt"])


def test_a_run_that_is_there_is_not_written_over(write, tmp_path):
    path = write(old_state(dropout=False))
    bring_in(path, tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        bring_in(path, tmp_path)


def test_only_what_shows_in_the_tensors_is_taken_from_them():
    fields = shown_fields(forms_of(old_state(manifold=1.0)))
    assert fields["encoder_dropout"] is False and fields["projection_dropout"] is True
    assert shown_fields({}) == {"use_controller": False}


def test_inspect_shows_an_old_file_and_says_whether_it_fits(write, capsys):
    path = write(old_state(dropout=False, manifold=1.0), metrics={"coverage": 0.25})
    inspect_command([path])
    said = capsys.readouterr().out
    for part in ("epoch 12", "coverage 0.25", "max_radius 0.95", "projection: 22 tensors", "ternary-vae import"):
        assert part in said


@pytest.mark.parametrize(
    ("state", "config", "said"),
    [
        ({"dropout": True}, {}, "projection_dropout: the tensors' indices show dropout"),
        (
            {"dropout": False, "controller": True},
            {"use_controller": False},
            "use_controller: its configuration says False",
        ),
        ({"dropout": False}, {"hidden_dim": 64}, "hidden_dim: its configuration says 64 and the tensors say 40"),
        ({"dropout": False, "manifold": 0.5}, {}, "curvature: 1.0 is declared and .* says 0.5"),
    ],
)
def test_inspect_says_of_an_old_file_what_import_would_say(write, tmp_path, state, config, said):
    path = write(old_state(**state), {**CONFIG, **config})
    (finding,) = examine_old(Path(path)).findings
    assert finding.cause == "import"
    for command in (lambda: inspect_command([path]), lambda: bring_in(path, tmp_path)):
        with pytest.raises(UserError, match=said):
            command()


def test_inspect_says_what_an_old_file_does_not_declare(write):
    (finding,) = examine_old(Path(write(old_state(dropout=False), {}))).findings
    assert "curvature, max_radius" in finding.sentence and "--curvature and --max-radius" in finding.sentence


# ----------------------------------------------------------------------------------------------------- the imported run
def test_an_imported_run_is_reported_and_is_a_start_for_others(write, tmp_path, capsys):
    folder = bring_in(write(old_state(dropout=False)), tmp_path)
    report_verb(STUDY, [str(folder)])
    said = capsys.readouterr().out
    assert "come back with every trit right" in said
    results = read_results(folder)
    assert results["claims"] == []  # the targets are of nine trits
    # The file's radii are trained ones, whatever our configuration says of stages.
    assert f"| hierarchy | {results['metrics']['hierarchy']:.6f} |" in (folder / "report.md").read_text()
    record = read_record(STUDY, folder)
    assert record.verb == "import" and len(record.table) == 1


def test_an_import_that_was_cut_off_is_not_resumed(write, tmp_path):
    folder = bring_in(write(old_state(dropout=False)), tmp_path)
    write_json(folder / "manifest.json", read_manifest(folder) | {"state": "running"})
    with pytest.raises(UserError, match=r"import` has nothing to resume; run it again"):
        resume_verb(STUDY, [str(folder)])


# --------------------------------------------------------------------------------- files that other people wrote or broke
def refused(path, tmp_path, capsys):
    """The one sentence with which both `import` and `inspect` refuse a file; nothing is written."""
    sentences = []
    for arguments in (["import", path, str(tmp_path / "run")], ["inspect", path]):
        assert main(arguments) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        said = sentence.removeprefix("ternary-vae: error: ")
        sentences.append(said.replace(f"{path}: does not rebuild: ", f"{path}: "))
    assert sentences[0] == sentences[1] and not (tmp_path / "run").exists()
    return sentences[0]


@pytest.mark.parametrize("name", ["encoder_B.fc_mu.weight", "projection.proj_A.radius_net.0.bias"])
def test_a_damaged_weight_is_seen_by_the_archives_own_checksum(write, tmp_path, capsys, name):
    state = old_state(dropout=False)
    path = write(state)
    data = bytearray(Path(path).read_bytes())
    data[data.find(state[name].numpy().tobytes()) + 7] ^= 0x04  # in the exponent: still a number
    Path(path).write_bytes(data)
    assert torch.load(path, weights_only=True)["model_state"][name].isfinite().all(), "torch itself sees nothing"
    assert re.search(r"is damaged: its entry best/data/\d+ does not match", refused(path, tmp_path, capsys))


def changed(key, tensor):
    return lambda state: {**state, key: tensor(state[key])}


KEY = "decoder_A.decoder.0.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(KEY, lambda t: t.to(torch.float8_e4m3fn)), f"{KEY} is of type float8_e4m3fn; convert it"),
        (changed(KEY, lambda t: t.to_sparse()), f"{KEY} is not dense (sparse_coo); save it as a dense tensor"),
        (changed(KEY, lambda t: t.to("meta")), f"{KEY} has a shape and no values"),
        (changed(KEY, lambda t: t / 0), f"{KEY} holds NaN or infinity; use an earlier checkpoint"),
        (changed(KEY, lambda t: t.half()), "encoder_* are float16 and float32; save them as float32 or float64 alone"),
        (changed(KEY, lambda t: t.tolist()), f"'{KEY}' of its model is no tensor"),
        (changed(KEY, lambda t: t * 1e38), "its weights make logits infinite or NaN; use an earlier checkpoint"),
        (changed("encoder_B.fc_mu.weight", lambda t: t * 1e38), "its weights make min_level_gap, richness, richness_hyperbolic and 3 more infinite"),
        (changed("encoder_A.fc_mu.weight", lambda t: t[0, 0]), "does not fit its architecture"),
        (lambda state: {**state, 7: torch.ones(1)}, "7 of its model is no tensor"),
        (lambda state: list(state.values()), "its model is no mapping of tensors"),
        (lambda state: {f"encoder_{k}.weight": torch.ones(1) for k in range(9)}, "no name here for encoder_0.weight, encoder_1.weight, encoder_2.weight and 6 more"),
    ],
)  # fmt: skip
def test_weights_that_are_none(write, tmp_path, capsys, change, said):
    path = write(change(old_state(dropout=False)))
    assert refused(path, tmp_path, capsys).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"curvature": "one"}, "its configuration: curvature: one does not fit; give a float above 0"),
        ({"hidden_dim": 40.5}, "its configuration: hidden_dim: 40.5 does not fit; give an int of 1 or more"),
        ({"latent_dim": None}, "its configuration: latent_dim: null does not fit"),
        ({"encoder_sizes": {"a": 8}}, "its configuration: encoder_sizes: {'a': 8} does not fit"),
        ({"activation": "gelu"}, "its configuration: activation: gelu does not fit"),
        ({"curvature": torch.eye(3)}, "its configuration: curvature: tensor([[1., 0., 0.], [0., 1., 0.], [0., 0., 1.]])"),
        ({"max_radius": 1.5}, "max_radius: 1.5 does not lie inside the ball of curvature 1.0"),
        ({"curvature": math.nan}, "its configuration: curvature: nan does not fit; give a"),
    ],
)  # fmt: skip
def test_a_configuration_of_wrong_types(write, tmp_path, capsys, config, said):
    path = write(old_state(dropout=False), {**CONFIG, **config})
    assert refused(path, tmp_path, capsys).startswith(f"{path}: {said}")


@pytest.mark.parametrize("config", ["yaml text", [("curvature", 1.0)], torch.ones(2)])
def test_a_configuration_that_is_no_mapping_is_not_passed_over(write, tmp_path, capsys, config):
    path = write(old_state(dropout=False), config)
    said = f"{path}: its config is {type(config).__name__} and no mapping; save it as a dict"
    assert refused(path, tmp_path, capsys).startswith(said)


def test_files_that_hold_no_weights(tmp_path, capsys):
    contents = {
        "pointer.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "empty.ckpt": b"",
        "page.bin": b"<!DOCTYPE html><html>not found</html>", "array.pth": b"\x93NUMPY\x01\x00v\x00{}",
        "deep.pt": b"\x80\x02" + b"(" * 100_000,
    }  # fmt: skip
    sentences = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        sentences[name] = refused(str(tmp_path / name), tmp_path, capsys).removeprefix(f"{tmp_path / name}: ")
    assert sentences["pointer.pt"].startswith("is a git-lfs pointer and not the file itself")
    assert sentences["empty.ckpt"] == "is empty; fetch it anew"
    for name in ("page.bin", "array.pth", "deep.pt"):
        assert sentences[name].startswith(("cannot be read as a PyTorch file (", "holds more than weights")), name
    script = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(1, 1)).save(script)
    assert "cannot be read as a PyTorch file (RuntimeError: Cannot use" in refused(str(script), tmp_path, capsys)


def test_names_of_classes_that_a_file_would_need_are_read_from_it(write, tmp_path, capsys):
    path = write(old_state(), optimizer=torch.nn.Linear(1, 1), at=Path("x"))
    said = refused(path, tmp_path, capsys)
    assert f"{path}: holds more than weights and plain values (" in said
    assert "torch.nn.modules.linear.Linear" in said and "pathlib." in said


def wrapped(state, prefix):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_the_names_is_left_out_and_said(write, tmp_path, capsys, prefix):
    state = old_state(dropout=False)
    inside = {key.replace("encoder_A.", "encoder_A._orig_mod."): tensor for key, tensor in state.items()}
    averaged = {"n_averaged": torch.tensor(7), **wrapped(inside, prefix)}
    folder = bring_in(write(averaged), tmp_path)
    check_outputs(folder, state)
    wrappers = [name for name in ("module", "_orig_mod") if name in prefix or name == "_orig_mod"]
    note = f"wrapped weights: {' and '.join(wrappers)} left out of the tensors' names"
    assert note in capsys.readouterr().out
    assert read_manifest(folder)["imported"]["notes"] == [note]
    assert read_manifest(folder)["imported"]["dropped"] == ["n_averaged"]


def test_another_prefix_is_named_with_the_line_that_mends_it(write, tmp_path, capsys):
    state = old_state(dropout=False)
    path = write(wrapped(state, "model.net."))
    said = refused(path, tmp_path, capsys)
    assert said == (
        f"{path}: 'model.net.' stands before the names of its tensors; give a --key-map with the line 'model.net.': ''"
    )
    (tmp_path / "map.yaml").write_text(said.split("with the line ")[1])
    check_outputs(bring_in(path, tmp_path, "--key-map", str(tmp_path / "map.yaml")), state)


def test_of_two_copies_the_one_taken_is_named(write, tmp_path, capsys):
    state, other = old_state(dropout=False), {k: -t for k, t in old_state(dropout=False).items()}
    path = write(state, ema={"decay": 0.9, "shadow": wrapped(other, "module.")}, best={"model": other}, optimizer={"encoder_A.fc_mu.weight": torch.ones(1)})  # fmt: skip
    folder = bring_in(path, tmp_path)
    check_outputs(folder, state)
    note = "several copies of the model: the one under model_state is taken, not ema.shadow, best.model"
    assert note in capsys.readouterr().out
    inspect_command([path])
    assert note in capsys.readouterr().out
    (tmp_path / "run").rename(tmp_path / "first")

    beside = bring_in(write({**wrapped(other, "ema_model."), **state}), tmp_path)
    check_outputs(beside, state)
    assert read_manifest(beside)["imported"]["notes"] == [
        "two models: the one whose names begin with '' is taken, not that with 'ema_model.'"
    ]
    assert len(read_manifest(beside)["imported"]["dropped"]) == len(state)
    (tmp_path / "run").rename(tmp_path / "second")
    # Of two that are both under a prefix, the user says which.
    path = write({**wrapped(state, "net."), **wrapped(other, "ema_net.")})
    assert "holds a model under each of 'net.' and 'ema_net.'; give a --key-map" in refused(path, tmp_path, capsys)
    (tmp_path / "map.yaml").write_text("'net.': null\n'ema_net.': ''\n")
    check_outputs(bring_in(path, tmp_path, "--key-map", str(tmp_path / "map.yaml")), other)


def test_a_copy_that_is_not_the_whole_model_is_not_passed_over(write, tmp_path, capsys):
    path = write({**old_state(dropout=False), "ema_model.encoder_A.extra.weight": torch.ones(1)})
    assert "no name here for ema_model.encoder_A.extra.weight" in refused(path, tmp_path, capsys)


def test_a_file_of_the_layout_before_archives_and_one_that_is_the_weights_alone(tmp_path, capsys):
    state = old_state(dropout=False)
    torch.save({"model": state, "config": CONFIG}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    check_outputs(bring_in(str(tmp_path / "old.pt"), tmp_path), state)
    (tmp_path / "run").rename(tmp_path / "first")
    torch.save(state, tmp_path / "weights.pt")
    check_outputs(bring_in(str(tmp_path / "weights.pt"), tmp_path, "--curvature=1", "--max-radius=0.95"), state)
