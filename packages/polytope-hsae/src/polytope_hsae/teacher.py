"""Phase 1: concepts, geometry and teacher vectors of a model, and the tests against nulls; then a decoder made from them.

Shapes: P parents, C children at most (missing ones are zero), D width, S dimensions of a subspace, L children of a latent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytope_hsae import synthetic
from polytope_hsae.concepts import Hierarchy, choose_hierarchy, load_hierarchy
from polytope_hsae.config import SYNTHETIC, GeometryConfig, TrainConfig
from polytope_hsae.geometry import CausalGeometry, causal_geometry, euclidean_geometry
from polytope_hsae.language import final_activations, fingerprint, load_model, load_tokenizer, pad, unembedding
from polytope_hsae.models import HierarchicalSAE
from polytope_hsae.validation import Vectors, estimate, family, validate
from studycore.errors import UserError
from studycore.run import Run
from studycore.streams import generator


def extract(config: GeometryConfig, run: Run) -> None:
    """The job: writes concepts.json, unembedding.safetensors and the arrays of vectors and distributions."""
    from safetensors.torch import save_file

    if config.model == SYNTHETIC:
        gamma_VD, hierarchy = synthetic.unembedding(config, config.split, config.seed)
        x_ND = torch.from_numpy(synthetic.activations(config, config.contexts, config.seed + 1)[0])
        counts, weights = {"parents": len(hierarchy.parents), "children": len(family(hierarchy))}, "planted"
    else:
        tokenizer = load_tokenizer(config.model, config.model_revision)
        hierarchy, counts = choose_hierarchy(tokenizer, config)
        model = load_model(config.model, config.model_revision)
        gamma_VD, weights = unembedding(model), fingerprint(model)
        x_ND = _contexts(model, tokenizer, config)
    run.begin(data={"model": weights})
    try:
        geometry = causal_geometry(gamma_VD, config.shrinkage)
    except ValueError as error:
        raise UserError(f"geometry.{error}") from None
    euclidean = euclidean_geometry(gamma_VD)
    vectors, found = validate(
        gamma_VD, geometry, hierarchy, x_ND, config.n_shuffles, config.seed, config.kl_threshold, config.lda_shrinkage,
        euclidean,
    )  # fmt: skip
    flat = estimate(euclidean.unify_words(gamma_VD), hierarchy, config.lda_shrinkage)
    hierarchy.save(run.folder / "concepts.json")
    save_file({"unembedding": gamma_VD.contiguous()}, run.folder / "unembedding.safetensors")
    steps = {
        f"{name}_{part}": value
        for name, (space, v) in {"causal": (geometry, vectors), "euclidean": (euclidean, flat)}.items()
        for part, value in zip(("parents", "deltas"), _steps(space, v, hierarchy), strict=True)
    }
    arrays = {f"null:{name}": values for name, values in found.arrays.items()} | steps
    arrays |= {
        "sqrt": geometry.sqrt_DD, "inv_sqrt": geometry.inv_sqrt_DD, "mean": geometry.mean_D,
        "eigenvalues": geometry.eigenvalues_D, "unified_parents": vectors.parents_PD, "unified_children": vectors.children_KD,
        "own_parent": torch.tensor([p for p, _ in family(hierarchy)]),
    }  # fmt: skip
    eigenvalues = geometry.eigenvalues_D
    metrics = {
        **counts, "vocabulary": len(gamma_VD), "width": gamma_VD.shape[1],
        "eigenvalue_smallest": float(eigenvalues[0]), "eigenvalue_largest": float(eigenvalues[-1]),
        **{f"{name}_{part}": value for name, values in found.measured.items() for part, value in values.items()},
        **{f"p_{gate}": value for gate, value in found.p_values.items()},
        **{f"passed_{gate}": value for gate, value in found.passed.items()},
    }  # fmt: skip
    run.log({"gates_passed": sum(found.passed.values()), "gates": len(found.passed)})
    run.results(metrics, arrays)


def _contexts(model: Any, tokenizer: Any, config: GeometryConfig) -> Tensor:
    """[N, D] what the head reads after the first words of `contexts` glosses, drawn by the seed."""
    from studycore.language import wordnet

    texts = wordnet.texts("validation")
    order = torch.randperm(len(texts), generator=generator(config.seed, "contexts")).tolist()
    rows = [
        ids[:12]
        for ids in tokenizer([texts[i] for i in order[: config.contexts]], add_special_tokens=False)["input_ids"]
    ]
    ids_BT, mask_BT = pad(rows, 0)
    x_BTD = final_activations(model, ids_BT, mask_BT)
    return x_BTD[torch.arange(len(rows)), mask_BT.sum(1) - 1]


def _steps(space: CausalGeometry, vectors: Vectors, hierarchy: Hierarchy) -> tuple[Tensor, Tensor]:
    """([P, D] parents, [P, C, D] child minus parent) as steps in the residual stream, float64."""
    parents_PD = space.to_residuals(vectors.parents_PD)
    most = max(len(parent.children) for parent in hierarchy.parents)
    deltas_PCD = torch.zeros(len(hierarchy.parents), most, parents_PD.shape[1], dtype=torch.float64)
    for k, (p, c) in enumerate(family(hierarchy)):
        delta_1D = (vectors.children_KD[k] - vectors.parents_PD[p])[None]
        deltas_PCD[p, c] = space.to_residuals(delta_1D)[0]
    return parents_PD, deltas_PCD


# ------------------------------------------------------------------------------------------------ from vectors to a decoder
@dataclass(frozen=True)
class Teacher:
    """Directions in the residual stream that a decoder starts from."""

    parents_PD: Tensor
    deltas_PCD: Tensor
    metric_DD: Tensor
    """What takes residuals to the space in which parent and child are orthogonal."""


def load_teacher(folder: Path, config: TrainConfig) -> Teacher | None:
    """Of a finished phase 1, as the arm wants it; None for an arm without one. UserError when it does not fit."""
    from safetensors.torch import load_file

    if not config.taught:
        return None
    arrays = load_file(folder / "arrays.safetensors")
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
    """The first P parents start from the teacher, their children from its deltas; encoders start tied. Says what it kept."""
    shape = model.config
    parents = len(teacher.deltas_PCD)
    draw = generator(config.seed, "subspaces")
    kept = []
    model.decoder[:parents] = teacher.parents_PD / teacher.parents_PD.norm(dim=1, keepdim=True)
    model.encoder[:parents] = model.decoder[:parents]
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
        model.up[p], model.down[p] = basis, basis
        low_CS = units_CD @ basis.T
        model.low_decoder[p, : len(low_CS)] = low_CS / low_CS.norm(dim=1, keepdim=True).clamp_min(1e-6)
        model.low_encoder[p] = model.low_decoder[p]
    model.normalise()
    return {"teacher_parents": float(parents), "teacher_energy_kept": sum(kept) / len(kept)}


def read_hierarchy(folder: Path) -> Hierarchy:
    return load_hierarchy(folder / "concepts.json")
