"""Loading a model so that nothing is taken on trust: sums, the whole configuration, the probe, and its metrics again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studycore.checkpoints import Checkpoint, load_checkpoint, read_index, rebuild, steps
from studycore.configuration import from_dict
from studycore.errors import UserError
from studycore.foreign import check_tensors
from ternary_vae.config import TrainConfig
from ternary_vae.data import Operations
from ternary_vae.metrics.evaluate import headline, order_metrics, reconstruct
from ternary_vae.model import TernaryVAE, architecture_of, build_model, create_model, draw_weights, replay_probe

PICKLED = (".pt", ".pth", ".ckpt")
"""Endings of files that `import` brings in."""
CHECKED = ("coverage", "hierarchy", "somers_d", "richness")
"""Metrics that a checkpoint stores and that loading computes again."""
METRIC_TOLERANCE = 1e-4
"""Of the recomputed metrics: other threads and libraries may move a few operations of 19,683, another function more."""
PROJECTION_FIELDS = {
    "curvature", "max_radius", "radius", "hidden_dim", "n_projection_layers", "projection_dropout",
    "use_dual_projection", "projection_dtype",
}  # fmt: skip
"""What may differ from the start's architecture where projections are drawn anew."""
Loaded = tuple[Checkpoint, TrainConfig, TernaryVAE]
"""A checkpoint, its configuration and its model."""


def find_checkpoint(name: str | Path) -> Path:
    """The checkpoint folder of a name: itself, or the best (else the last) one of a run or of a `checkpoints` folder."""
    path = Path(name)
    if (path / "model.safetensors").exists() or path.name.startswith("step-"):
        return path
    if path.suffix in PICKLED:
        raise UserError(f"{name}: is a pickled file; bring it in with `ternary-vae import {name} FOLDER` first")
    root = path if path.name == "checkpoints" else path / "checkpoints"
    if not root.is_dir() or not steps(root):
        if inner := sorted(folder.parent.name for folder in path.glob("*/checkpoints")):
            raise UserError(f"{name}: is a sweep; give one of its runs, such as {path / inner[0]}")
        raise UserError(f"{name}: holds no checkpoint; give a run folder, or a folder such as RUN/checkpoints/step-100")
    index = read_index(root)
    return root / (index.get("best") or index.get("last") or steps(root)[-1].name)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose sums agree, whose weights are finite, and whose probe can be replayed. UserError says what is not."""
    checkpoint = load_checkpoint(path)
    check_tensors(checkpoint.model, path / "model.safetensors")
    if not any(name.startswith("output_") for name in checkpoint.probe) or "input_index" not in checkpoint.probe:
        raise UserError(
            f"{path}/probe.safetensors: holds no operations with outputs to compare; use another checkpoint"
        )
    return checkpoint


def load_model(name: str | Path, recompute: bool = True) -> Loaded:
    """A checkpoint's model, in evaluation: checksums, built from its whole configuration, strict loading, probe, metrics.

    UserError says in one sentence what does not hold.
    """
    path = find_checkpoint(name)
    checkpoint = read_checkpoint(path)
    config: TrainConfig = from_dict(TrainConfig, checkpoint.config, f"{path}/config.json")
    model = rebuild(checkpoint, build_model, replay_probe).eval()
    if recompute:
        check_metrics(path, stored_metrics(checkpoint), config, model)
    return checkpoint, config, model


def stored_metrics(checkpoint: Checkpoint) -> dict[str, Any]:
    """The metrics that the checkpoint's own model had when it was saved; those of version 0.1.0 stand one level higher."""
    state = checkpoint.state.get("state", checkpoint.state)
    stored = state.get("metrics") if isinstance(state, dict) else None
    numbers = isinstance(stored, dict) and all(isinstance(stored.get(key, 0.0), int | float) for key in CHECKED)
    if not isinstance(stored, dict) or not numbers or "coverage" not in stored:
        raise UserError(f"{checkpoint.path}/state.json: stores no metrics to compare with; use another checkpoint")
    return stored


def check_metrics(path: Path, stored: Mapping[str, Any], config: TrainConfig, model: TernaryVAE) -> None:
    """Computes the stored metrics again; UserError where one differs."""
    operations = Operations.all(config.trits, config.shuffle_seed)
    again = {"coverage": float(reconstruct(model, operations).double().mean())}
    if set(stored) - {"coverage"}:
        again |= order_metrics(model, operations, headline(config.view))
    for key in CHECKED:
        if key in stored and not abs(again.get(key, float("nan")) - stored[key]) <= METRIC_TOLERANCE:
            raise UserError(
                f"{path}: {key} is {again.get(key)} when computed again and was stored as {stored[key]}: the model does "
                "something else than when it was saved; use the version that wrote it"
            )


def start_model(config: TrainConfig, start: Path | None, loaded: dict[Path, Loaded]) -> TernaryVAE:
    """The model that a new run begins with: drawn from its seed, or that of the checkpoint `start`, verified.

    UserError lists where the start's architecture differs from the configuration's.
    """
    if start is None:
        return create_model(config, config.seed, config.projection_seed)
    if start not in loaded:
        loaded[start] = load_model(start)
    _, stored, model = loaded[start]
    wanted, held = architecture_of(config), architecture_of(stored)
    drawn = config.start_projections == "drawn"
    free = PROJECTION_FIELDS if drawn else set()
    if differing := [
        f"{k} {held[k]} in it, {wanted[k]} asked for" for k in wanted if k not in free and wanted[k] != held[k]
    ]:
        raise UserError(
            f"start: {start} is of another architecture: {'; '.join(differing)}; give the stored values "
            "(`ternary-vae inspect` shows them)"
        )
    fresh = TernaryVAE(**wanted)
    taken = {name: w for name, w in model.state_dict().items() if not (drawn and name.startswith("projection."))}
    fresh.load_state_dict({**fresh.state_dict(), **taken}, strict=True)
    if drawn:
        seed = config.seed if config.projection_seed is None else config.projection_seed
        draw_weights(fresh.projection, seed, "projection")
    return fresh
