"""Events by windows: planted truth is found, noise and single touches are not."""

import numpy as np
import pytest

from least_action.events import find_events, first_window, has_plateau, may_begin


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


def test_the_onset_is_read_on_new_pairs_where_they_were_measured():
    """Of a commutative operation test accuracy starts at the training fraction: its mirror pairs are known."""
    made = rows([0.5] + [1.0] * 9, [0.2] + [0.4] * 6 + [1.0] * 3)
    assert find_events(made, p=113, window=2).onset == 0
    never = [row | {"new_pairs_acc": 0.09} for row in made]
    assert find_events(never, p=113, window=2).onset is None
    risen = [row | {"new_pairs_acc": 0.1 if row["epoch"] >= 50 else 0.09} for row in made]
    assert find_events(risen, p=113, window=2).onset == 50
    assert find_events(risen, p=10, window=2).onset is None  # chance is on the plateau
    for gap in (None, float("nan")):  # a history of two versions is read as an old one
        assert find_events([*risen[:-1], risen[-1] | {"new_pairs_acc": gap}], p=113, window=2).onset == 0


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


def test_a_run_that_falls_back_has_a_first_and_a_sustained_crossing():
    test = [0.02] * 4 + [1.0] + [0.3] + [1.0] * 5 + [0.5] * 2 + [1.0] * 8
    events = find_events(rows([0.5] + [1.0] * 20, test), p=113, window=3)
    assert (events.crossed_99, events.grokked_99, events.sustained_99) == (40, 60, 130)
    assert events.evaluations_after == 12
    assert events.held_99 == 10 / 12
    assert events.test_at_memorised == 0.02
    falls_at_the_end = find_events(rows([1.0] * 12, [0.0] * 2 + [1.0] * 8 + [0.9, 1.0]), p=113, window=3)
    assert falls_at_the_end.sustained_99 is None
    assert falls_at_the_end.held_99 == 6 / 7
    never = find_events(rows([1.0] * 6, [0.1] * 6), p=113, window=3)
    assert (never.crossed_99, never.sustained_99, never.held_99, never.evaluations_after) == (None, None, None, 0)


def test_what_begins_an_event_is_told_when_it_happens_and_only_where_it_may():
    train = [0.1, 1.0, 0.5, 1.0, 1.0, 1.0, 0.5, 1.0]
    test = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    made = rows(train, test)
    told = [row["epoch"] for i, row in enumerate(made) if may_begin(made[:i], row["train_acc"], row["test_acc"], 3)]
    events = find_events(made, p=113, window=3)
    assert {events.memorised, events.grokked_99} <= set(told)
    # 10: a touch that may have become the event; 70: memorised long before.
    assert told == [10, 30, 40]


def with_new_pairs(new):
    made = rows([0.5] + [1.0] * 9, [0.3] * 7 + [1.0] * 3)
    return find_events(
        [row | {"new_pairs_acc": value} for row, value in zip(made, new, strict=True)], p=113, window=5
    ).as_dict()


def test_a_plateau_lasts_for_a_window_of_evaluations_from_memorisation_on():
    flat = with_new_pairs([0.5] + [0.02] * 4 + [0.09] + [0.4] * 4)
    assert (flat["memorised"], flat["new_at_memorised"], flat["highest_new_accuracy"]) == (10, 0.02, 0.09)
    assert has_plateau(flat)
    # A curve that rises right through memorisation has a low evaluation as well.
    rising = with_new_pairs([0.003, 0.007, 0.025, 0.065, 0.124, 0.2, 0.4, 0.6, 0.9, 1.0])
    assert (rising["new_at_memorised"], rising["highest_new_accuracy"]) == (0.007, 0.2)
    assert not has_plateau(rising)
    at_the_edge = with_new_pairs([0.0] + [0.02] * 4 + [0.1] + [0.4] * 4)
    assert not has_plateau(at_the_edge)
    for gap in (None, float("nan")):
        unmeasured = with_new_pairs([0.0] + [0.02] * 2 + [gap] + [0.02] * 6)
        assert unmeasured["highest_new_accuracy"] is None and not has_plateau(unmeasured)
    never = find_events(rows([0.5] * 9, [0.1] * 9), p=113, window=5).as_dict()
    assert never["highest_new_accuracy"] is None and not has_plateau(never)
    assert not has_plateau({"highest_new_accuracy": float("nan")}), "as a table has it"
