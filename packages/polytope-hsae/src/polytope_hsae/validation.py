"""Tests of the concept geometry that can fail: each statistic beside draws of what it is where there is no hierarchy.

Angles from nested word sets (the parent's words include the child's) are 90 degrees by algebra, whatever the words are; they
are reported and show nothing. What does: held-out projection of words that took no part in estimating; the angle from
disjoint words beside shuffled unembeddings; which parent a child's held-out words project on; which sibling they are.

A gate passes when its p-value, (1 + draws that reach the statistic) / (1 + draws), is at most LEVEL: over pure noise that
happens in no more than that share of cases.

Shapes: B draws, V words, D width, K children over all parents, P parents, N contexts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytope_hsae.concepts import ESTIMATE, TEST, Hierarchy
from polytope_hsae.estimators import concept_vector
from polytope_hsae.geometry import CausalGeometry, angles_deg, cosine
from polytope_hsae.head import Head
from studycore.statistics import median_interval, resample_counts
from studycore.streams import generator

LEVEL = 0.05
GATES = ("held_out_projection", "disjoint_angle", "parent_pairing", "sibling_labels", "ratio_invariance")
MOST_NUMBERS = 2**24
"""That draws of the null hold at once."""
RESAMPLES = 2000
"""Draws of parents for an interval."""
RANDOM_STEPS = 20
"""For each parent."""
STRENGTHS = (0.5, 1.0, 2.0)
"""Of the parent's vector, in units of the logit that it adds to a word of its own."""


@dataclass(frozen=True)
class Vectors:
    """Concept vectors of one hierarchy, float64; a leading dimension B where there are several draws."""

    parents_PD: Tensor
    """From all estimating words, the children's among them (nested)."""
    children_KD: Tensor
    rest_KD: Tensor
    """The parent without the child's words (disjoint)."""


def family(hierarchy: Hierarchy) -> list[tuple[int, int]]:
    """(parent, child) of each of the K children."""
    return [(p, c) for p, parent in enumerate(hierarchy.parents) for c in range(len(parent.children))]


def rows(g_VD: Tensor, tokens: Sequence[int], order_BV: Tensor | None) -> Tensor:
    """[n, D] rows of the tokens, or [B, n, D] under permutations of all rows, of which only the indices are permuted."""
    return g_VD[list(tokens)] if order_BV is None else g_VD[order_BV[:, list(tokens)]]


def estimate(
    g_VD: Tensor, hierarchy: Hierarchy, shrinkage: float | None = None, order_BV: Tensor | None = None
) -> Vectors:
    """All vectors, from the words for estimating; with `order_BV` from shuffled rows, all draws at once."""
    parents, children, rest = [], [], []
    for parent in hierarchy.parents:
        parents.append(concept_vector(rows(g_VD, parent.part(ESTIMATE), order_BV), shrinkage))
        for c, child in enumerate(parent.children):
            children.append(concept_vector(rows(g_VD, child.words[ESTIMATE], order_BV), shrinkage))
            rest.append(concept_vector(rows(g_VD, parent.part(ESTIMATE, without=c), order_BV), shrinkage))
    return Vectors(torch.stack(parents, -2), torch.stack(children, -2), torch.stack(rest, -2))


@dataclass
class Statistics:
    """What rows show, child by child or parent by parent; a leading dimension B where there are several draws."""

    nested: Tensor
    """[K] cosine of child minus parent with parent, nested words."""
    disjoint: Tensor
    """[K] the same with disjoint words."""
    child_projection: Tensor
    """[K] mean over test words of g . v / |v|^2, on their own child's vector."""
    parent_projection: Tensor
    """[P] the same of the parent's test words."""
    siblings: Tensor
    """[S] |cosine| of the difference of two siblings with their parent."""


def statistics(g_VD: Tensor, hierarchy: Hierarchy, vectors: Vectors, order_BV: Tensor | None = None) -> Statistics:
    """Angles of estimated vectors, and projections on them of words that took no part; as draws where `order_BV` shuffles rows."""
    own = torch.tensor([p for p, _ in family(hierarchy)])
    parents_KD = vectors.parents_PD[..., own, :]
    of_children, of_parents, siblings = [], [], []
    k = 0
    for p, parent in enumerate(hierarchy.parents):
        vector_D = vectors.parents_PD[..., p, :]
        of_parents.append(projection(rows(g_VD, parent.part(TEST), order_BV).mean(-2), vector_D))
        for c, child in enumerate(parent.children):
            mean_D = rows(g_VD, child.words[TEST], order_BV).mean(-2)
            of_children.append(projection(mean_D, vectors.children_KD[..., k + c, :]))
        mine_CD = vectors.children_KD[..., k : k + len(parent.children), :]
        siblings.append(cosine(mine_CD[..., 1:, :] - mine_CD[..., :-1, :], vector_D[..., None, :]).abs())
        k += len(parent.children)
    return Statistics(
        cosine(vectors.children_KD - parents_KD, parents_KD),
        cosine(vectors.children_KD - vectors.rest_KD, vectors.rest_KD),
        torch.stack(of_children, -1), torch.stack(of_parents, -1), torch.cat(siblings, -1),
    )  # fmt: skip


def shuffled_statistics(
    g_VD: Tensor,
    hierarchy: Hierarchy,
    draws: int,
    seed: int,
    shrinkage: float | None = None,
    heed: Callable[[], None] = lambda: None,
) -> Statistics:
    """Of `draws` shuffles of all rows: the same word sets over other rows. [B, ...] each. `heed` is called for some draws."""
    largest = max(len(parent.part(ESTIMATE)) for parent in hierarchy.parents)
    together = max(1, MOST_NUMBERS // (largest * g_VD.shape[1]))
    parts = []
    for start in range(0, draws, together):
        heed()
        count = min(together, draws - start)
        order_BV = torch.stack([torch.randperm(len(g_VD), generator=generator(seed, "shuffle", start + i)) for i in range(count)])  # fmt: skip
        parts.append(statistics(g_VD, hierarchy, estimate(g_VD, hierarchy, shrinkage, order_BV), order_BV))
    return Statistics(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def projection(g_D: Tensor, v_D: Tensor) -> Tensor:
    """g . v / |v|^2 over the last dimension: 1 for a word that has the concept, 0 for one that has not (Park et al.)."""
    return (g_D * v_D).sum(-1) / v_D.square().sum(-1)


def p_value(observed: float, null: Sequence[float]) -> float:
    """Share of draws that reach the observed value, itself counted as one."""
    return (1 + sum(draw >= observed for draw in null)) / (1 + len(null))


@dataclass
class Validation:
    """Everything that phase 1 reports."""

    measured: dict[str, Any] = field(default_factory=dict)
    """Medians over children (or parents) and their 95 % intervals over parents."""
    p_values: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    """Distributions, for figures."""
    passed: dict[str, bool] = field(default_factory=dict)


def validate(
    head: Head,
    geometry: CausalGeometry,
    hierarchy: Hierarchy,
    contexts_ND: Tensor,
    draws: int,
    seed: int,
    kl_threshold: float,
    shrinkage: float | None = None,
    euclidean: CausalGeometry | None = None,
    heed: Callable[[], None] = lambda: None,
) -> tuple[Vectors, Validation]:
    """(the vectors, the tests): statistics on the rows as they are and on `draws` shuffles of them, and the gates.

    `heed` is called for some draws and for each parent.
    """
    result, gamma_VD = Validation(), head.unembedding_VD
    g_VD = geometry.unify_words(gamma_VD)
    vectors = estimate(g_VD, hierarchy, shrinkage)
    real = statistics(g_VD, hierarchy, vectors)
    shuffled = shuffled_statistics(g_VD, hierarchy, draws, seed, shrinkage, heed)
    order_1V = torch.randperm(len(g_VD), generator=generator(seed, "shuffle", 0))[None]
    result.arrays["unified_children_shuffled"] = estimate(g_VD, hierarchy, shrinkage, order_1V).children_KD[0]
    _compare(result, hierarchy, real, shuffled)
    _angles(result, g_VD, hierarchy, vectors, seed, shrinkage)
    if euclidean is not None:
        e_VD, own = euclidean.unify_words(gamma_VD), parents_of(hierarchy)
        flat = statistics(e_VD, hierarchy, estimate(e_VD, hierarchy, shrinkage))
        for name in ("nested", "disjoint"):
            result.arrays[f"{name}_euclidean"] = angles_deg(getattr(flat, name))
            _median(result, f"{name}_angle_euclidean", result.arrays[f"{name}_euclidean"], own)
        _median(result, "held_out_projection_euclidean", flat.child_projection, own)
        # Child by child, so that what a concept's words share under both metrics cancels.
        _median(result, "held_out_projection_minus_euclidean", real.child_projection - flat.child_projection, own)
        _farther(result, "disjoint", "euclidean", "euclidean", own)
    _pairing(result, g_VD, hierarchy, vectors, seed, max(draws, 199))
    _siblings(result, g_VD, hierarchy, vectors, seed, max(draws, 199))
    _ratio_invariance(result, head, geometry, hierarchy, vectors, contexts_ND, seed, shuffled, real, heed)
    result.passed = {gate: result.p_values[gate] <= LEVEL for gate in GATES}
    result.passed["ratio_invariance"] &= result.measured["ratio_invariance_kl"]["median"] <= kl_threshold
    return vectors, result


def parents_of(hierarchy: Hierarchy) -> Tensor:
    """[K] the parent of each child."""
    return torch.tensor([p for p, _ in family(hierarchy)])


def clustered_interval(values: Tensor, group: Tensor) -> tuple[float, float, float]:
    """(median, low, high): percentiles of the median over RESAMPLES draws of whole groups, with all values of each.

    Children of one parent share its words and its vector, so that they are no independent units (Field and Welsh 2007). With
    few groups percentiles are somewhat narrow. Of one group there is no interval: low and high are the median.
    """
    ordered, place = values.double().sort()
    of_value = group.unique(return_inverse=True)[1][place].numpy()
    times_RK = resample_counts(int(of_value.max()) + 1, RESAMPLES)[:, of_value]
    reached_RK = times_RK.cumsum(1)
    total_R1 = reached_RK[:, -1:]
    # A median is between two values where a draw has an even number of them.
    lower, upper = ((reached_RK > (total_R1 - less) // 2).argmax(1) for less in (1, 0))
    medians = (ordered.numpy()[lower] + ordered.numpy()[upper]) / 2
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ordered)), float(low), float(high)


def _median(result: Validation, name: str, values: Tensor, group: Tensor | None = None) -> None:
    """Median with its interval over groups, n of them; without groups over values, each drawn by itself."""
    if group is None:
        each = median_interval(values.double().tolist(), float(values.min()), float(values.max()))
        middle, low, high = each.estimate, each.low, each.high
    else:
        middle, low, high = clustered_interval(values, group)
    result.measured[name] = {
        "median": middle,
        "low": low,
        "high": high,
        "n": len(values if group is None else group.unique()),
    }


def _farther(result: Validation, words: str, null: str, name: str, own: Tensor) -> None:
    """By how many degrees each angle is farther from a right one than the same child's of a null, which stand in the arrays."""
    measured_K, null_K = ((result.arrays[key] - 90).abs() for key in (words, f"{words}_{null}"))
    _median(result, f"{words}_angle_farther_than_{name}", measured_K - null_K, own)


def _compare(result: Validation, hierarchy: Hierarchy, real: Statistics, shuffled: Statistics) -> None:
    """Real against shuffled rows; the gates on held-out projection and on the disjoint angle."""
    own, each = parents_of(hierarchy), torch.arange(len(hierarchy.parents))
    pairs = torch.tensor([p for p, parent in enumerate(hierarchy.parents) for _ in parent.children[1:]])
    for name in ("nested", "disjoint"):
        drawn_BK = angles_deg(getattr(shuffled, name))
        result.arrays[name], result.arrays[f"{name}_shuffled"] = angles_deg(getattr(real, name)), drawn_BK.flatten()
        _median(result, f"{name}_angle", result.arrays[name], own)
        _median(result, f"{name}_angle_shuffled", drawn_BK.median(1).values)
    result.arrays["child_projection"] = real.child_projection
    result.arrays["child_projection_shuffled"] = shuffled.child_projection.flatten()
    _median(result, "held_out_projection", real.child_projection, own)
    _median(result, "held_out_projection_parents", real.parent_projection, each)
    _median(result, "held_out_projection_shuffled", shuffled.child_projection.median(1).values)
    _median(result, "sibling_difference_cosine", real.siblings, pairs)
    _median(result, "sibling_difference_cosine_shuffled", shuffled.siblings.median(1).values)
    null_B = shuffled.child_projection.mean(1)
    result.p_values["held_out_projection"] = p_value(float(real.child_projection.mean()), null_B.tolist())
    null_B = shuffled.disjoint.median(1).values
    result.p_values["disjoint_angle"] = p_value(float(real.disjoint.median()), null_B.tolist())
    null = angles_deg(shuffled.disjoint).median(1).values.median()
    _median(result, "disjoint_angle_minus_shuffled", result.arrays["disjoint"] - null, own)


def _angles(
    result: Validation, g_VD: Tensor, hierarchy: Hierarchy, vectors: Vectors, seed: int, shrinkage: float | None
) -> None:
    """Angles with the wrong parent, with a random part of the parent's words for the child, and with a sibling for the parent;
    projections of a sibling's words. A wrong parent has none of the child's words: its angle is a null of both kinds.

    Of disjoint words the random part is the strictest: what it shares with the rest is the parent, and no child.
    """
    draw = generator(seed, "controls")
    pairs = family(hierarchy)
    nulls: dict[str, list[Tensor]] = {name: [] for name in ("nested_random_parent", "disjoint_random_parent", "nested_label_permutation", "disjoint_label_permutation", "disjoint_sibling_swap")}  # fmt: skip
    swapped = []
    for k, (p, c) in enumerate(pairs):
        other = (p + 1 + int(torch.randint(len(hierarchy.parents) - 1, (1,), generator=draw))) % len(hierarchy.parents)
        wrong_D = vectors.parents_PD[other]
        wrong = cosine(vectors.children_KD[k] - wrong_D, wrong_D)
        nulls["nested_random_parent"].append(wrong)
        nulls["disjoint_random_parent"].append(wrong)
        words = torch.tensor(hierarchy.parents[p].part(ESTIMATE))
        order = words[torch.randperm(len(words), generator=draw)].tolist()
        count = len(hierarchy.parents[p].children[c].words[ESTIMATE])
        drawn_D, left_D = (concept_vector(g_VD[part], shrinkage) for part in (order[:count], order[count:]))
        nulls["nested_label_permutation"].append(cosine(drawn_D - vectors.parents_PD[p], vectors.parents_PD[p]))
        nulls["disjoint_label_permutation"].append(cosine(drawn_D - left_D, left_D))
        children = hierarchy.parents[p].children
        beside = (c + 1) % len(children)
        sibling_D = vectors.children_KD[k - c + beside]
        nulls["disjoint_sibling_swap"].append(cosine(vectors.children_KD[k] - sibling_D, sibling_D))
        swapped.append(projection(g_VD[list(children[beside].words[TEST])].mean(0), vectors.children_KD[k]))
    for name, cosines in nulls.items():
        result.arrays[name] = angles_deg(torch.stack(cosines))
        words_of, _, null = name.partition("_")
        _median(result, f"{words_of}_angle_{null}", result.arrays[name], parents_of(hierarchy))
    _farther(result, "disjoint", "label_permutation", "random_part", parents_of(hierarchy))
    result.arrays["child_projection_sibling_swap"] = torch.stack(swapped)
    _median(result, "held_out_projection_sibling_swap", torch.stack(swapped), parents_of(hierarchy))


def _pairing(result: Validation, g_VD: Tensor, hierarchy: Hierarchy, vectors: Vectors, seed: int, draws: int) -> None:
    """Do a child's test words project on its own parent, estimated without the child's words, more than on another?"""
    pairs = family(hierarchy)
    own = torch.tensor([p for p, _ in pairs])
    means_KD = torch.stack([g_VD[list(hierarchy.parents[p].children[c].words[TEST])].mean(0) for p, c in pairs])
    on_KP = means_KD @ (vectors.parents_PD / vectors.parents_PD.square().sum(1, keepdim=True)).T
    rows = torch.arange(len(pairs))
    on_KP[rows, own] = (means_KD * vectors.rest_KD).sum(1) / vectors.rest_KD.square().sum(1)
    orders = [torch.randperm(len(pairs), generator=generator(seed, "pairing", draw)) for draw in range(draws)]
    null = [float(on_KP[rows, own[order]].mean()) for order in orders]
    observed = float(on_KP[rows, own].mean())
    result.p_values["parent_pairing"] = p_value(observed, null)
    result.arrays["pairing_null"] = torch.tensor(null)
    _median(result, "projection_on_own_parent", on_KP[rows, own], own)
    others = on_KP.clone()
    others[rows, own] = 0
    _median(result, "projection_on_other_parents", others.sum(1) / (on_KP.shape[1] - 1), own)


def _siblings(result: Validation, g_VD: Tensor, hierarchy: Hierarchy, vectors: Vectors, seed: int, draws: int) -> None:
    """Are test words nearer to their own vertex of the parent's polytope than to a sibling's?"""
    chosen, labels, groups = [], [], []
    k = 0
    for p, parent in enumerate(hierarchy.parents):
        mine_CD = vectors.children_KD[k : k + len(parent.children)]
        k += len(parent.children)
        words = [(token, c) for c, child in enumerate(parent.children) for token in child.words[TEST]]
        on_NC = g_VD[[token for token, _ in words]] @ (mine_CD / mine_CD.square().sum(1, keepdim=True)).T
        chosen.append(on_NC.argmax(1))
        labels.append(torch.tensor([c for _, c in words]))
        groups.append(torch.full((len(words),), p))
    chosen_N, labels_N, group_N = torch.cat(chosen), torch.cat(labels), torch.cat(groups)
    observed = float((chosen_N == labels_N).double().mean())
    null = []
    for draw in range(draws):
        # Labels are permuted within a parent: a random order, sorted by parent alone.
        key_N = group_N + torch.rand(len(group_N), generator=generator(seed, "labels", draw), dtype=torch.float64)
        null.append(float((chosen_N == labels_N[key_N.argsort()]).double().mean()))
    result.p_values["sibling_labels"] = p_value(observed, null)
    result.arrays["sibling_null"] = torch.tensor(null)
    right = torch.stack([(chosen_N == labels_N)[group_N == p].double().mean() for p in group_N.unique()])
    _median(result, "sibling_accuracy", right, group_N.unique())
    result.measured["sibling_accuracy_shuffled"] = {"median": float(np.median(null)), "n": draws}


def _ratio_invariance(
    result: Validation, head: Head, geometry: CausalGeometry, hierarchy: Hierarchy, vectors: Vectors,
    contexts_ND: Tensor, seed: int, shuffled: Statistics, real: Statistics, heed: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Adding a parent moves its own words' logits, and the odds among its children's words little.

    The model's own logits at real contexts, before and after the step; a step of strength 1 adds about 1 to the logits of
    the parent's words (before a cap). That they stay as they were also holds where the step does nothing: so it counts only
    together with the shift, whose null is that of the vectors of shuffled rows. And a small step moves all odds little: so
    the divergence stands beside that of RANDOM_STEPS steps of the same causal length in random directions.
    """
    draw = generator(seed, "random steps")
    by_chance = []
    by_strength: dict[float, list[Tensor]] = {a: [] for a in STRENGTHS}
    shift = []
    for p, parent in enumerate(hierarchy.parents):
        heed()
        tokens = [token for child in parent.children for token in child.words[TEST]]
        step_D = geometry.to_residuals(vectors.parents_PD[p][None])[0] / vectors.parents_PD[p].square().sum()
        x_ND = contexts_ND.double()
        before_NT = head.logits(x_ND, tokens).log_softmax(1)
        for strength in STRENGTHS:
            after_NT = head.logits(x_ND + strength * step_D, tokens).log_softmax(1)
            by_strength[strength].append((before_NT.exp() * (before_NT - after_NT)).sum(1).mean())
        random_SD = torch.randn(RANDOM_STEPS, len(step_D), generator=draw, dtype=torch.float64)
        random_SD = random_SD / random_SD.norm(dim=1, keepdim=True) / vectors.parents_PD[p].norm()
        drawn = []
        for other_D in geometry.to_residuals(random_SD):
            after_NT = head.logits(x_ND + other_D, tokens).log_softmax(1)
            drawn.append((before_NT.exp() * (before_NT - after_NT)).sum(1).mean())
        by_chance.append(torch.stack(drawn).mean())
        moved = (head.unembedding_VD[parent.part(TEST)].double() - geometry.mean_D) @ step_D
        shift.append(moved.mean())
    for strength, values in by_strength.items():
        result.arrays[f"kl_{strength:g}"] = torch.stack(values)
    each = torch.arange(len(hierarchy.parents))
    result.arrays["kl_random_step"] = torch.stack(by_chance)
    _median(result, "ratio_invariance_kl", result.arrays["kl_1"], each)
    _median(result, "ratio_invariance_kl_random_step", result.arrays["kl_random_step"], each)
    _median(result, "ratio_invariance_kl_minus_random", result.arrays["kl_1"] - result.arrays["kl_random_step"], each)
    _median(result, "target_shift", torch.stack(shift), each)
    observed = float(real.parent_projection.mean())
    result.p_values["ratio_invariance"] = p_value(observed, shuffled.parent_projection.mean(1).tolist())
