"""How long a sweep's stacked runs are said to take, from what an update and an evaluation of one run take."""

import pytest
from test_sweep import BASE, sweep_of

from ternary_vae import estimate as module, train
from ternary_vae.config import SweepConfig, TrainConfig
from ternary_vae.plan import plan
from ternary_vae.stacked import StackedRadii


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


def test_what_is_timed_is_the_update_that_the_loop_makes(monkeypatch):
    """With its clipping and its rates: the same function, once to warm up and then UPDATES times in their order."""
    assert module.update is train.update
    rates, made, norms = [], [], []

    def update(models, lanes, positions, index, per_epoch):
        made.append((index, per_epoch, len(lanes), len(positions)))
        terms = train.update(models, lanes, positions, index, per_epoch)
        rates.append(models.optimizer.lr_S[: len(lanes)].tolist())
        return terms

    monkeypatch.setattr(module, "update", update)
    monkeypatch.setattr(StackedRadii, "clip_gradients", lambda self, largest: norms.append(largest))
    settings = {**BASE, "scheduler": "step", "step_epochs": 1, "step_gamma": 0.5, "grad_clip": 0.25}
    configs = [job.config for job in plan(sweep_of(base=settings)) if job.together][:2]
    module.time_a_stack(configs, "cpu")
    per_epoch = module.updates_per_epoch(configs[0])
    assert made == [(index, per_epoch, 2, 2) for index in range(module.UPDATES + 1)] and per_epoch < module.UPDATES
    assert norms == [0.25] * len(made)
    assert rates == [[config.lr * 0.5 ** (index // per_epoch) for config in configs] for index, *_ in made]
