"""Random streams: pinned values, so that seeds never change silently, and independence of names."""

import numpy as np
import pytest
import torch

from studycore.streams import batch_indices, derive_seed, generator


def test_known_values():
    assert derive_seed(0) == 5254295370254170289
    assert derive_seed(42, "init", "layers.0.weight") == 6565277325715250756
    assert derive_seed(42, "batches", 7) == 7369642942623495292
    assert torch.randint(0, 1000, (5,), generator=generator(1, "x")).tolist() == [394, 539, 578, 820, 571]
    assert torch.randn(3, generator=generator(1, "x")).tolist() == pytest.approx(
        [0.17794147, 0.91581243, 0.14650051], abs=1e-6
    )
    assert torch.randperm(8, generator=generator(1, "x")).tolist() == [2, 4, 1, 3, 7, 5, 0, 6]


def test_every_name_gives_its_own_stream():
    names = [
        (0,),
        (1,),
        (0, "a"),
        (0, "b"),
        (0, "a", 1),
        (0, "a", 2),
        (0, "a1"),
        (0, "a", "1"),
        (0, "a", "b"),
        (0, "a, b"),
        (-1,),
    ]
    seeds = [derive_seed(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_do_not_disturb_each_other_or_the_global_one():
    state = torch.random.get_rng_state()
    alone = torch.rand(4, generator=generator(0, "a"))
    a, b = generator(0, "a"), generator(0, "b")
    first = torch.rand(2, generator=a)
    torch.rand(100, generator=b)
    assert torch.equal(torch.cat([first, torch.rand(2, generator=a)]), alone)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_streams_of_neighbouring_steps_are_uncorrelated():
    draws = torch.stack([torch.randn(2000, generator=generator(0, "step", step)) for step in range(20)])
    correlations = torch.corrcoef(draws) - torch.eye(20)
    assert correlations.abs().max() < 5 / 2000**0.5


@pytest.mark.parametrize("name", [1.0, None, torch.tensor(1), True, object()], ids=str)
def test_a_name_whose_text_may_vary_is_refused(name):
    with pytest.raises(AssertionError):
        derive_seed(0, name)


def test_batches_are_a_function_of_seed_and_step_and_cover_every_epoch():
    drawn = np.concatenate([batch_indices(30, 12, 3, step) for step in range(5)])
    assert sorted(drawn[:30]) == sorted(drawn[30:]) == list(range(30))
    assert not np.array_equal(drawn[:30], drawn[30:])
    assert np.array_equal(batch_indices(30, 12, 3, 4), drawn[48:])
    assert not np.array_equal(batch_indices(30, 12, 4, 0), drawn[:12])
    longer = batch_indices(4, 10, 0, 0)
    assert len(longer) == 10 and sorted(longer[:4]) == sorted(longer[4:8]) == list(range(4))
