"""Every gate on pure noise and on planted truth, at its stated level."""

import pytest
from conftest import gates
from scipy.stats import binomtest

from polytope_hsae.validation import GATES, LEVEL


@pytest.fixture(scope="module")
def noise():
    from polytope_hsae.config import GeometryConfig

    values = {"model": "synthetic-tree", "tree_parents": 3, "tree_children": 2, "tree_dim": 16, "tree_words": 10}
    values |= {"tree_parent_scale": 0.0, "tree_child_scale": 0.0, "n_shuffles": 19, "contexts": 4}
    return [gates(GeometryConfig(**values, tree_seed=seed, seed=seed)) for seed in range(200)]


@pytest.mark.parametrize("gate", GATES)
def test_pure_noise_passes_no_more_often_than_the_level(noise, gate):
    passed = sum(found.passed[gate] for found in noise)
    assert binomtest(passed, len(noise), LEVEL, alternative="greater").pvalue > 0.01, passed


def test_nested_angles_are_right_angles_in_noise_too(noise):
    medians = [found.measured["nested_angle"]["median"] for found in noise]
    assert sum(abs(m - 90) < 12 for m in medians) > 180


def test_planted_hierarchies_pass_every_gate(tree):
    found = [gates(tree(tree_seed=seed, seed=seed)) for seed in range(50)]
    failed = {gate: sum(not f.passed[gate] for f in found) for gate in GATES}
    assert sum(all(f.passed.values()) for f in found) >= 48, failed


def test_a_tree_without_children_fails_the_siblings_gate(tree):
    assert not gates(tree(tree_child_scale=0.0)).passed["sibling_labels"]


def test_a_forest_of_children_without_parents_fails_the_pairing_gate(tree):
    found = gates(tree(tree_parent_scale=0.0))
    assert found.passed["held_out_projection"]
    assert not found.passed["parent_pairing"]
