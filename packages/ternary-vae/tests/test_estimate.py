"""How long a sweep's stacked runs are said to take, from what an update and an evaluation of one run take."""

import pytest
from test_sweep import BASE, sweep_of

from ternary_vae import estimate as module
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.plan import plan


def test_runs_take_their_updates_and_their_evaluations():
    # 27 operations in batches of 8 are 4 updates an epoch; 10 epochs have 11 evaluations, or 6 where every second has one.
    config = TrainConfig(trits=3, batch_size=8, deep_share=0.0, epochs=10)
    assert module.updates_per_epoch(config) == 4
    assert module.seconds_of([config], 1.0, 0.0) == 40 and module.seconds_of([config], 0.0, 1.0) == 11
    seldom = TrainConfig(trits=3, batch_size=8, deep_share=0.0, epochs=10, eval_every=2)
    assert module.seconds_of([config, seldom], 0.0, 1.0) == 17


def test_only_runs_that_are_trained_together_are_timed_as_such(monkeypatch):
    timed = []

    def time_a_stack(configs, device):
        timed.extend(configs)
        return 3600.0, 0.0

    monkeypatch.setattr(module, "time_a_stack", time_a_stack)
    monkeypatch.setattr(module, "cores", lambda: 1)
    sweep = sweep_of()
    together = [job.config for job in plan(sweep) if job.together]
    said = module.estimate(sweep, "cpu")
    hours = sum(config.epochs * module.updates_per_epoch(config) for config in together)
    assert said == [f"{len(together)} runs of radius nets, trained together: about {hours}.0 hours if none ends early"]
    assert together and timed == together
    assert module.estimate(SweepConfig(from_scratch={"train": {"trits": 3}}), "cpu") == []


@pytest.mark.parametrize("loss", ["ordered", "rich_hierarchy"])
def test_a_stack_is_timed_without_runs(loss):
    configs = [job.config for job in plan(sweep_of(base={**BASE, "loss": loss})) if job.together]
    update, evaluation = module.time_a_stack(configs, "cpu")
    assert update > 0 and evaluation > 0
