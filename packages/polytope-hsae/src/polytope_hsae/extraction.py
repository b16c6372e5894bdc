"""Phase 1: concepts, geometry and teacher vectors of a model, and the tests against nulls.

Shapes: P parents, C children at most (missing ones are zero), D width, N contexts.
"""

from typing import Any

import torch
from torch import Tensor

from polytope_hsae import synthetic
from polytope_hsae.concepts import Hierarchy, choose_hierarchy
from polytope_hsae.config import SYNTHETIC, GeometryConfig
from polytope_hsae.geometry import CausalGeometry, causal_geometry, euclidean_geometry
from polytope_hsae.head import Head, head_of
from polytope_hsae.language import check_known, final_activations, load_model, load_tokenizer, pad
from polytope_hsae.validation import Vectors, estimate, family, validate
from studycore.errors import UserError
from studycore.language.pretrained import beginning, weights_fingerprint
from studycore.run import Run
from studycore.streams import generator

CONTEXTS = "eval.validation.contexts"


def extract(config: GeometryConfig, run: Run) -> None:
    """The job: writes concepts.json, unembedding.safetensors and the arrays of vectors and distributions."""
    if config.model == SYNTHETIC:
        gamma_VD, hierarchy = synthetic.unembedding(config, config.split, config.seed)
        head = Head(gamma_VD)
        x_ND = torch.from_numpy(synthetic.activations(config, config.contexts, config.seed + 1, CONTEXTS)[0])
        counts, weights = {"parents": len(hierarchy.parents), "children": len(family(hierarchy))}, "planted"
        bos = "none"
    else:
        tokenizer = load_tokenizer(config.model, config.model_revision)
        hierarchy, counts = choose_hierarchy(tokenizer, config)
        model = load_model(config.model, config.model_revision)
        check_known(hierarchy.labels(), model, tokenizer, "words of the concepts", config.model)
        weights = weights_fingerprint(model)
        bos = beginning(tokenizer)[1]
        run.check_stop()
        head, x_ND = _contexts(model, tokenizer, config)
        gamma_VD = head.unembedding_VD
    run.begin(data={"model": weights})
    try:
        geometry = causal_geometry(gamma_VD, config.shrinkage)
    except ValueError as error:
        raise UserError(f"geometry.{error}") from None
    euclidean = euclidean_geometry(gamma_VD)
    vectors, validation = validate(
        head, geometry, hierarchy, x_ND, config.n_shuffles, config.seed, config.kl_threshold, config.lda_shrinkage,
        euclidean, run.check_stop,
    )  # fmt: skip
    flat = estimate(euclidean.unify_words(gamma_VD), hierarchy, config.lda_shrinkage)
    hierarchy.save(run.folder / "concepts.json")
    head.save(run.folder / "unembedding.safetensors")
    steps = {
        f"{name}_{part}": value
        for name, (space, v) in {"causal": (geometry, vectors), "euclidean": (euclidean, flat)}.items()
        for part, value in zip(("parents", "deltas"), _steps(space, v, hierarchy), strict=True)
    }
    arrays = {f"null:{name}": values for name, values in validation.arrays.items()} | steps
    arrays |= {
        "sqrt": geometry.sqrt_DD, "inv_sqrt": geometry.inv_sqrt_DD, "mean": geometry.mean_D,
        "eigenvalues": geometry.eigenvalues_D, "unified_parents": vectors.parents_PD, "unified_children": vectors.children_KD,
        "own_parent": torch.tensor([p for p, _ in family(hierarchy)]),
    }  # fmt: skip
    eigenvalues = geometry.eigenvalues_D
    metrics = {
        **counts, "bos": bos, "vocabulary": len(gamma_VD), "width": gamma_VD.shape[1],
        "eigenvalue_smallest": float(eigenvalues[0]), "eigenvalue_largest": float(eigenvalues[-1]),
        **{f"{name}_{part}": value for name, values in validation.measured.items() for part, value in values.items()},
        **{f"p_{gate}": value for gate, value in validation.p_values.items()},
        **{f"passed_{gate}": value for gate, value in validation.passed.items()},
    }  # fmt: skip
    run.log({"gates_passed": sum(validation.passed.values()), "gates": len(validation.passed)})
    run.results(metrics, arrays)


def _contexts(model: Any, tokenizer: Any, config: GeometryConfig) -> tuple[Head, Tensor]:
    """(the head, [N, D] what it reads after the first words of `contexts` glosses, drawn by the seed).

    Each begins with the token that the tokenizer begins texts with, where it does.
    """
    from studycore.language import wordnet

    texts = wordnet.texts("validation")
    order = torch.randperm(len(texts), generator=generator(config.seed, "contexts")).tolist()
    begin, _ = beginning(tokenizer)
    rows = [
        [*begin, *ids[:12]]
        for ids in tokenizer([texts[i] for i in order[: config.contexts]], add_special_tokens=False)["input_ids"]
    ]
    check_known((token for row in rows for token in row), model, tokenizer, "glosses", config.model)
    ids_BT, mask_BT = pad(rows, 0)
    x_BTD = final_activations(model, ids_BT, mask_BT)
    return head_of(model, torch.tensor(rows[:1])), x_BTD[torch.arange(len(rows)), mask_BT.sum(1) - 1]


def _steps(space: CausalGeometry, vectors: Vectors, hierarchy: Hierarchy) -> tuple[Tensor, Tensor]:
    """([P, D] parents, [P, C, D] child minus parent) as steps in the residual stream, float64."""
    parents_PD = space.to_residuals(vectors.parents_PD)
    most = max(len(parent.children) for parent in hierarchy.parents)
    deltas_PCD = torch.zeros(len(hierarchy.parents), most, parents_PD.shape[1], dtype=torch.float64)
    for k, (p, c) in enumerate(family(hierarchy)):
        delta_1D = (vectors.children_KD[k] - vectors.parents_PD[p])[None]
        deltas_PCD[p, c] = space.to_residuals(delta_1D)[0]
    return parents_PD, deltas_PCD
