"""Old `.pt` files: what comes in does what its tensors did, and nothing comes in by guessing or by running code."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from studycore.cli import report_verb, resume_verb
from studycore.errors import UserError
from studycore.files import read_json, write_json
from studycore.record import read_config, read_record
from studycore.run_folder import read_manifest
from ternary_vae.checkpoint import load_model
from ternary_vae.cli import STUDY, import_command, inspect_command
from ternary_vae.data import Operations
from ternary_vae.legacy import importing
from ternary_vae.legacy.importing import read_old, shown_fields
from ternary_vae.legacy.inspection import examine_old
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
    results = read_json(folder / "results.json")["metrics"]
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
    for part in ("fc_logvar.bias is missing", "encoder.7.bias is left over", "fc_mu.bias is [9] and not [2]"):
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
    with pytest.raises(UserError, match="float32, float64"):
        bring_in(write(state), tmp_path)


def test_numpys_scalars_become_plain_numbers_without_numpy(write, tmp_path, monkeypatch):
    """The old metrics are made of them; numpy's own scalar() would unpickle what an object type carries."""
    values = {"f": np.float64(-0.625), "s": np.float32(0.5), "n": np.int64(-7), "b": np.bool_(True), "p": 1.25}
    read = read_old(path := importing.Path(write(old_state(), metrics=values)))
    assert read.metrics == {"f": -0.625, "s": 0.5, "n": -7, "b": True, "p": 1.25}
    assert {type(value) for value in read.metrics.values()} == {float, int, bool}
    assert read.epoch == 12
    with pytest.raises(pickle.UnpicklingError, match="little-endian"):
        importing.STAND_INS[0][0]("f8").__setstate__((3, ">", None))
    monkeypatch.setattr(importing, "STAND_INS", [])
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
    value = importing.Path("x") if kind == "plain class" else value
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
    whole = importing.Path(write(old_state())).read_bytes()
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
    found = shown_fields({key: tuple(tensor.shape) for key, tensor in old_state(manifold=1.0).items()})
    assert found["encoder_dropout"] is False and found["projection_dropout"] is True and found["manifold"]
    assert shown_fields({}) == {"use_controller": False, "manifold": False}


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
    (finding,) = examine_old(importing.Path(path)).findings
    assert finding.cause == "import"
    for command in (lambda: inspect_command([path]), lambda: bring_in(path, tmp_path)):
        with pytest.raises(UserError, match=said):
            command()


def test_inspect_says_what_an_old_file_does_not_declare(write):
    (finding,) = examine_old(importing.Path(write(old_state(dropout=False), {}))).findings
    assert "curvature, max_radius" in finding.sentence and "--curvature and --max-radius" in finding.sentence


# ----------------------------------------------------------------------------------------------------- the imported run
def test_an_imported_run_is_reported_and_is_a_start_for_others(write, tmp_path, capsys):
    folder = bring_in(write(old_state(dropout=False)), tmp_path)
    report_verb(STUDY, [str(folder)])
    said = capsys.readouterr().out
    assert "come back with every trit right" in said
    results = read_json(folder / "results.json")
    assert {claim["verdict"] for claim in results["claims"]} == {"not run"}
    assert all(claim["registered"] for claim in results["claims"])
    # The file's radii are trained ones, whatever our configuration says of stages.
    assert f"| hierarchy | {results['metrics']['hierarchy']:.6f} |" in (folder / "report.md").read_text()
    record = read_record(STUDY, folder)
    assert record.verb == "import" and len(record.table) == 1


def test_an_import_that_was_cut_off_is_not_resumed(write, tmp_path):
    folder = bring_in(write(old_state(dropout=False)), tmp_path)
    write_json(folder / "manifest.json", read_manifest(folder) | {"state": "running"})
    with pytest.raises(UserError, match=r"import` has nothing to resume; run it again"):
        resume_verb(STUDY, [str(folder)])
