"""An autoencoder that starts from the vectors of phase 1, and the rotation that is its control.

Decoders start from steps d in the residual stream. What reads a step is its dual under the metric of its arm,
x . S d / (d . S d), with S the covariance of the unembedding (causal) or the identity (Euclidean: the step itself). A
parent's reading is then blind to what is orthogonal to it in that metric, as its children are to be. It is scaled so that the
step itself is read as 1, as a tied encoder of unit rows reads it.

Shapes: P parents, C children at most (missing ones are zero), D width, S dimensions of a subspace, L children of a latent.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polytope_hsae.config import AGAIN, TrainConfig
from polytope_hsae.models import HierarchicalSAE
from studycore.errors import UserError
from studycore.foreign import reading
from studycore.streams import generator


@dataclass(frozen=True)
class Teacher:
    """Directions in the residual stream that a decoder starts from."""

    parents_PD: Tensor
    deltas_PCD: Tensor
    metric_DD: Tensor
    """What takes residuals to the space in which parent and child are orthogonal."""

    @property
    def square_DD(self) -> Tensor:
        """S, by which a step becomes what reads it."""
        return self.metric_DD @ self.metric_DD


def dual(steps_ND: Tensor, square_DD: Tensor) -> Tensor:
    """[N, D] what reads each step by itself under a metric whose square is given: S d / (d . S d)."""
    covectors_ND = steps_ND @ square_DD
    return covectors_ND / (covectors_ND * steps_ND).sum(-1, keepdim=True)


def arrays_of(folder: Path) -> dict[str, Tensor]:
    """The arrays of a finished phase 1. UserError where they cannot be read, or lack what a training reads of them."""
    from safetensors.torch import load_file

    path = folder / "arrays.safetensors"
    with reading(path, "the vectors of phase 1", AGAIN):
        arrays: dict[str, Tensor] = load_file(path)
        for name in READ:
            arrays[name].shape  # noqa: B018 - a KeyError names what is missing
    return arrays


READ = ("sqrt", "inv_sqrt", "unified_parents", *(f"{kind}_{part}" for kind in ("causal", "euclidean") for part in ("parents", "deltas")))  # fmt: skip


def check_geometry(folder: Path, width: int) -> None:
    """UserError, before the training that ends with them, where the vectors of phase 1 are missing or of another width."""
    if (there := len(arrays_of(folder)["sqrt"])) != width:
        raise UserError(
            f"geometry: {folder} is of width {there} and the activations of {width}; name jobs of one model"
        )


def load_teacher(folder: Path, config: TrainConfig) -> Teacher | None:
    """Of a finished phase 1, as the arm wants it; None for a baseline. UserError when it does not fit.

    random_staged has the teacher's loss and stages, and starts from none of its vectors.
    """
    if not config.staged:
        return None
    arrays = arrays_of(folder)
    kind = "euclidean" if config.arm == "euclidean" else "causal"
    parents_PD, deltas_PCD, sqrt_DD = arrays[f"{kind}_parents"], arrays[f"{kind}_deltas"], arrays["sqrt"]
    if len(parents_PD) > config.m_top or deltas_PCD.shape[1] > config.m_low:
        raise UserError(
            f"hsae.m_top, hsae.m_low: {config.m_top} parents of {config.m_low} children cannot start from "
            f"{len(parents_PD)} concepts of up to {deltas_PCD.shape[1]}; raise them, or take fewer concepts"
        )
    width = len(sqrt_DD)
    metric_DD = torch.eye(width, dtype=torch.float64) if kind == "euclidean" else sqrt_DD
    if config.arm in ("random_teacher", "frozen_random"):
        # All causal angles among the vectors stay as they are: a rotation of the unified space.
        raw = torch.randn(width, width, generator=generator(config.seed, "rotation"), dtype=torch.float64)
        rotation_DD = torch.linalg.qr(raw)[0]
        turn_DD = sqrt_DD @ rotation_DD @ arrays["inv_sqrt"]
        parents_PD, deltas_PCD = parents_PD @ turn_DD, deltas_PCD @ turn_DD
    return Teacher(parents_PD.float(), deltas_PCD.float(), metric_DD.float())


@torch.no_grad()
def initialise(model: HierarchicalSAE, teacher: Teacher, config: TrainConfig) -> dict[str, float]:
    """The first P parents start from the teacher, their children from its deltas, each read by its dual. Says what it kept.

    In the arm `tied` what reads is the decoder itself, whatever the metric. Of a subspace with basis B (rows), `down` is
    (B S Bt)^-1 B S: coordinates of the part that lies in it, by the projection that is orthogonal in the metric.
    """
    shape = model.config
    parents = len(teacher.deltas_PCD)
    draw = generator(config.seed, "subspaces")
    kept = []
    model.decoder[:parents] = teacher.parents_PD / teacher.parents_PD.norm(dim=1, keepdim=True)
    square_DD = torch.eye(shape.d_in) if config.arm == "tied" else teacher.square_DD
    model.encoder[:parents] = dual(model.decoder[:parents], square_DD)
    for p in range(parents):
        deltas_CD = teacher.deltas_PCD[p][teacher.deltas_PCD[p].norm(dim=1) > 0]
        units_CD = deltas_CD / deltas_CD.norm(dim=1, keepdim=True)
        _, values, right = torch.linalg.svd(units_CD, full_matrices=False)
        energy = values.square().cumsum(0) / values.square().sum()
        rank = min(shape.subspace_dim, int((energy < config.energy_threshold).sum()) + 1)
        basis = torch.randn(shape.subspace_dim, shape.d_in, generator=draw)
        if config.arm != "random_projectors" and config.projectors_init == "svd_from_teacher":
            basis[:rank] = right[:rank]
        # Rows one after another by QR: the teacher's stay, what is left is random and orthogonal to them.
        basis = torch.linalg.qr(basis.T)[0].T
        kept.append(float((units_CD @ basis.T).square().sum() / len(units_CD)))
        covectors_SD = basis @ square_DD
        gram_SS = covectors_SD @ basis.T
        model.up[p], model.down[p] = basis, torch.linalg.solve(gram_SS, covectors_SD)
        low_CS = units_CD @ basis.T
        model.low_decoder[p, : len(low_CS)] = low_CS / low_CS.norm(dim=1, keepdim=True).clamp_min(1e-6)
        # With `down` before it: the dual of what the child adds to its parent.
        model.low_encoder[p] = dual(model.low_decoder[p], gram_SS)
    model.normalise()
    return {"teacher_parents": float(parents), "teacher_energy_kept": sum(kept) / len(kept)}
