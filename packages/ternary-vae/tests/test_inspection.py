"""What inspect says of checkpoints that do not rebuild: the original study's fault as two fixtures, and the other causes."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from studycore.checkpoints import load_checkpoint, rebuild, save_checkpoint
from studycore.configuration import to_dict
from studycore.errors import UserError
from studycore.files import sha256
from ternary_vae.checkpoint import load_model
from ternary_vae.cli import main
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.legacy.importing import forms_of
from ternary_vae.legacy.inspection import diagnose, examine
from ternary_vae.legacy.verbs import inspect_command
from ternary_vae.metrics.evaluate import headline, order_metrics, reconstruct
from ternary_vae.model import build_model, create_model, probe_inputs, replay_probe

torch.set_num_threads(1)


def config_of(**changes):
    values = {"trits": 3, "latent_dim": 2, "encoder_sizes": [8, 4], "decoder_sizes": [5], "hidden_dim": 8}
    # A controller that nothing reads must be frozen.
    return TrainConfig(**({"hierarchy_frozen": ["encoder_A", "decoder_A", "controller"]} | values | changes))


def model_of(config):
    """Weights that no fresh model has, so that every layer matters."""
    model = create_model(config, 1).eval()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=draw, dtype=torch.float64).to(weight)
    return model


def forms(config):
    return forms_of(model_of(config).state_dict())


def values(**changes):
    return to_dict(config_of(**changes))


class Manifold(torch.nn.Module):
    """What geoopt's ball of curvature -1 adds to a state_dict: the inverse softplus of c."""

    def __init__(self):
        super().__init__()
        self.isp_c = torch.nn.Parameter(torch.tensor(1.0).expm1().log(), requires_grad=False)


def with_manifold(stored):
    """The module as it was after geoopt's ball had been added to the projections."""
    model = build_model(stored)
    for projection in (model.projection.proj_A, model.projection.proj_B):
        projection.manifold = Manifold()
    return model


@pytest.fixture
def save(tmp_path):
    """A checkpoint of a model built by `made` (and saved with its metrics) whose configuration says `stored`."""

    def make(made, stored=None, weights=None):
        model = model_of(made)
        everything, inputs = Operations.all(made.trits), probe_inputs(made.trits)
        metrics = {"coverage": float(reconstruct(model, everything).double().mean())}
        metrics |= order_metrics(model, everything, headline(made.view))
        return save_checkpoint(
            tmp_path / "run" / "checkpoints", 7, config=to_dict(stored or made), model=weights or model.state_dict(),
            optimizer={}, state={"loop": "hierarchy", "index": 3, "state": {"metrics": metrics}},
            probe={**inputs, **replay_probe(model, inputs)}, best=True,
        )  # fmt: skip

    return make


def causes(path):
    return [finding.cause for finding in examine(path).findings]


def test_a_whole_checkpoint_is_listed_and_rebuilds(save, capsys):
    path = save(config_of(use_controller=True))
    assert examine(path).findings == []
    inspect_command([str(path.parents[1])])
    said = capsys.readouterr().out
    for part in (
        "step 7, stage hierarchy, epoch 3",
        "hidden_dim 8",
        "max_radius 0.95",
        "coverage ",
        "hierarchy ",
        "rebuild: yes",
    ):
        assert part in said
    # 8 -> 32 -> 32 -> 6 with a LayerNorm: the reference counts 103,269 - 101,663 parameters.
    assert "controller: 8 tensors, 1,606 parameters, float32" in said


def test_the_first_half_of_the_original_fault_dropout_that_the_configuration_forgets(save, capsys):
    path = save(config_of(projection_dropout=0.1), config_of())
    with pytest.raises(UserError, match="does not fit its configuration"):
        load_model(str(path))
    with pytest.raises(
        UserError,
        match=r"index shift by dropout: projection_dropout is false .*8 missing.*8 left over.*set projection_dropout",
    ):
        inspect_command([str(path)])
    said = capsys.readouterr().out
    assert "with projection_dropout 0.1 it loads strictly and replays its probe" in said and "rebuild: no" in said
    (finding,) = examine(path).findings
    assert finding.cause == "index shift by dropout"
    assert {"projection.proj_A.direction_net.4.weight", "projection.proj_B.radius_net.2.bias"} <= set(finding.keys)
    assert len(finding.keys) == 16


def test_the_second_half_of_the_original_fault_a_manifold_that_came_after_saving(save):
    path = save(config_of())
    with pytest.raises(UserError, match=r"does not fit its configuration.*Missing.*manifold\.isp_c"):
        rebuild(load_checkpoint(path), with_manifold, replay_probe)
    (finding,) = examine(path, with_manifold).findings
    assert finding.cause == "missing manifold"
    assert finding.keys == ("projection.proj_A.manifold.isp_c", "projection.proj_B.manifold.isp_c")
    assert "was added to the module after saving" in finding.sentence


def test_both_halves_are_ten_missing_and_eight_unexpected_keys_with_two_causes(save):
    path = save(config_of(projection_dropout=0.1), config_of())
    expected, held = with_manifold(values()).state_dict(), load_checkpoint(path).model
    assert (len(set(expected) - set(held)), len(set(held) - set(expected))) == (10, 8)
    findings = diagnose(values(), forms_of(held), with_manifold)
    assert sorted(finding.cause for finding in findings) == ["index shift by dropout", "missing manifold"]
    assert {key for finding in findings for key in finding.keys} == set(expected) ^ set(held)


@pytest.mark.parametrize(("controller", "stored"), [(False, 101_663), (True, 103_269)])
def test_with_the_manifold_the_sizes_are_those_that_the_original_study_stored(controller, stored):
    model = with_manifold(to_dict(TrainConfig(use_controller=controller, loss="geodesic")))
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == stored


def test_no_difference_is_no_finding():
    assert diagnose(values(), forms(config_of())) == []


@pytest.mark.parametrize(
    ("made", "cause", "named"),
    [
        ({"use_controller": True}, "extra controller", "use_controller is false in the configuration and true"),
        ({"hidden_dim": 12}, "shape", "hidden_dim is 8 in the configuration and 12"),
        ({"latent_dim": 3}, "shape", "latent_dim is 2 in the configuration and 3"),
        ({"encoder_sizes": [8, 5]}, "shape", "encoder_sizes is [8, 4] in the configuration and [8, 5]"),
        ({"decoder_sizes": [5, 6]}, "shape", "decoder_sizes is [5] in the configuration and [5, 6]"),
        ({"trits": 4}, "shape", "trits is 3 in the configuration and 4"),
        ({"n_projection_layers": 2}, "layers", "n_projection_layers is 1 in the configuration and 2"),
        ({"use_dual_projection": False}, "layers", "use_dual_projection is true in the configuration and false"),
        ({"encoder_norm": True}, "layers", "encoder_norm is false in the configuration and true"),
        ({"encoder_dropout": 0.2}, "index shift by dropout", "set encoder_dropout"),
    ],
)
def test_each_field_that_shows_in_the_tensors_is_the_one_cause(save, made, cause, named):
    path = save(config_of(**made), config_of())
    examination = examine(path)
    assert [finding.cause for finding in examination.findings] == [cause]
    assert named in examination.findings[0].sentence
    assert "replays its probe" in examination.lines[-1] or "trits" in made


def test_what_the_file_lacks_is_told_from_what_it_has_too_much():
    plain = forms(config_of())
    assert [finding.cause for finding in diagnose(values(use_controller=True), plain)] == ["missing controller"]
    manifold = {**plain, **{f"projection.proj_{x}.manifold.isp_c": ([], "float32") for x in "AB"}}
    assert [finding.cause for finding in diagnose(values(), manifold)] == ["extra manifold"]
    (finding,) = diagnose(values(projection_dropout=0.1), plain)
    assert finding.cause == "index shift by dropout" and "set projection_dropout to 0" in finding.sentence


def test_a_key_that_no_field_explains_is_listed():
    plain = forms(config_of())
    less = {key: form for key, form in plain.items() if key != "encoder_B.fc_mu.bias"}
    (finding,) = diagnose(values(), {**less, "encoder_C.bias": ([2], "float32")})
    assert finding.cause == "keys" and set(finding.keys) == {"encoder_B.fc_mu.bias", "encoder_C.bias"}
    assert "1 missing (encoder_B.fc_mu.bias); 1 left over (encoder_C.bias)" in finding.sentence
    (one_sided,) = diagnose(values(), {**plain, "encoder_B.fc_mu.weight": ([9, 9], "float32")})
    assert one_sided.cause == "keys" and one_sided.keys == ("encoder_B.fc_mu.weight",)
    assert "encoder_B.fc_mu.weight is [9, 9] float32 and not [2, 4] float32" in one_sided.sentence


def test_tensors_that_no_model_has_are_listed_and_end_nothing():
    plain = forms(config_of())
    halves = {key: (shape, "float16") for key, (shape, _) in plain.items()}
    assert {finding.cause for finding in diagnose(values(), halves)} == {"dtype", "keys"}
    wide = {**plain, "encoder_A.encoder.0.weight": ([8, 14], "float32")}
    assert {finding.cause for finding in diagnose(values(), wide)} == {"shape", "keys"}


def test_a_precision_that_strict_loading_would_convert_in_silence(save):
    path = save(config_of(projection_dtype="float32"), config_of())
    (finding,) = examine(path).findings
    assert (
        finding.cause == "dtype" and "projection_dtype is float64 in the configuration and float32" in finding.sentence
    )
    assert [finding.mend for finding in diagnose(values(), forms(config_of(dtype="float64")))] == [{"dtype": "float64"}]


@pytest.mark.parametrize("radius", ["hyperbolic", "euclidean"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("curvature", 0.6173), ("max_radius", 0.8321), ("radius", None), ("activation", "silu")],
)
def test_a_difference_that_only_the_configuration_shows_is_named(save, radius, name, value):
    stored = config_of(radius=radius)
    value = value or ("euclidean" if radius == "hyperbolic" else "hyperbolic")
    path = save(dataclasses.replace(stored, **{name: value}), stored)
    with pytest.raises(UserError, match="replaying its probe"):
        load_model(str(path))
    with pytest.raises(UserError, match=f"probe replays with {name} {value} and not with the stored {name}"):
        inspect_command([str(path)])
    (finding,) = examine(path).findings
    assert finding.cause == "configuration only" and finding.mend == {name: value}


def test_two_fields_at_once_are_not_blamed_on_one(save):
    path = save(config_of(curvature=0.6, activation="silu"), config_of())
    (finding,) = examine(path).findings
    assert finding.cause == "configuration only" and "no single field" in finding.sentence and not finding.mend


def test_changed_weights_are_not_blamed_on_a_field(save):
    weights = model_of(config_of()).state_dict()
    weights["projection.proj_B.radius_net.0.bias"] += 0.5
    (finding,) = examine(save(config_of(), weights=weights)).findings
    assert "no single field" in finding.sentence


def test_metrics_that_are_not_the_models(save):
    path = save(config_of(view="a"), config_of())
    with pytest.raises(UserError, match="computed again"):
        load_model(str(path))
    (finding,) = examine(path).findings
    assert finding.cause == "metrics" and "computed again" in finding.sentence


def test_a_checkpoint_of_the_first_version_is_read(save):
    path = save(config_of())
    state = json.loads((path / "state.json").read_text())
    old = {"stage": 1, "epoch": 3, **state["state"]}
    (path / "state.json").write_text(json.dumps(old))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.json"] = sha256(path / "state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    examination = examine(path)
    assert examination.findings == [] and "step 7, stage hierarchy, epoch 3" in examination.lines[0]


def test_a_flipped_byte_is_damage_and_says_which_file(save, capsys):
    path = save(config_of())
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"damaged file: .*model\.safetensors"):
        inspect_command([str(path)])
    said = capsys.readouterr().out
    assert "model.safetensors: damaged" in said and "config.json: as written" in said


def test_a_missing_file_and_a_missing_checkpoint(save, tmp_path, capsys):
    path = save(config_of())
    (path / "probe.safetensors").unlink()
    with pytest.raises(UserError, match=r"probe\.safetensors: missing"):
        inspect_command([str(path)])
    assert "probe.safetensors: missing" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no checkpoint"):
        inspect_command([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="there is no such file"):
        inspect_command([str(tmp_path / "nothing.pt")])


def test_a_configuration_that_lacks_a_field(tmp_path):
    """The original study's stored architecture lacked projection_dropout."""
    config, model = to_dict(config_of()), model_of(config_of())
    del config["projection_dropout"]
    inputs = probe_inputs(3)
    path = save_checkpoint(
        tmp_path, 1, config=config, model=model.state_dict(), optimizer={}, state={},
        probe={**inputs, **replay_probe(model, inputs)},
    )  # fmt: skip
    (finding,) = examine(path).findings
    assert finding.cause == "configuration" and "projection_dropout" in finding.sentence
    assert "projection_dropout not stored" in " ".join(examine(path).lines)


def with_files(path, **files):
    """The checkpoint with other files, under sums that agree with them."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, content in files.items():
        file = next(file for file in path.iterdir() if file.stem == name)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            save_file(content, file)
        manifest["sha256"][file.name] = sha256(file)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def weights(**changes):
    state = model_of(config_of()).state_dict()
    return {key: changes.get(key.replace(".", "_"), tensor) for key, tensor in state.items()}


NOT_FINITE = torch.tensor([1.0, torch.inf])
METRICS = json.dumps({"loop": "hierarchy", "state": {"metrics": {"coverage": 1.0, "hierarchy": "good"}}}).encode()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model": weights(encoder_B_fc_mu_bias=NOT_FINITE)}, "model.safetensors: encoder_B.fc_mu.bias holds NaN or infinity"),
        ({"model": b"version https://git-lfs.github.com/spec/v1"}, "model.safetensors: cannot be read as safetensors"),
        ({"probe": {"input_index": torch.arange(3)}}, "probe.safetensors: holds no operations with outputs to compare"),
        ({"probe": {"output_rho_B": torch.ones(3)}}, "probe.safetensors: holds no operations with outputs to compare"),
        ({"config": b"[1]"}, "config.json: holds no mapping"),
        ({"config": json.dumps({**to_dict(config_of()), "encoder_sizes": "wide"}).encode()}, "config.json: encoder_sizes: wide does not fit"),
        ({"state": b"3"}, "state.json: holds no mapping"),
        ({"state": METRICS}, "state.json: stores no metrics to compare with"),
    ],
)  # fmt: skip
def test_contents_that_no_checkpoint_has_are_named_by_every_command(save, capsys, files, said):
    """The sums agree with them: whoever wrote these files wrote the manifest as well."""
    path = with_files(save(config_of()), **files)
    for verb in ("evaluate", "inspect", "finetune"):
        assert main([verb, str(path), *(["--output-dir", str(path / "out")] if verb == "finetune" else [])]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert f"{path}/{said}" in sentence
    assert not (path / "out").exists()
