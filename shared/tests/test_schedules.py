"""Schedules against their formulas."""

import pytest

from studycore.schedules import cosine, warm_up


def test_warm_up_is_linear_and_then_one():
    assert [warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warm_up(0, 0) == 1


def test_the_cosine_falls_to_its_floor_and_stays():
    assert [cosine(x) for x in (0, 0.5, 1, 2)] == pytest.approx([1, 0.5, 0, 0])
    assert [cosine(x, 0.1) for x in (0, 0.5, 1, 2)] == pytest.approx([1, 0.55, 0.1, 0.1])
