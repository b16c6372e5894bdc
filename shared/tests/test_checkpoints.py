"""Checkpoints: killed at any point, damaged in any file, of another function; and what they hold."""

import builtins
import io
import itertools
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from toy_study import train as toy

from studycore.checkpoints import (
    FILES,
    load_checkpoint,
    load_latest,
    optimizer_tensors,
    prune,
    read_index,
    rebuild,
    restore_optimizer,
    save_checkpoint,
    steps,
)
from studycore.errors import UserError
from studycore.files import sha256

CONFIG = {"lr": 0.1, "scale": 2.0, "seed": 1}


def build(values):
    """The toy's model times a factor that no tensor shows."""
    model = toy.build(values)
    model.register_forward_hook(lambda module, inputs, output: values["scale"] * output)
    return model


def state_at(step):
    """Model and momenta that are functions of the step."""
    model = build(CONFIG | {"seed": step})
    return model, {"m": torch.full((2,), float(step))}


def write(root, step, model, momenta, state, **kwargs):
    inputs = {"input_x": torch.linspace(-1, 1, 12).reshape(4, 3)}
    with torch.no_grad():
        tensors = {"model": model.state_dict(), "optimizer": momenta, "probe": inputs | toy.replay(model, inputs)}
    return save_checkpoint(root, step, config=CONFIG, state=state, **tensors, **kwargs)


def save(root, step, **kwargs):
    return write(root, step, *state_at(step), {"step": step, "best": 0.5}, **kwargs)


def is_state_of(checkpoint, step):
    model, momenta = state_at(step)
    return (
        checkpoint.step == step
        and checkpoint.state == {"step": step, "best": 0.5}
        and checkpoint.config == CONFIG
        and all(torch.equal(checkpoint.model[name], value) for name, value in model.state_dict().items())
        and torch.equal(checkpoint.optimizer["m"], momenta["m"])
    )


def dies_at(n, act):
    """Runs `act` in a forked process that ends, as if killed, at its n-th write. True if it did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, from Python 3.12 on
        child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    calls = itertools.count(1)
    real_open, real_save, real_rmtree = io.open, safetensors.torch.save_file, shutil.rmtree

    def before(function):
        def wrapped(*args, **kwargs):
            if next(calls) == n:
                os._exit(9)
            return function(*args, **kwargs)

        return wrapped

    def opens(file, mode="r", *args, **kwargs):
        opened = real_open(file, mode, *args, **kwargs)
        if "w" in mode and next(calls) == n:
            os._exit(9)  # the file is there and empty
        return opened

    def half_saves(tensors, path):
        real_save(tensors, path)
        if next(calls) == n:
            os.truncate(path, path.stat().st_size // 2)
            os._exit(9)

    def half_removes(path, *args, **kwargs):
        if next(calls) == n:
            sorted(path.iterdir())[0].unlink()
            os._exit(9)
        real_rmtree(path, *args, **kwargs)

    try:
        builtins.open = io.open = opens
        os.fsync, os.replace = before(os.fsync), before(os.replace)
        safetensors.torch.save_file, shutil.rmtree = half_saves, half_removes
        act()
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.mark.parametrize("damaged", [False, True], ids=["new", "over a damaged one"])
def test_killed_at_any_point_the_old_or_the_new_state_is_there_and_whole(tmp_path, damaged):
    original = tmp_path / "original"
    save(original, 5)
    save(original, 10)
    if damaged:
        save(original, 20)
        (original / "step-20" / "state.json").write_text("{}")
    news = 0
    for n in itertools.count(1):
        root = tmp_path / f"{n}"
        shutil.copytree(original, root)
        killed = dies_at(n, lambda root=root: save(root, 20, keep=1))
        checkpoint = load_latest(root)
        assert is_state_of(checkpoint, 10) or is_state_of(checkpoint, 20), n
        news += checkpoint.step == 20
        assert killed or is_state_of(checkpoint, 20)
        save(root, 30, keep=1)
        assert {path.name for path in root.iterdir()} == {"index.json", "step-30"}, n
        assert is_state_of(load_latest(root), 30)
        if not killed:
            break
    assert n > 18  # 5 files, a manifest and an index are written, synchronised and renamed
    assert 1 < news < n


def test_killed_in_the_first_writing_it_starts_at_step_0(tmp_path):
    assert load_latest(tmp_path / "nowhere") is None
    for n in itertools.count(1):
        root = tmp_path / f"{n}"
        killed = dies_at(n, lambda root=root: save(root, 10))
        checkpoint = load_latest(root)
        assert (killed and checkpoint is None) or is_state_of(checkpoint, 10)
        if not killed:
            break


def test_each_file_is_synchronised_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    synced, renamed = [], []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle):
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real_fsync(handle)

    def replace(old, new):
        if Path(new).name == "step-10":
            before = {path.name for path in synced if path.parent.name == "tmp-step-10"}
            assert {*FILES, f".manifest.json.{os.getpid()}.tmp"} <= before
            assert synced[-1].name == "tmp-step-10"
        if Path(new).name == "index.json":  # which must not name what is not yet there for good
            assert tmp_path in synced
        renamed.append(Path(new).name)
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save(tmp_path, 10)
    assert renamed == ["manifest.json", "step-10", "index.json"]
    assert tmp_path in synced


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_flipped_bit_anywhere_is_refused_or_harmless(tmp_path, name, capsys):
    save(tmp_path, 5)
    save(tmp_path, 10)
    file = tmp_path / "step-10" / name
    whole = file.read_bytes()
    for at in range(0, len(whole), 1 if name == "manifest.json" else max(1, len(whole) // 12)):
        for bit in (1, 4):
            damaged = bytearray(whole)
            damaged[at] ^= bit
            file.write_bytes(damaged)
            checkpoint = load_latest(tmp_path)
            if name == "manifest.json":  # white space may change
                assert is_state_of(checkpoint, 5) or is_state_of(checkpoint, 10), (at, bit)
            else:
                assert is_state_of(checkpoint, 5), (at, bit)
    assert f"passed over: {tmp_path}/step-10" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "a folder"])
def test_a_file_that_is_not_whole_is_named_and_the_one_before_is_taken(tmp_path, name, how, capsys):
    save(tmp_path, 5)
    file = save(tmp_path, 10) / name
    content = file.read_bytes()
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how != "missing":
        file.write_bytes(content[: 0 if how == "empty" else len(content) - 1])
    if name == "manifest.json" and how == "truncated":  # the line break at its end
        file.write_bytes(content[:-2])
    with pytest.raises(UserError, match=name):
        load_checkpoint(tmp_path / "step-10")
    assert is_state_of(load_latest(tmp_path), 5)
    message = capsys.readouterr().err
    assert message.startswith("passed over: ")
    assert str(file) in message or (name == "manifest.json" and str(file.parent) in message)
    shutil.rmtree(tmp_path / "step-5")
    with pytest.raises(UserError, match="none of the 1 checkpoints verifies"):
        load_latest(tmp_path)
    save(tmp_path, 10)  # a step whose folder is damaged is written again
    assert is_state_of(load_latest(tmp_path), 10)


def test_a_folder_that_was_never_finished_is_passed_over(tmp_path, capsys):
    save(tmp_path, 5)
    (tmp_path / "step-10").mkdir()
    (tmp_path / "tmp-step-15").mkdir()
    shutil.copytree(tmp_path / "step-5", tmp_path / "step-5 (copy)")
    assert is_state_of(load_latest(tmp_path), 5)
    assert "never completed" in capsys.readouterr().err
    save(tmp_path, 20)
    assert (tmp_path / "step-5 (copy)").exists()
    assert not (tmp_path / "tmp-step-15").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"<html>", r"cannot be read as safetensors \(SafetensorError"),
        ("config.json", b"[1]", "holds no mapping"),
        ("state.json", b"null", "holds no mapping"),
    ],
)
def test_contents_of_another_kind_are_refused_although_their_sums_agree(tmp_path, name, content, said):
    path = save(tmp_path, 5)
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"][name] = sha256(path / name)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"{name}: {said}"):
        load_checkpoint(path)


def test_a_manifest_moved_from_another_step_is_refused(tmp_path):
    os.rename(save(tmp_path, 5), tmp_path / "step-7")
    with pytest.raises(UserError, match="step 5"):
        load_checkpoint(tmp_path / "step-7")


def test_the_model_is_built_from_the_checkpoints_own_configuration(tmp_path):
    checkpoint = load_checkpoint(save(tmp_path, 10))
    given = []
    model = rebuild(checkpoint, lambda stored: given.append(stored) or build(stored), toy.replay, CONFIG)
    assert given == [CONFIG]
    assert torch.equal(model.weight, state_at(10)[0].weight)


def test_another_architecture_gives_the_differences_field_by_field(tmp_path):
    checkpoint = load_checkpoint(save(tmp_path, 10))
    expected = {"lr": 0.2, "scale": 2.0, "seed": 1, "depth": 2}
    with pytest.raises(UserError) as caught:
        rebuild(checkpoint, build, toy.replay, expected)
    assert "depth: stored 'nothing', given 2; lr: stored 0.1, given 0.2" in str(caught.value)
    assert "scale" not in str(caught.value)


def test_a_setting_that_no_tensor_shows_is_caught_by_the_probe(tmp_path):
    checkpoint = load_checkpoint(save(tmp_path, 10))
    with pytest.raises(UserError, match="changes output_y by"):
        rebuild(checkpoint, lambda stored: build({**stored, "scale": 2.0001}), toy.replay)
    rebuild(checkpoint, lambda stored: build({**stored, "scale": 2.0000001}), toy.replay)  # rounding
    with pytest.raises(UserError, match="output_y by nan"):
        rebuild(checkpoint, lambda stored: build({**stored, "scale": float("nan")}), toy.replay)
    with pytest.raises(UserError, match="output_y by inf"):
        rebuild(checkpoint, build, lambda model, inputs: {"output_y": model(inputs["input_x"])[:2]})


def test_the_probe_is_replayed_from_inputs_alone(tmp_path):
    seen = []
    checkpoint = load_checkpoint(save(tmp_path, 10))
    rebuild(checkpoint, build, lambda model, inputs: seen.append(set(inputs)) or toy.replay(model, inputs))
    assert seen == [{"input_x"}]
    with pytest.raises(AssertionError):
        save_checkpoint(tmp_path, 11, config={}, model={}, optimizer={}, state={}, probe={"input_x": torch.ones(1)})


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_loading_is_strict(tmp_path, change):
    checkpoint = load_checkpoint(save(tmp_path, 10))
    if change == "missing":
        del checkpoint.model["bias"]
    if change == "extra":
        checkpoint.model["scale"] = torch.ones(1)
    if change == "shape":
        checkpoint.model["bias"] = torch.ones(2)
    with pytest.raises(UserError, match=r"does not fit its configuration.*(bias|scale)"):
        rebuild(checkpoint, build, toy.replay)


def test_the_index_names_the_last_and_the_best_which_pruning_spares(tmp_path):
    for step, best in ((10, False), (20, True), (30, False), (40, False), (50, False)):
        save(tmp_path, step, best=best)
    assert read_index(tmp_path) == {"last": "step-50", "best": "step-20"}
    assert [path.name for path in steps(tmp_path)] == ["step-20", "step-40", "step-50"]
    save(tmp_path, 100, best=True)
    assert read_index(tmp_path) == {"last": "step-100", "best": "step-100"}
    assert [path.name for path in steps(tmp_path)] == ["step-50", "step-100"]  # by number, not by letter
    prune(tmp_path, keep=1)
    assert [path.name for path in steps(tmp_path)] == ["step-100"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"last": 3}', '{"lost": "step-10"}', "\x00"])
def test_a_damaged_index_is_written_anew(tmp_path, content, capsys):
    save(tmp_path, 10)
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        read_index(tmp_path)
    save(tmp_path, 20)
    assert read_index(tmp_path) == {"last": "step-20"}
    assert "index.json" in capsys.readouterr().err


def test_the_same_step_twice_leaves_the_first_writing_alone(tmp_path):
    target = save(tmp_path, 10)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in target.iterdir()}
    save(tmp_path, 10, best=True)
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in target.iterdir()} == before
    assert read_index(tmp_path) == {"last": "step-10", "best": "step-10"}


def test_bytes_depend_on_the_content_alone_and_nothing_is_pickled(tmp_path):
    one, other = save(tmp_path / "one", 10), save(tmp_path / "other", 10)
    assert {path.name for path in one.iterdir()} == {*FILES, "manifest.json"}
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()
        if path.suffix == ".safetensors":
            assert safetensors.torch.load(path.read_bytes())
        else:
            json.loads(path.read_text())
    sums = json.loads((one / "manifest.json").read_text())["sha256"]
    assert sums == {name: sha256(one / name) for name in FILES}


def test_tensors_come_back_as_they_were(tmp_path):
    tensors = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
        "tied": torch.ones(2).expand(3, 2),
    }
    path = save_checkpoint(
        tmp_path, 1, config={}, model=tensors, optimizer={}, state={}, probe={"output": torch.ones(1)}
    )
    loaded = load_checkpoint(path).model
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)


def test_nan_in_the_loops_numbers_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path, 1, *state_at(1), {"loss": float("nan")})
    assert load_latest(tmp_path) is None


def two_optimizers(model):
    """AdamW for the weight, momentum for the bias, of the model's own parameters."""
    return [
        torch.optim.AdamW([model.weight], lr=0.1),
        torch.optim.SGD([model.bias], lr=0.1, momentum=0.9),
    ]


def updated(model, optimizers, first, count):
    for step in range(first, first + count):
        for optimizer in optimizers:
            optimizer.zero_grad()
        toy.loss_of(model, torch.full((4, 3), float(step + 1))).backward()
        for optimizer in optimizers:
            optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_optimizers_go_on_by_the_names_of_their_parameters(tmp_path):
    """Several of them, in another order: five updates and five more equal ten, to the bit."""
    straight = build(CONFIG)
    expected = updated(straight, two_optimizers(straight), 0, 10)
    model = build(CONFIG)
    optimizers = two_optimizers(model)
    updated(model, optimizers, 0, 5)
    tensors = optimizer_tensors(model, optimizers)
    assert set(tensors) == {
        "weight/exp_avg", "weight/exp_avg_sq", "weight/step", "bias/momentum_buffer",
    }  # fmt: skip
    stored = load_checkpoint(write(tmp_path, 5, model, tensors, {})).optimizer
    again = build(CONFIG)
    again.load_state_dict(model.state_dict())
    optimizers = two_optimizers(again)[::-1]
    for optimizer in optimizers:
        restore_optimizer(again, optimizer, stored)
    assert [len(optimizer.state) for optimizer in optimizers] == [1, 1]
    found = updated(again, optimizers, 5, 5)
    assert all(found[name].equal(value) for name, value in expected.items())
    before = optimizer_tensors(model, two_optimizers(model))
    assert before == {}  # nothing before the first update


def test_the_state_of_an_unknown_parameter_is_refused():
    model = build(CONFIG)
    optimizer = two_optimizers(model)[0]
    for name in ("lost.weight/exp_avg", "exp_avg"):
        with pytest.raises(UserError, match=rf"optimizer.safetensors: {name} belongs to no parameter of the model"):
            restore_optimizer(model, optimizer, {name: torch.zeros(1, 3)})
    restore_optimizer(model, optimizer, {"loop:average": torch.zeros(2)})  # the loop's own
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_probe_is_compared_relative_to_its_size(tmp_path, size):
    """Neither are small outputs let through that differ, nor large ones refused for their rounding."""

    def build(values):
        return torch.nn.Linear(3, 1, bias=False)

    def replay(model, inputs):
        return {"output_y": model(inputs["input_x"])}

    model, inputs = build({}), {"input_x": torch.ones(2, 3)}
    with torch.no_grad():
        model.weight.fill_(size)
        probe = inputs | replay(model, inputs)
    checkpoint = load_checkpoint(
        save_checkpoint(tmp_path, 1, config={}, model=model.state_dict(), optimizer={}, state={}, probe=probe)
    )
    for change, is_other in ((1e-4, True), (1e-6, False)):

        def other(model, inputs, change=change):
            return {"output_y": replay(model, inputs)["output_y"] * (1 + change)}

        if is_other:
            with pytest.raises(UserError, match="replaying its probe changes output_y"):
                rebuild(checkpoint, build, other)
        else:
            rebuild(checkpoint, build, other)
