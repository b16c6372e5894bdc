"""Metrics on codes that are known."""

import pytest
import torch

from polytope_hsae.head import Head
from polytope_hsae.metrics import (
    LEAST,
    ExplainedVariance,
    Labelled,
    auroc,
    ce_recovered,
    concept_metrics,
    correlations,
    direction_reading,
    f1,
    f1_threshold,
    hierarchy_metrics,
    learned_pairs,
    match,
    matched_pairs,
    mean_reading,
    one_to_one,
    reading,
    shuffled_reading,
    stability,
    steps_to_convergence,
)


def test_explained_variance_is_0_for_the_mean_and_1_for_the_identity_over_any_batches():
    x_ND = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) + 7
    for sizes in ([100], [1, 40, 59]):
        mean, same = ExplainedVariance(), ExplainedVariance()
        for part in x_ND.split(sizes):
            mean.add(part, x_ND.mean(0).expand_as(part))
            same.add(part, part)
        assert abs(mean.value()) < 1e-6
        assert same.value() == 1


def test_explained_variance_without_inputs_is_an_error():
    with pytest.raises(ValueError, match="0 activations have no variance"):
        ExplainedVariance().value()


def test_cross_entropy_recovered():
    """1 for the activations themselves, 0 for their mean."""
    draw = torch.Generator().manual_seed(0)
    x_ND, head = torch.randn(50, 6, generator=draw), torch.randn(20, 6, generator=draw)
    following = (x_ND @ head.T).argmax(1)
    mean = x_ND.mean(0)
    assert ce_recovered(lambda x: x, x_ND, mean, Head(head), following)["ce_recovered"] == pytest.approx(1)
    found = ce_recovered(lambda x: mean.expand_as(x), x_ND, mean, Head(head), following)
    assert found["ce_recovered"] == pytest.approx(0, abs=1e-6)
    assert found["1-CE"] == pytest.approx(1)


def labels_and_codes(n=60):
    """Two parents of two children: latents 0 and 1 are the parents, 2 to 5 the children."""
    parent = torch.arange(n) % 2
    child = torch.arange(n) // 2 % 2
    labels = torch.full((n, 2), -1)
    labels[torch.arange(n), parent] = child
    codes = torch.zeros(n, 6)
    codes[torch.arange(n), parent] = 1 + 0.1 * (torch.arange(n) % 5)
    codes[torch.arange(n), 2 + 2 * parent + child] = 1 + 0.1 * (torch.arange(n) % 3)
    return labels, codes


def test_perfect_latents_are_pure_and_leak_nothing():
    labels, codes = labels_and_codes()
    matching = match(codes, labels, 2, 2)
    assert matching.parent_P.tolist() == [0, 1]
    assert matching.child_PC.tolist() == [[2, 3], [4, 5]]
    found = concept_metrics(codes, labels, matching)
    assert (found["purity"], found["leakage"], found["split"], found["absorption"], found["recall"]) == (1, 0, 0, 0, 1)


def test_the_auroc_is_the_share_of_pairs_in_order():
    draw = torch.Generator().manual_seed(0)
    own, other = (torch.randint(0, 5, (n,), generator=draw).float() for n in (30, 50))
    pairs = [(a > b) + 0.5 * (a == b) for a in own for b in other]
    assert auroc(own, other) == pytest.approx(float(sum(pairs)) / len(pairs))
    assert auroc(other + 9, other) == 1
    assert auroc(other * 0, other * 0) == 0.5
    labels, codes = labels_and_codes()
    often = codes[:, :2] + 0.01
    found = mean_reading(reading(often, labels >= 0))
    assert (found["leakage"], found["auroc"]) == (1, 1), (
        "firing everywhere is no matter, as long as the code is larger at home"
    )


def test_no_latent_stands_for_two_concepts():
    """Latent 0 is the best of both concepts; together they are best served by 1 and 0."""
    assert one_to_one(torch.tensor([[0.9, 0.8], [0.7, 0.1], [0.0, 0.0]])).tolist() == [1, 0]
    labels, codes = labels_and_codes()
    codes[:, 0] = codes[:, 0] + 2 * codes[:, 1]
    assert sorted(match(codes, labels, 2, 2).parent_P.tolist()) == [0, 1]
    with pytest.raises(ValueError, match=r"hsae.m_top: 1 latents cannot stand for 2 concepts"):
        match(codes, labels, 1, 2)


def test_children_of_one_parent_have_latents_of_their_own():
    labels, codes = labels_and_codes()
    codes[:, 2] += codes[:, 3]  # what fires for both children of the first parent
    codes[:, 3] = 0
    found = match(codes, labels, 2, 2).child_PC
    assert len(set(found[0].tolist())) == 2


def test_a_latent_that_is_always_on_is_as_pure_as_its_label_is_frequent():
    labels, _ = labels_and_codes()
    labels[:15] = -1
    found = mean_reading(reading(torch.ones(60, 2), labels >= 0))
    assert found["purity"] == pytest.approx(found["base_rate"]) == pytest.approx(45 / 60 / 2)
    assert (found["recall"], found["leakage"]) == (1, 1)
    with pytest.raises(ValueError, match="purity: no concept has 5 test activations"):
        mean_reading({})


def test_shuffled_labels_leave_the_base_rate():
    labels, codes = labels_and_codes(600)
    on = labels >= 0
    on[100:] = False
    found = shuffled_reading((codes, on, codes, on), 0)
    assert found["purity"] == pytest.approx(50 / 600, abs=0.03)
    latent = one_to_one(correlations(codes[:100], on[:100]))
    assert mean_reading(reading(codes[:100, latent], on[:100]))["purity"] == pytest.approx(1)


def labelled(n=4000, rate=0.05, strength=4.0):
    """Two concepts on the first two of six coordinates."""
    draw = torch.Generator().manual_seed(0)
    on = torch.rand(n, 2, generator=draw) < rate
    x_ND = strength * on.float() @ torch.eye(2, 6) + torch.randn(n, 6, generator=draw) + 7
    return x_ND, on


def test_the_reference_is_a_reading_beyond_the_threshold_of_best_f1_for_choosing():
    x_ND, on = labelled()
    half = Labelled(x_ND[:2000], on[:2000], x_ND[2000:], on[2000:])
    right, wrong = (direction_reading(half, 5 * torch.eye(2, 6).roll(turn, 1)) for turn in (0, 3))
    assert right["purity"] > 0.9
    assert wrong["purity"] < 0.15
    # It finds most of what there is, and not the few activations that are purest.
    assert right["recall"] > 0.8
    # Labels of the test choose nothing: with those for choosing turned about, the threshold is another.
    other = direction_reading(Labelled(x_ND[:2000], ~on[:2000], x_ND[2000:], on[2000:]), torch.eye(2, 6))
    assert other["purity"] < right["purity"]


def test_the_threshold_has_the_best_f1_of_all():
    draw = torch.Generator().manual_seed(1)
    scores = torch.randint(12, (80, 3), generator=draw).float()  # many alike
    on = scores + 4 * torch.randn(80, 3, generator=draw) > 8
    thresholds = f1_threshold(scores, on)
    for p in range(3):
        passing = {t: scores[:, p] > t for t in scores[:, p].unique().tolist()}
        every = {t: float(f1(fires[:, None], on[:, p])[0]) for t, fires in passing.items() if fires.sum() >= LEAST}
        assert every[float(thresholds[p])] == max(every.values())
    silent = f1_threshold(scores, torch.zeros(80, 3, dtype=torch.bool))
    assert ((scores > silent).sum(0) >= LEAST).all(), "a concept that is never on for choosing has a threshold too"


def test_what_never_fires_is_not_pure():
    x_ND, on = labelled(400, 0.3)
    half = Labelled(x_ND[:200], on[:200], x_ND[200:] - 100, on[200:])
    assert direction_reading(half, torch.eye(2, 6)) == pytest.approx(
        {"base_rate": float(on[200:].double().mean()), "purity": 0, "recall": 0, "leakage": 0, "auroc": 0.5}
    )


def test_the_reference_does_not_hang_on_the_basis_of_the_residual_stream():
    """gamma -> A gamma, x -> A^-T x leaves every logit as it is: so it leaves what phase 1's vectors read, and steps do not."""
    from polytope_hsae.geometry import causal_geometry

    draw = torch.Generator().manual_seed(2)
    turn_DD = torch.linalg.qr(torch.randn(6, 6, generator=draw, dtype=torch.float64))[0] * torch.logspace(-1.3, 1.3, 6)
    x_ND, on = labelled()
    gamma_VD = torch.randn(500, 6, generator=draw, dtype=torch.float64)
    found = {"readers": [], "steps": []}
    for basis in (torch.eye(6, dtype=torch.float64), turn_DD.T):
        geometry = causal_geometry(gamma_VD @ basis.T)
        vectors = geometry.unify_words((gamma_VD.mean(0) + 3 * torch.eye(2, 6)) @ basis.T)
        x = x_ND.double() @ torch.linalg.inv(basis)
        half = Labelled(x[:2000], on[:2000], x[2000:], on[2000:])
        found["readers"].append(direction_reading(half, geometry.to_readers(vectors))["purity"])
        found["steps"].append(direction_reading(half, geometry.to_residuals(vectors))["purity"])
    assert found["readers"][0] == pytest.approx(found["readers"][1], abs=1e-6)
    assert found["readers"][0] > 0.9
    assert found["steps"][1] < 0.7


def test_a_latent_that_fires_for_both_parents_leaks():
    labels, codes = labels_and_codes()
    matching = match(codes, labels, 2, 2)
    codes[:, 0] = 1
    found = concept_metrics(codes, labels, matching)
    assert found["leakage"] == 0.5
    assert found["purity"] == pytest.approx(0.75)


def test_absorption_is_a_silent_parent_beside_its_child():
    labels, codes = labels_and_codes()
    matching = match(codes, labels, 2, 2)
    codes[(labels[:, 0] == 1), 0] = 0
    found = concept_metrics(codes, labels, matching)
    assert found["absorption"] == pytest.approx(0.25)
    assert found["recall"] == pytest.approx(0.75)


def test_a_concept_in_two_latents_is_split():
    labels, codes = labels_and_codes()
    codes[:, [0, 1]] = 0
    matching = match(codes, labels, 6, 2)
    assert concept_metrics(codes, labels, matching)["split"] == 1


def test_labels_without_activations_are_an_error():
    labels, codes = labels_and_codes()
    with pytest.raises(ValueError, match="purity, absorption: no concept"):
        concept_metrics(codes, torch.full_like(labels, -1), match(codes, labels, 2, 2))


def test_yardsticks_of_pairs():
    """The child's code takes from its parent's; the pair explains the input exactly."""
    n = 40
    child = torch.where(torch.arange(n) % 2 == 0, 0.0, 0.5 + 0.01 * torch.arange(n))
    codes = torch.stack([2 - child, child], 1)
    decoder = torch.eye(2)
    found = hierarchy_metrics(codes @ decoder, codes, decoder, torch.zeros(2), torch.tensor([[0, 1]]))
    assert found["inclusion"] == 1
    assert found["coverage"] == 0.5
    assert found["co_correlation"] == pytest.approx(-1)
    on = child[child > 0]
    assert found["soft_absorption"] == pytest.approx(float(on.mean() / (2 - on).mean()), rel=1e-4)
    assert found["reconstruction_gain"] == pytest.approx(1)
    assert found["reconstruction_condition"] == 1


def test_soft_absorption_is_the_median_pair():
    """Two parents that do not fall and one that falls tenfold: a mean would follow the one."""
    n = 60
    child = 0.5 + 0.01 * torch.arange(n)
    wiggle = 0.01 * torch.cos(torch.arange(n) * torch.pi)
    codes = torch.stack([2 + wiggle, 3 + wiggle, 20 - 10 * child, child], 1)
    found = [
        hierarchy_metrics(codes @ torch.eye(4), codes, torch.eye(4), torch.zeros(4), torch.tensor(pairs))
        for pairs in ([[0, 3]], [[1, 3]], [[2, 3]], [[0, 3], [1, 3], [2, 3]])
    ]
    each = sorted(one["soft_absorption"] for one in found[:3])
    assert found[3]["soft_absorption"] == each[1]
    assert each[2] > 0.5 > 10 * abs(each[1])


def test_pairs_by_co_activation_and_their_null():
    class Flat:
        class config:
            kind, features, m_top, inner_widths = "topk", 4, 4, ()

    draw = torch.Generator().manual_seed(0)
    codes = (torch.rand(400, 4, generator=draw) < torch.tensor([0.5, 0.4, 0.0, 0.3])).float()
    codes[:, 2] = codes[:, 0] * (torch.rand(400, generator=draw) < 0.5)
    pairs = learned_pairs(Flat, codes)
    assert [0, 2] in pairs.tolist()
    null = matched_pairs(codes, pairs, 4, 0)
    assert not {tuple(p) for p in null.tolist()} & {tuple(p) for p in pairs.tolist()}


def test_stability_of_a_permutation_is_1():
    rows = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert stability(rows, 3 * rows[torch.tensor([3, 1, 4, 0, 2])]) == pytest.approx(1)


def test_steps_to_convergence():
    rows = [{"step": s, "explained_variance": v} for s, v in ((0, 0.1), (10, 0.995), (20, 0.5), (30, 0.999), (40, 1.0))]
    assert steps_to_convergence(rows) == 30
    with pytest.raises(ValueError, match="no evaluation was made"):
        steps_to_convergence([{"step": 0, "loss": 1.0}])
