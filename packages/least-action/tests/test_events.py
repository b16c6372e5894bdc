"""Events by windows: planted truth is found, noise and single touches are not."""

import numpy as np
import pytest

from least_action.events import find_events, first_window


def rows(train, test, every=10):
    return [
        {"epoch": i * every, "train_acc": a, "test_acc": b} for i, (a, b) in enumerate(zip(train, test, strict=True))
    ]


def test_planted_run():
    train = [0.1, 0.5] + [1.0] * 18
    test = [0.01] * 5 + [0.2] * 5 + [0.96] * 4 + [1.0] * 6
    events = find_events(rows(train, test), p=113, window=3)
    assert (events.memorised, events.onset, events.grokked_95, events.grokked_99, events.delay) == (
        20,
        50,
        100,
        140,
        120,
    )
    assert events.last_epoch == 190


def test_a_touch_is_no_event():
    test = [0.0] * 5 + [1.0, 1.0] + [0.3] * 5 + [1.0, 0.98, 1.0]
    events = find_events(rows([1.0] * 15, test), p=113, window=3)
    assert events.grokked_99 is None
    assert events.delay is None
    assert events.grokked_95 == 120


def test_noise_never_groks():
    random = np.random.default_rng(0)
    for _ in range(50):
        noise = np.clip(random.normal(0.9, 0.05, 400), 0, 1)
        assert find_events(rows(noise, noise), p=113, window=5).grokked_99 is None


def test_first_window_reports_its_first_step():
    assert first_window([0, 10, 20, 30], [1.0, 0.0, 1.0, 1.0], 0.99, 2) == 20
    assert first_window([0, 10], [1.0, 1.0], 0.99, 3) is None


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="accuracies"):
        find_events([], 7, 3)
