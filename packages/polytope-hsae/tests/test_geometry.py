"""The causal inner product, and concept vectors in the dual, against definitions."""

import pytest
import torch

from polytope_hsae.estimators import LEAST_SINGLE, concept_vector, concept_vector_pinv, ledoit_wolf
from polytope_hsae.geometry import causal_geometry, cosine, euclidean_geometry
from studycore.errors import UserError


@pytest.fixture
def gamma_VD():
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=draw, dtype=torch.float64)
    return torch.randn(400, 12, generator=draw, dtype=torch.float64) @ mixing + 3


def test_unified_words_have_unit_covariance(gamma_VD):
    g_VD = causal_geometry(gamma_VD).unify_words(gamma_VD)
    torch.testing.assert_close(g_VD.T @ g_VD / len(g_VD), torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(g_VD.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-10, rtol=0)


def test_residuals_are_dual_to_words(gamma_VD):
    """Logits are the same in both spaces, but for a constant over words."""
    geometry = causal_geometry(gamma_VD)
    x_ND = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = x_ND @ gamma_VD.T
    unified = x_ND @ geometry.sqrt_DD @ geometry.unify_words(gamma_VD).T
    torch.testing.assert_close((logits - unified).std(1), torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_vectors_step_moves_logits_by_its_inner_products(gamma_VD):
    geometry = causal_geometry(gamma_VD)
    v_1D = torch.randn(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved_V = (geometry.to_residuals(v_1D) @ gamma_VD.T)[0]
    expected_V = geometry.unify_words(gamma_VD) @ v_1D[0]
    torch.testing.assert_close(moved_V - moved_V.mean(), expected_V - expected_V.mean())


def test_a_reader_is_a_words_own_logit_and_reads_a_step_by_its_inner_product(gamma_VD):
    geometry = causal_geometry(gamma_VD)
    draw = torch.Generator().manual_seed(3)
    x_ND, v_2D = (torch.randn(n, 12, dtype=torch.float64, generator=draw) for n in (5, 2))
    readers_2D = geometry.to_readers(v_2D)
    torch.testing.assert_close(geometry.to_residuals(v_2D) @ readers_2D.T, v_2D @ v_2D.T)
    of_words = x_ND @ geometry.to_readers(geometry.unify_words(gamma_VD[:4])).T
    torch.testing.assert_close(of_words, x_ND @ (gamma_VD[:4] - gamma_VD.mean(0)).T)


def test_shrinkage_is_relative_to_the_mean_eigenvalue(gamma_VD):
    plain, shrunk = causal_geometry(gamma_VD), causal_geometry(1e3 * gamma_VD, 0.25)
    expected = 0.75 * plain.eigenvalues_D + 0.25 * plain.eigenvalues_D.mean()
    torch.testing.assert_close(shrunk.eigenvalues_D / 1e6, expected)


def test_a_singular_covariance_is_refused():
    with pytest.raises(ValueError, match=r"shrinkage: 0.0 leaves the covariance of 5 words in 8 dimensions singular"):
        causal_geometry(torch.randn(5, 8))


def test_the_euclidean_control_whitens_nothing(gamma_VD):
    flat = euclidean_geometry(gamma_VD)
    ratio = flat.unify_words(gamma_VD) / (gamma_VD - gamma_VD.mean(0))
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


@pytest.mark.parametrize("n", [5, 40, 90])
def test_the_dual_equals_the_pseudo_inverse(n):
    g_nD = torch.randn(n, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) + 0.3
    torch.testing.assert_close(concept_vector(g_nD), concept_vector_pinv(g_nD), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "width"), [(200, 400), (500, 200), (300, 300), (300, 700), (600, 300)])
def test_large_concepts_are_solved_in_single_precision_and_refined(n, width):
    """To a hundredth of the benchmark's 1e-5; without refining it is 1e-6 at best."""
    assert n * width >= LEAST_SINGLE
    draw = torch.Generator().manual_seed(n)
    mixing = torch.randn(width, width, generator=draw, dtype=torch.float64) / width**0.5
    g_nD = torch.randn(n, width, generator=draw, dtype=torch.float64) @ mixing + 0.3
    dense = concept_vector_pinv(g_nD)
    assert float((concept_vector(g_nD) - dense).norm() / dense.norm()) < 1e-7
    # A ridge so small that single precision could not hold it is solved in double.
    tiny = concept_vector(g_nD, 1e-6)
    centred = g_nD - g_nD.mean(0)
    mu = float(centred.square().sum()) / n / width
    covariance = (1 - 1e-6) * centred.T @ centred / n + 1e-6 * mu * torch.eye(width, dtype=torch.float64)
    direction = torch.linalg.solve(covariance, g_nD.mean(0))
    direction = direction / direction.norm()
    torch.testing.assert_close(tiny, (g_nD.mean(0) @ direction) * direction, rtol=1e-6, atol=1e-9)


def test_two_words_have_no_vector():
    with pytest.raises(UserError, match="min_vocab_count: a concept has 2 words for estimating"):
        concept_vector(torch.randn(2, 8, dtype=torch.float64))


def test_vectors_of_a_batch_are_those_of_its_members():
    g_BnD = torch.randn(3, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + 0.2
    torch.testing.assert_close(concept_vector(g_BnD), torch.stack([concept_vector(g) for g in g_BnD]))


def test_shrinkage_follows_the_definition():
    """Ledoit and Wolf 2004, lemma 3.1 to 3.4, by its sums over samples of outer products."""
    x_nD = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x_nD -= x_nD.mean(0)
    sample = x_nD.T @ x_nD / 7
    mu = sample.trace() / 5
    distance = (sample - mu * torch.eye(5)).square().sum() / 5
    noise = sum((torch.outer(x, x) - sample).square().sum() / 5 for x in x_nD) / 49
    a, found_mu = ledoit_wolf(x_nD @ x_nD.T, 5)
    torch.testing.assert_close(a, torch.minimum(noise, distance) / distance)
    torch.testing.assert_close(found_mu, mu)


def test_the_vector_keeps_its_length():
    """g . v / |v|^2 is 1 at the mean of the concept's words, and doubling the words doubles the vector."""
    g_nD = torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 1
    v_D = concept_vector(g_nD)
    torch.testing.assert_close(g_nD.mean(0) @ v_D / (v_D @ v_D), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(concept_vector(2 * g_nD), 2 * v_D)
    assert float(cosine(v_D, g_nD.mean(0))) > 0.5
