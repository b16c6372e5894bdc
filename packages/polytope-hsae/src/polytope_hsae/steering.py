"""Phase 4: what adding a concept's latent to the residual stream does to the model's logits.

Where the head is a product, a step v moves the logit of every word y by gamma(y) . v whatever the context; where it is capped
(Gemma 2) the shift depends on the context, and its mean over some is taken. What all words share moves no probability and is
taken out. Steering a parent at strength s adds s times the mean code with which its latent fires.

Shapes: V words, D width, P concepts, N activations.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polytope_hsae.concepts import TEST as TEST_WORDS, Hierarchy
from polytope_hsae.config import AGAIN, EvaluateConfig
from polytope_hsae.data import CHOOSE, CONTEXT, TEST, folder_of, open_store
from polytope_hsae.head import Head, load_head
from polytope_hsae.metrics import ce_recovered, reading as reading_of, stability
from polytope_hsae.models import SparseAutoencoder, dense_codes, dense_decoder
from studycore.files import write_json
from studycore.foreign import reading
from studycore.record import read_arrays
from studycore.run import Run

CONTEXTS = 32
"""Activations at which words' probabilities, and logits under a cap, are looked at."""


def logit_shifts(step_PD: Tensor, head: Head, words: list[int], x_ND: Tensor) -> Tensor:
    """[P, words] mean shift of the words' logits over the contexts, without the mean shift of all words."""
    if head.softcap is None:
        shared_P = step_PD @ head.unembedding_VD.mean(0)
        return step_PD @ head.unembedding_VD[words].T - shared_P[:, None]
    product_NV = head.product(x_ND)
    before_NV = head.capped(product_NV)
    shifts = [(head.capped(product_NV + step_V) - before_NV).mean(0) for step_V in head.product(step_PD)]
    return torch.stack([shift_V[words] - shift_V.mean() for shift_V in shifts])


def steering_effects(step_PD: Tensor, head: Head, hierarchy: Hierarchy, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """([P] target, [P] off target, [P] effect size) of one step for each parent, in logits, on words for testing.

    target: mean shift of the concept's words. off target: mean absolute shift of the other concepts' words. effect size:
    Cohen's d of its words against the others'.
    """
    words = [parent.part(TEST_WORDS) for parent in hierarchy.parents]
    flat = [token for group in words for token in group]
    owner = torch.tensor([p for p, group in enumerate(words) for _ in group])
    moved_PW = logit_shifts(step_PD, head, flat, x_ND)
    target, off, size = [], [], []
    for p in range(len(words)):
        own, others = moved_PW[p, owner == p], moved_PW[p, owner != p]
        target.append(own.mean())
        off.append(others.abs().mean())
        pooled = ((own.var(unbiased=False) + others.var(unbiased=False)) / 2).sqrt().clamp_min(1e-12)
        size.append((own.mean() - others.mean()) / pooled)
    return torch.stack(target), torch.stack(off), torch.stack(size)


def steering_metrics(
    model: Any, latent_P: Tensor, x_ND: Tensor, head: Head, hierarchy: Hierarchy, strengths: list[float]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(means over concepts at strength 1, the curves). Concepts whose latent never fires are failures, with all their effect off target.

    steering_leakage: off target / (off target + max(target, 0)), in [0, 1]. steering_success: share of concepts whose own
    words move up and more than the others do, in standard deviations above 0.5.
    """
    codes_NF = dense_codes(model, x_ND)
    code_NP = codes_NF[:, latent_P]
    count_P = (code_NP > 0).sum(0)
    mean_P = code_NP.sum(0) / count_P.clamp_min(1)
    step_PD = mean_P[:, None] * dense_decoder(model)[latent_P] / model.config.input_scale
    target_P, off_P, size_P = steering_effects(step_PD, head, hierarchy, x_ND[:CONTEXTS])
    fires_P = count_P > 0
    leakage_P, success_P = leakage_and_success(target_P, off_P, size_P)
    metrics = {
        "steering_leakage": float(torch.where(fires_P, leakage_P, 1.0).mean()),
        "steering_success": float((fires_P & success_P).double().mean()),
        "steering_effect_size": float(torch.where(fires_P, size_P, 0.0).mean()),
        "steering_target_logit": float(target_P.mean()), "steering_off_target_logit": float(off_P.mean()),
    }  # fmt: skip
    curves = [steering_effects(s * step_PD, head, hierarchy, x_ND[:CONTEXTS])[:2] for s in strengths]
    target_SP, off_SP = (torch.stack(part) for part in zip(*curves, strict=True))
    return metrics, {"strengths": torch.tensor(strengths), "target": target_SP, "off_target": off_SP}


def leakage_and_success(target_P: Tensor, off_P: Tensor, size_P: Tensor) -> tuple[Tensor, Tensor]:
    """([P] off target / (off target + max(target, 0)), [P] whether its own words move up and more than the others do)."""
    return off_P / (off_P + target_P.clamp_min(0)).clamp_min(1e-12), (target_P > 0) & (size_P > 0.5)


def untrained_steering(steps_PD: Tensor, head: Head, hierarchy: Hierarchy, x_ND: Tensor) -> dict[str, float]:
    """What phase 1's own steps do that nothing has trained: the reference beside which an autoencoder's steering is read."""
    leakage_P, success_P = leakage_and_success(*steering_effects(steps_PD, head, hierarchy, x_ND[:CONTEXTS]))
    return {
        "steering_leakage_reference": float(leakage_P.mean()),
        "steering_success_reference": float(success_P.double().mean()),
    }


def target_probability(
    model: Any,
    latent_P: Tensor,
    x_ND: Tensor,
    head: Head,
    hierarchy: Hierarchy,
    strengths: list[float],
    heed: Callable[[], None] = lambda: None,
) -> Tensor:
    """[strengths] mean over parents of the change of its test words' probability at real contexts, in nats of its log.

    `heed` is called for each parent.
    """
    codes_NF = dense_codes(model, x_ND)
    decoder = dense_decoder(model)
    product_NV = head.product(x_ND)
    log_p_NV = head.capped(product_NV).log_softmax(1)
    change_S = torch.zeros(len(strengths))
    for p, j in enumerate(latent_P.tolist()):
        heed()
        words = torch.tensor(hierarchy.parents[p].part(TEST_WORDS))
        code = codes_NF[:, j]
        mean_code = code[code > 0].mean() if bool((code > 0).any()) else code.sum()
        step_1V = head.product(mean_code * decoder[j, None] / model.config.input_scale)
        before = log_p_NV[:, words].logsumexp(1)
        for i, strength in enumerate(strengths):
            after = head.capped(product_NV + strength * step_1V).log_softmax(1)[:, words].logsumexp(1)
            change_S[i] += (after - before).mean() / len(latent_P)
    return change_S


def evaluate(config: EvaluateConfig, run: Run) -> None:
    """The job."""
    geometry, activations = folder_of(run, "geometry"), folder_of(run, "activations")
    # A plan gives the autoencoder and one of another seed, by the names of their jobs.
    trained = {name: path for name, path in run.needs.items() if name not in ("geometry", "activations")}
    own = trained.pop(f"{config.arm}_s{config.seed}", None) or folder_of(run, "autoencoder")
    store = open_store(geometry, activations)
    run.begin(data={"autoencoder": own.name})
    model = SparseAutoencoder.from_pretrained(own / "sae")
    head = load_head(geometry / "unembedding.safetensors")
    with reading(own, "a trained autoencoder", AGAIN):
        latent_P = torch.from_numpy(read_arrays(own)["parent_of_concept"])
    x_ND = store.rows(store.sample(CHOOSE, config.ce_size))
    metrics, arrays = steering_metrics(model, latent_P, x_ND, head, store.hierarchy, config.steering_magnitudes)
    with reading(geometry, "the geometry of concepts", AGAIN):
        steps_PD = torch.from_numpy(read_arrays(geometry)["causal_parents"]).float()
    metrics |= untrained_steering(steps_PD, head, store.hierarchy, x_ND)
    run.check_stop()
    arrays["log_probability"] = target_probability(
        model, latent_P, x_ND[:CONTEXTS], head, store.hierarchy, config.steering_magnitudes, run.check_stop
    )
    for other in trained.values():
        metrics["stability"] = stability(dense_decoder(model), dense_decoder(SparseAutoencoder.from_pretrained(other / "sae")))  # fmt: skip
    run.check_stop()
    if store.next_tokens is not None:
        test = store.sample(TEST, config.ce_size)
        test = test[store.next_tokens[test] >= 0]
        following = torch.from_numpy(store.next_tokens[test].astype("int64"))
        mean_D = store.rows(store.sample(TEST, 4096)).mean(0)
        metrics |= ce_recovered(model, store.rows(test), mean_D, head, following)
    if model.config.kind == "hierarchical":
        write_json(run.folder / "tree.json", tree(model, store, latent_P, config))
    run.results(metrics, arrays)


def strongest(codes_N: Tensor, places_N: Sequence[int], count: int) -> list[int]:
    """Up to `count` places of the largest codes above 0, no two so near that one text would show both."""
    chosen: list[int] = []
    for i in codes_N.argsort(descending=True, stable=True).tolist():
        if len(chosen) == count or codes_N[i] <= 0:
            break
        if all(abs(int(places_N[i]) - place) > CONTEXT for place in chosen):
            chosen.append(int(places_N[i]))
    return chosen


def tree(model: Any, store: Any, latent_P: Tensor, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Parents with their children and the contexts in which each is strongest, for the page; of a parent that is matched to
    a concept how pure it is and how much of the concept it finds, where it was on often enough."""
    indices = store.sample(TEST, 4096)
    codes_NF = dense_codes(model, store.rows(indices))
    fires_F = (codes_NF > 0).sum(0)
    measured = reading_of(codes_NF[:, latent_P], store.labels(indices) >= 0)
    concepts = {
        int(j): {"concept": store.hierarchy.parents[p].name, **{k: measured[p][k] for k in ("purity", "recall") if p in measured}}
        for p, j in enumerate(latent_P.tolist())
    }  # fmt: skip
    shape = model.config

    def contexts(latent: int) -> list[str]:
        return [store.context(i) for i in strongest(codes_NF[:, latent], indices, config.tree_contexts)]

    parents = []
    for j in fires_F[: shape.m_top].argsort(descending=True, stable=True).tolist():
        if fires_F[j] == 0:
            continue
        first = shape.m_top + j * shape.m_low
        children = [
            {"latent": i - first, "fires": int(fires_F[i]), "contexts": contexts(i)}
            for i in range(first, first + shape.m_low)
            if fires_F[i] > 0
        ]
        parents.append({"latent": j, **concepts.get(j, {"concept": ""}), "fires": int(fires_F[j]), "contexts": contexts(j),
                      "children": sorted(children, key=lambda c: -c["fires"])})  # fmt: skip
    return parents
