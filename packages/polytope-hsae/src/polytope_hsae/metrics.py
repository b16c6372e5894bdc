"""What is measured of a trained autoencoder on held-out activations with labels.

Concepts are matched to latents, one to one, on one split and measured on another; where words have parts, on words from which
no vector was estimated. Beside each figure that labels give stand the share of activations with the label, the same with
shuffled labels, and what the directions of phase 1 reach that nothing has trained. A metric without its inputs is an error,
never a 0.

Shapes: N activations, D width, F latents in all (parents first), M parents, P concepts, R pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from polytope_hsae.data import CHOOSE, TEST, Store
from polytope_hsae.head import Head
from polytope_hsae.models import dense_codes, dense_decoder
from studycore.errors import UserError
from studycore.streams import generator

LEAST = 5
"""Test activations that a concept must have to count."""
SPLIT_GAIN = 0.03
"""F1 that a second latent must add for a concept to be split (Karvonen et al., SAEBench: k-sparse probing)."""
SHUFFLES = 3
"""Draws of shuffled labels."""
MOST_PAIRS = 512
CHUNK = 4096


# ------------------------------------------------------------------------------------------------------ reconstruction
class ExplainedVariance:
    """1 - sum |x - x^|^2 / sum |x - mean|^2 over everything that was added, in float64.

    The mean is that of all inputs: predicting it scores 0, the identity 1. (A mean per batch flatters; a missing mean, as in
    SAELens until 2026, flatters more.)
    """

    def __init__(self) -> None:
        self.error = self.square = 0.0
        self.total: Any = 0.0
        self.count = 0

    def add(self, x_ND: Tensor, x_hat_ND: Tensor) -> None:
        """Activations and their reconstructions."""
        x = x_ND.double()
        self.error += float((x - x_hat_ND.double()).square().sum())
        self.square += float(x.square().sum())
        self.total = self.total + x.sum(0)
        self.count += len(x)

    def value(self) -> float:
        """UserError before two inputs that differ."""
        if self.count < 2:
            raise UserError(f"explained variance: {self.count} activations have no variance; add more")
        variance = self.square - float(self.total.square().sum()) / self.count
        if not variance > 0:
            raise UserError("explained variance: all activations are equal; add others")
        return 1 - self.error / variance


def explained_variance(model: Any, x_ND: Tensor) -> float:
    """1 - squared error / variance about the mean, of a model's reconstructions of activations as they are."""
    explained = ExplainedVariance()
    for part in x_ND.split(CHUNK):
        explained.add(part, model(part))
    return explained.value()


def cross_entropy(x_ND: Tensor, head: Head, next_N: Tensor) -> float:
    """Nats of the next tokens under the model's own head."""
    total = 0.0
    for x_nD, next_n in zip(x_ND.split(256), next_N.split(256), strict=True):
        total += float(torch.nn.functional.cross_entropy(head.logits(x_nD), next_n, reduction="sum"))
    return total / len(x_ND)


def ce_recovered(model: Any, x_ND: Tensor, mean_D: Tensor, head: Head, next_N: Tensor) -> dict[str, float]:
    """Share of the cross-entropy that is lost when every activation becomes the mean and that reconstructions get back.

    The head is all that follows, so this is the language model's own cross-entropy with the activations replaced. UserError
    where the mean loses nothing.
    """
    clean, ours = cross_entropy(x_ND, head, next_N), cross_entropy(model(x_ND), head, next_N)
    # The mean's logits are one row, whatever the context.
    ablated = -float(head.logits(mean_D[None])[0].log_softmax(0)[next_N].mean())
    if not ablated > clean:
        raise UserError(f"cross-entropy: {ablated} with the mean is not above {clean}; the activations predict nothing")
    recovered = (ablated - ours) / (ablated - clean)
    return {"ce_clean": clean, "ce_reconstructed": ours, "ce_ablated": ablated, "ce_recovered": recovered, "1-CE": 1 - recovered}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- labelled metrics
def correlations(codes_NF: Tensor, on_NP: Tensor) -> Tensor:
    """[F, P] Pearson correlation of each latent's code with each label; 0 for a latent that never fires."""
    codes, on = codes_NF.double(), on_NP.double()
    codes, on = codes - codes.mean(0), on - on.mean(0)
    scale = codes.norm(dim=0)[:, None] * on.norm(dim=0)[None]
    return torch.where(scale > 0, codes.T @ on / scale.clamp_min(1e-30), 0.0)


def f1(fires_NF: Tensor, on_N: Tensor) -> Tensor:
    """[F] of firing as a prediction of the label."""
    hits = (fires_NF & on_N[:, None]).sum(0).double()
    return 2 * hits / (fires_NF.sum(0) + on_N.sum()).clamp_min(1)


@dataclass(frozen=True)
class Matching:
    """Latents of the concepts."""

    parent_P: Tensor
    """Of each parent a latent of its own, so that the sum of their correlations is largest (Kuhn's Hungarian method)."""
    second_P: Tensor
    """The one that adds most to its F1."""
    child_PC: Tensor
    """Of each child a latent, other than its parent's and its siblings'; -1 where the child has no activations."""


def one_to_one(correlation_FP: Tensor) -> Tensor:
    """[P] latents, no two alike, with the largest sum of correlations. UserError for fewer latents than concepts."""
    from scipy.optimize import linear_sum_assignment

    if correlation_FP.shape[0] < correlation_FP.shape[1]:
        raise UserError(
            f"hsae.m_top: {correlation_FP.shape[0]} latents cannot stand for {correlation_FP.shape[1]} concepts; raise it"
        )
    latent, concept = linear_sum_assignment(correlation_FP.numpy(), maximize=True)
    return torch.from_numpy(latent)[torch.from_numpy(concept).argsort()]


def match(codes_NF: Tensor, labels_NP: Tensor, parents: int, children: int) -> Matching:
    """On the activations for choosing. `parents` latents may stand for a parent; any for a child."""
    on_NP = labels_NP >= 0
    best_P = one_to_one(correlations(codes_NF[:, :parents], on_NP))
    second, child = [], []
    fires_NF = codes_NF > 0
    for p, j in enumerate(best_P.tolist()):
        union = fires_NF[:, :parents] | fires_NF[:, j : j + 1]
        gain = f1(union, on_NP[:, p])
        gain[j] = -1
        second.append(int(gain.argmax()))
        of_children = torch.stack([labels_NP[:, p] == c for c in range(children)], 1)
        on_FC = correlations(codes_NF[on_NP[:, p]], of_children[on_NP[:, p]]) if on_NP[:, p].sum() > 1 else torch.zeros(codes_NF.shape[1], children)  # fmt: skip
        on_FC[j] = -1
        there = of_children.sum(0) > 0
        chosen = torch.full((children,), -1)
        chosen[there] = one_to_one(on_FC[:, there])
        child.append(chosen)
    return Matching(best_P, torch.tensor(second), torch.stack(child))


def concept_metrics(codes_NF: Tensor, labels_NP: Tensor, matching: Matching) -> dict[str, float]:
    """Means over concepts with LEAST activations or more. UserError where none has.

    base_rate: share of activations with the concept, the purity of a latent that is always on. purity: share of the parent
    latent's activation that falls on its concept. leakage: how often it fires on activations of other concepts alone. split:
    share of concepts to whose F1 a second latent adds SPLIT_GAIN. absorption: of the activations of a child, the share on
    which the parent's latent is silent while the child's fires.
    """
    on_NP = labels_NP >= 0
    readings = reading(codes_NF[:, matching.parent_P], on_NP)
    per_concept: dict[str, list[float]] = {name: [] for name in ("purity_original", "split", "absorption")}
    for p, j in enumerate(matching.parent_P.tolist()):
        on_N, code_N = on_NP[:, p], codes_NF[:, j]
        if p not in readings:
            continue
        per_concept["purity_original"].append(float(code_N[on_N].mean() / (code_N[~on_N].mean() + 1e-8)))
        fires_NF = codes_NF[:, [j, int(matching.second_P[p])]] > 0
        both = f1(torch.stack([fires_NF[:, 0], fires_NF.any(1)], 1), on_N)
        per_concept["split"].append(float(both[1] - both[0] > SPLIT_GAIN))
        for c, child in enumerate(matching.child_PC[p].tolist()):
            of_child_N = labels_NP[:, p] == c
            if child >= 0 and of_child_N.sum() >= LEAST:
                absorbed = (code_N[of_child_N] == 0) & (codes_NF[of_child_N, child] > 0)
                per_concept["absorption"].append(float(absorbed.double().mean()))
    if not readings or not per_concept["absorption"]:
        raise UserError(
            f"purity, absorption: no concept has {LEAST} test activations; raise data.token_budget or lower concepts.parents"
        )
    means = {name: sum(values) / len(values) for name, values in per_concept.items()}
    return {**means, **mean_reading(readings), "concepts_measured": float(len(readings))}


def reading(codes_NP: Tensor, on_NP: Tensor) -> dict[int, dict[str, float]]:
    """Of each concept with LEAST activations, and LEAST of others, what the code of its own latent says of it."""
    readings = {}
    for p, (code_N, on_N) in enumerate(zip(codes_NP.T, on_NP.T, strict=True)):
        others_N = ~on_N & on_NP.any(1)
        if on_N.sum() < LEAST or others_N.sum() < LEAST:
            continue
        readings[p] = {
            "base_rate": float(on_N.double().mean()),
            # What never fires on the test is not pure: it has no activation that could fall on its concept.
            "purity": float(code_N[on_N].sum() / code_N.sum()) if float(code_N.sum()) > 0 else 0.0,
            "recall": float((code_N[on_N] > 0).double().mean()),
            "leakage": float((code_N[others_N] > 0).double().mean()),
            "auroc": auroc(code_N[on_N], code_N[others_N]),
        }
    return readings


def auroc(own_N: Tensor, other_M: Tensor) -> float:
    """The chance that a code on the concept is larger than one on another concept, ties counting a half: 0.5 tells nothing.

    Unlike leakage it does not hang on how often a latent fires (area under the receiver's curve, Hanley and McNeil 1982).
    """
    ordered_M = other_M.sort().values
    below = torch.searchsorted(ordered_M, own_N) + torch.searchsorted(ordered_M, own_N, right=True)
    return float(below.double().mean()) / (2 * len(other_M))


def mean_reading(readings: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Means over concepts. UserError for none."""
    if not readings:
        raise UserError(f"purity: no concept has {LEAST} test activations; raise data.token_budget or concepts.prompts_per_concept")  # fmt: skip
    return {name: sum(r[name] for r in readings.values()) / len(readings) for name in ("base_rate", "purity", "recall", "leakage", "auroc")}  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """Activations for choosing and for testing, with what is to be found in them."""

    choose_ND: Tensor
    choose_on_NP: Tensor
    test_ND: Tensor
    test_on_NP: Tensor


def direction_reading(data: Labelled, readers_PD: Tensor) -> dict[str, float]:
    """What phase 1's vectors say that nothing has trained: the reference beside which a latent's purity is read.

    `readers_PD` are Sigma^1/2 v, and not the steps d = Sigma^-1/2 v that a decoder starts from. A step adds v to
    l(x) = Sigma^1/2 x; so what x has of the concept is l(x) . v = x . Sigma^1/2 v = x . Sigma d, a logit (see
    polytope_hsae.geometry). A concept's code is how far this reading passes a threshold: the one of best F1 on the
    activations for choosing.
    """
    choose_NP, test_NP = (x_ND @ readers_PD.T for x_ND in (data.choose_ND, data.test_ND))
    threshold_P = f1_threshold(choose_NP, data.choose_on_NP)
    return mean_reading(reading(torch.relu(test_NP - threshold_P), data.test_on_NP))


def f1_threshold(scores_NP: Tensor, on_NP: Tensor) -> Tensor:
    """[P] beyond which a score predicts its label with the largest F1; LEAST activations or more pass it."""
    ordered_NP, order_NP = scores_NP.sort(dim=0, descending=True, stable=True)
    hits_NP = on_NP.gather(0, order_NP).double().cumsum(0)[:-1]
    passing_N1 = torch.arange(1, len(scores_NP), dtype=torch.float64)[:, None]
    f1_NP = 2 * hits_NP / (passing_N1 + on_NP.sum(0))
    # Between equal scores there is no threshold.
    f1_NP = f1_NP.masked_fill((ordered_NP[:-1] == ordered_NP[1:]) | (passing_N1 < LEAST), -1.0)
    return ordered_NP[1:].gather(0, f1_NP.argmax(0)[None])[0]


def shuffled_reading(data: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> dict[str, float]:
    """Of (codes, labels) for choosing and for testing: the same, matched anew, where labels stand at other activations."""
    codes_choose, on_choose, codes_test, on_test = data
    draws = []
    for number in range(SHUFFLES):
        draw = generator(seed, "shuffled labels", number)
        one, other = (on[torch.randperm(len(on), generator=draw)] for on in (on_choose, on_test))
        latent_P = one_to_one(correlations(codes_choose, one))
        draws.append(mean_reading(reading(codes_test[:, latent_P], other)))
    return {name: sum(d[name] for d in draws) / len(draws) for name in draws[0]}


# ------------------------------------------------------------------------------------- learned parents and children
def learned_pairs(model: Any, codes_NF: Tensor) -> Tensor:
    """[R, 2] (parent, child) latents: those of the architecture, or by co-activation.

    By co-activation: a latent's parent is the one that fires most often when it does, among those that fire more often in
    all (Matryoshka: among the innermost dictionary, for the latents outside it).
    """
    config = model.config
    fires_NF = (codes_NF > 0).double()
    count_F = fires_NF.sum(0)
    alive = count_F >= LEAST
    if config.kind == "hierarchical":
        child = torch.arange(config.m_top, config.features)
        pairs = torch.stack([(child - config.m_top) // config.m_low, child], 1)
    else:
        both_FF = fires_NF.T @ fires_NF
        allowed_FF = count_F[:, None] > count_F[None]
        if config.kind == "matryoshka":
            inner = torch.arange(config.features) < config.inner_widths[0]
            allowed_FF = inner[:, None] & ~inner[None]
        given_FF = torch.where(allowed_FF, both_FF, -1.0)
        child = torch.arange(config.features)
        pairs = torch.stack([given_FF.argmax(0), child], 1)[given_FF.max(0).values > 0]
    pairs = pairs[alive[pairs[:, 0]] & alive[pairs[:, 1]]]
    return pairs[count_F[pairs[:, 1]].argsort(descending=True, stable=True)[:MOST_PAIRS]]


def hierarchy_metrics(
    x_ND: Tensor,
    codes_NF: Tensor,
    decoder_FD: Tensor,
    bias_D: Tensor,
    pairs_R2: Tensor,
    heed: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Grandien et al. 2026 (arXiv:2606.22994) and Tree SAE's condition (arXiv:2605.07922), over pairs.

    Means, but the median for soft_absorption: a ratio that one pair of a steep slope would decide.

    inclusion: P(parent | child). coverage: P(some child | parent), over parents. hard_absorption: P(parent silent | child).
    soft_absorption: by regression on inputs where both fire, the share by which the parent's activation falls at the child's
    mean. distinct_siblings: 1 - Jaccard overlap of two children of one parent. co_correlation: of the two where both fire.
    reconstruction_gain: where both fire, the share of |x - b - parent|^2 that the child takes away; reconstruction_condition:
    how many pairs take some away. x is scaled. UserError for no pairs. `heed` is called for each pair.
    """
    if len(pairs_R2) == 0:
        raise UserError("inclusion: no parent and child fire often enough to be measured; train longer")
    fires_NF = codes_NF > 0
    parent_R, child_R = pairs_R2.T
    per_pair: dict[str, list[float]] = {
        name: [] for name in ("soft_absorption", "co_correlation", "reconstruction_gain")
    }
    inclusion_R = torch.empty(len(pairs_R2), dtype=torch.float64)
    for r, (j, i) in enumerate(pairs_R2.tolist()):
        heed()
        child_on = fires_NF[:, i]
        both = child_on & fires_NF[:, j]
        inclusion_R[r] = float(both.sum()) / float(child_on.sum())
        a, c = codes_NF[both, j].double(), codes_NF[both, i].double()
        if len(a) >= LEAST and float(c.var()) > 0 and float(a.var()) > 0:
            slope = float(((a - a.mean()) * (c - c.mean())).mean() / c.var(unbiased=False))
            per_pair["soft_absorption"].append(-slope * float(c.mean() / a.mean()))
            per_pair["co_correlation"].append(float(torch.corrcoef(torch.stack([a, c]))[0, 1]))
            rest = x_ND[both] - bias_D - codes_NF[both, j, None] * decoder_FD[j]
            after = rest - codes_NF[both, i, None] * decoder_FD[i]
            before = float(rest.square().sum())
            per_pair["reconstruction_gain"].append((before - float(after.square().sum())) / before)
    coverage, jaccard = [], []
    for j in parent_R.unique().tolist():
        children = child_R[parent_R == j]
        of_children = fires_NF[:, children]
        coverage.append(float((of_children.any(1) & fires_NF[:, j]).sum() / fires_NF[:, j].sum()))
        for one, other in zip(range(len(children)), range(1, len(children)), strict=False):
            either = float((of_children[:, one] | of_children[:, other]).sum())
            jaccard.append(float((of_children[:, one] & of_children[:, other]).sum()) / either)
    result = {"inclusion": float(inclusion_R.mean()), "hard_absorption": float(1 - inclusion_R.mean()),
              "coverage": sum(coverage) / len(coverage)}  # fmt: skip
    result |= {name: sum(values) / len(values) for name, values in per_pair.items() if values}
    if per_pair["soft_absorption"]:
        result["soft_absorption"] = median(per_pair["soft_absorption"])
    if per_pair["reconstruction_gain"]:
        gains = per_pair["reconstruction_gain"]
        result["reconstruction_condition"] = sum(gain > 0 for gain in gains) / len(gains)
    if jaccard:
        result["distinct_siblings"] = 1 - sum(jaccard) / len(jaccard)
    return result


def matched_pairs(codes_NF: Tensor, pairs_R2: Tensor, parents: int, seed: int) -> Tensor:
    """The null: each child with another parent, drawn among the five whose rate is nearest to its own parent's."""
    rate_F = (codes_NF > 0).double().mean(0)
    pool = rate_F[:parents].nonzero()[:, 0]
    draw = generator(seed, "matched pairs")
    drawn = []
    for j, i in pairs_R2.tolist():
        near = pool[(pool != j) & (pool != i)]
        near = near[(rate_F[near] - rate_F[j]).abs().argsort(stable=True)[:5]]
        if len(near):
            drawn.append([int(near[int(torch.randint(len(near), (1,), generator=draw))]), i])
    return torch.tensor(drawn).reshape(-1, 2)


# ------------------------------------------------------------------------------------------------------------- all of them
@torch.no_grad()
def sae_metrics(
    model: Any, store: Store, size: int, seed: int, readers_PD: Tensor, heed: Callable[[], None] = lambda: None
) -> tuple[dict[str, float], Matching]:
    """Of a trained model: reconstruction, sparsity, usage, labels, learned hierarchy with its null.

    `readers_PD` are phase 1's, of parents. What labels say is measured on texts, where the concept's word comes next, and,
    with names that end in _prompts, on prompts, where it stands itself. `heed` is called for each pair.
    """
    config = model.config
    parents = config.m_top
    choose, test = store.sample(CHOOSE, size), store.sample(TEST, size)
    x_choose, x_ND = store.rows(choose), store.rows(test)
    codes_NF = dense_codes(model, x_ND)
    value = explained_variance(model, x_ND)
    fires_F = codes_NF > 0
    metrics = {
        "explained_variance": value, "1-EV": 1 - value,
        "parents_active": float(fires_F[:, :parents].sum(1).double().mean()),
        "latents_active": float(fires_F.sum(1).double().mean()),
        "latents_used": float(fires_F.any(0).double().mean()),
        "parents_used": float(fires_F[:, :parents].any(0).double().mean()),
    }  # fmt: skip
    labels, held_out = store.labels(test), store.held_out(test)
    children = max(len(parent.children) for parent in store.hierarchy.parents)
    codes_choose, on_choose = dense_codes(model, x_choose), store.labels(choose)
    matching = match(codes_choose, on_choose, parents, children)
    metrics |= concept_metrics(codes_NF[held_out], labels[held_out], matching)
    metrics |= _beside(
        (codes_choose[:, :parents], on_choose >= 0, codes_NF[held_out][:, :parents], labels[held_out] >= 0),
        Labelled(x_choose, on_choose >= 0, x_ND[held_out], labels[held_out] >= 0), readers_PD, seed, "",
    )  # fmt: skip
    metrics |= prompt_metrics(model, store, seed, readers_PD)
    scaled = x_ND * config.input_scale
    pairs = learned_pairs(model, codes_NF)
    metrics["pairs"] = float(len(pairs))
    decoder = dense_decoder(model)
    metrics |= hierarchy_metrics(scaled, codes_NF, decoder, model.bias, pairs, heed)
    null = matched_pairs(codes_NF, pairs, parents, seed)
    if len(null):
        null_metrics = hierarchy_metrics(scaled, codes_NF, decoder, model.bias, null, heed)
        metrics |= {f"{name}_null": v for name, v in null_metrics.items()}
    return metrics, matching


def steps_to_convergence(rows: Sequence[Mapping[str, Any]], share: float = 0.99) -> int:
    """The first evaluated step from which explained variance stays at `share` of its last value or above. UserError for none."""
    values = [(int(row["step"]), float(row["explained_variance"])) for row in rows if "explained_variance" in row]
    if not values:
        raise UserError("steps to convergence: no evaluation was made; lower training.val_every")
    threshold = share * values[-1][1]
    reached = values[-1][0]
    for step, value in reversed(values):
        if value < threshold:
            break
        reached = step
    return reached


def stability(decoder_FD: Tensor, other_FD: Tensor) -> float:
    """Mean over latents of the largest cosine with a latent of another seed's decoder."""
    one = decoder_FD / decoder_FD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    other = other_FD / other_FD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return float((one @ other.T).max(1).values.mean())


def _beside(
    codes: tuple[Tensor, Tensor, Tensor, Tensor], data: Labelled, readers_PD: Tensor, seed: int, suffix: str
) -> dict[str, float]:
    """Shuffled labels and untrained directions, under the names of what they stand beside."""
    beside = {"shuffled": shuffled_reading(codes, seed), "reference": direction_reading(data, readers_PD)}
    return {f"{name}{suffix}_{kind}": values[name] for kind, values in beside.items() for name in ("purity", "leakage")}


def prompt_metrics(model: Any, store: Store, seed: int, readers_PD: Tensor) -> dict[str, float]:
    """purity_prompts and others: what parents' latents say of the concept whose word a prompt ends in; {} with too few.

    Latents are matched on the prompts for choosing; of these words and of those for testing no vector was estimated.
    """
    choose, test = store.prompts(CHOOSE), store.prompts(TEST)
    on_choose, on_test = (store.labels(indices) >= 0 for indices in (choose, test))
    if not len(choose) or not reading(on_test.float(), on_test):
        return {}
    parents = model.config.m_top
    x_choose, x_test = store.rows(choose), store.rows(test)
    codes_choose, codes_test = (dense_codes(model, x)[:, :parents] for x in (x_choose, x_test))
    latent_P = one_to_one(correlations(codes_choose, on_choose))
    measured = mean_reading(reading(codes_test[:, latent_P], on_test))
    beside = _beside(
        (codes_choose, on_choose, codes_test, on_test), Labelled(x_choose, on_choose, x_test, on_test), readers_PD,
        seed, "_prompts",
    )  # fmt: skip
    return {f"{name}_prompts": value for name, value in measured.items()} | beside
