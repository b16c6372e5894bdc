"""The enumeration and its 3-adic valuation against slow loops; the batches that training sees."""

import itertools

import pytest
import torch

from ternary_vae.data import (
    Batches,
    Operations,
    place_in_level,
    training_indices,
    trits_of,
    valuation,
)


def slow_valuation(n: int, trits: int) -> int:
    if n == 0:
        return trits
    k = 0
    while n % 3 ** (k + 1) == 0:
        k += 1
    return k


@pytest.mark.parametrize("trits", range(2, 7))
def test_indices_and_trits_are_in_bijection(trits):
    n_N = torch.arange(3**trits)
    t_NM = trits_of(n_N, trits)
    # Least significant first: itertools counts with the last digit running fastest.
    expected = [list(reversed(digits)) for digits in itertools.product((-1, 0, 1), repeat=trits)]
    assert t_NM.tolist() == expected
    assert ((t_NM + 1) * 3 ** torch.arange(trits)).sum(1).tolist() == n_N.tolist()


@pytest.mark.parametrize("trits", range(2, 7))
def test_the_valuation_is_that_of_a_loop_and_the_number_of_leading_minus_ones(trits):
    n_N = torch.arange(3**trits)
    v_N = valuation(n_N, trits)
    assert v_N.tolist() == [slow_valuation(n, trits) for n in range(3**trits)]
    leading = [next((k for k, t in enumerate(row) if t != -1), trits) for row in trits_of(n_N, trits).tolist()]
    assert v_N.tolist() == leading
    assert torch.equal(valuation(-n_N, trits), v_N)
    assert torch.equal(valuation(n_N.reshape(3, -1), trits), v_N.reshape(3, -1))


@pytest.mark.parametrize("trits", range(2, 10))
def test_levels_have_two_thirds_of_what_is_left(trits):
    counts = torch.bincount(valuation(torch.arange(3**trits), trits)).tolist()
    assert counts == [2 * 3 ** (trits - 1 - k) for k in range(trits)] + [1]
    assert sum(counts) == 3**trits
    if trits == 9:
        assert counts == [13122, 4374, 1458, 486, 162, 54, 18, 6, 2, 1]


@pytest.mark.parametrize("trits", [3, 4])
def test_every_triangle_is_isosceles(trits):
    n_N = torch.arange(3**trits)
    v_N = valuation(n_N, trits)
    between_NN = valuation(n_N[:, None] - n_N, trits)
    differ = v_N[:, None] != v_N
    assert torch.equal(between_NN[differ], torch.minimum(v_N[:, None], v_N)[differ])
    assert bool((between_NN >= torch.minimum(v_N[:, None], v_N)).all())


@pytest.mark.parametrize("trits", range(2, 7))
def test_the_place_in_a_level_orders_it_by_its_digits(trits):
    n_N = torch.arange(3**trits)
    place_N, v_N = place_in_level(n_N, trits), valuation(n_N, trits)
    assert place_N.dtype == torch.float64
    assert float(place_N.min()) >= 0
    assert float(place_N.max()) <= 1
    for k in range(trits):
        members = n_N[v_N == k]
        # n = 3^v u, u = u_0 + 3 u_1 + ...: digits of u, the first the most telling.
        digits = [[int(u) // 3**i % 3 for i in range(trits - k)] for u in members // 3**k]
        stated = [((d[0] - 1) + sum(x / 3 ** (i + 1) for i, x in enumerate(d[1:]))) / 2 for d in digits]
        assert place_N[members].tolist() == pytest.approx(stated, abs=1e-12)
        by_digits = [int(members[i]) for i in sorted(range(len(members)), key=digits.__getitem__)]
        assert bool((place_N[by_digits].diff() > 0).all()) or len(members) == 1
    assert float(place_N[0]) == 0.5


def test_operations_hold_together_under_indexing():
    operations = Operations.all(3)
    assert len(operations) == 27
    assert operations.x_NM.dtype == torch.float32
    part = operations[torch.tensor([26, 0, 9])]
    assert part.x_NM.tolist() == [[1, 1, 1], [-1, -1, -1], [-1, -1, 0]]
    assert part.target_NM.tolist() == [[2, 2, 2], [0, 0, 0], [0, 0, 1]]
    assert part.v_N.tolist() == [0, 3, 2]
    assert torch.equal(part.to("cpu").place_N, part.place_N)


def test_training_indices_are_a_share_that_the_seed_alone_determines():
    assert torch.equal(training_indices(4, 1.0, 0), torch.arange(81))
    for fraction, size in ((0.1, 8), (0.5, 40), (0.99, 80)):
        chosen = training_indices(4, fraction, 5)
        assert len(chosen) == size
        assert bool((chosen.diff() > 0).all())
        assert torch.equal(chosen, training_indices(4, fraction, 5))
        assert not torch.equal(chosen, training_indices(4, fraction, 6))


@pytest.mark.parametrize("trits", [3, 6])
@pytest.mark.parametrize("deep_share", [0.0, 0.2, 0.5])
def test_an_epoch_shows_every_operation_and_the_shallow_ones_once(trits, deep_share):
    v_N = Operations.all(trits).v_N
    batches = Batches(v_N, trits, 20, deep_share, seed=1)
    shown = list(batches.epoch(2))
    assert len(shown) == batches.steps_per_epoch
    deep = v_N >= max(1, trits - 5)
    counts = torch.bincount(torch.cat(shown), minlength=len(v_N))
    if deep_share == 0:
        assert counts.unique().tolist() == [1]
        return
    assert counts[~deep].unique().tolist() == [1]
    wanted = min(round(deep_share * 20), int(deep.sum()))
    for batch in shown:
        assert int(deep[batch].sum()) == wanted
        assert len(batch.unique()) == len(batch) <= 20
    assert all(len(batch) == 20 for batch in shown[:-1])


def test_a_batch_is_a_function_of_seed_and_step():
    v_N = Operations.all(4).v_N
    straight = Batches(v_N, 4, 16, 0.2, seed=1)
    epochs = [[b.tolist() for b in straight.epoch(k)] for k in range(3)]
    # Another object, asked for the last epoch alone, with the global stream elsewhere.
    torch.rand(7)
    assert [b.tolist() for b in Batches(v_N, 4, 16, 0.2, seed=1).epoch(2)] == epochs[2]
    assert epochs[0] != epochs[1]
    assert [b.tolist() for b in Batches(v_N, 4, 16, 0.2, seed=2).epoch(0)] != epochs[0]
    deep = [[n for n in b if v_N[n] >= 1] for b in epochs[0]]
    assert len({tuple(sorted(b)) for b in deep}) > 1, "the deep operations of each step are drawn anew"


def test_deep_levels_are_in_every_stratified_batch_and_in_a_fifth_of_random_ones():
    v_N = Operations.all(9).v_N
    batches = Batches(v_N, 9, 1024, 0.2, seed=0)
    assert all(bool((v_N[b] >= 7).any()) for epoch in range(3) for b in batches.epoch(epoch))
    uniform = Batches(v_N, 9, 512, 0.0, seed=0)
    holds_deep = [bool((v_N[b] >= 7).any()) for epoch in range(12) for b in uniform.epoch(epoch) if len(b) == 512]
    # 1 - (1 - 9/19683)^512 = 0.209; 456 batches give it to within 0.02 (one standard deviation).
    assert sum(holds_deep) / len(holds_deep) == pytest.approx(1 - (1 - 9 / 19683) ** 512, abs=0.06)


@pytest.mark.parametrize(("batch_size", "deep_share"), [(2, 0.2), (2, 0.9), (3, 0.99), (1000, 0.2), (1000, 0.99)])
def test_batches_of_any_size_show_deep_and_shallow_operations(batch_size, deep_share):
    v_N = Operations.all(3).v_N
    batches = Batches(v_N, 3, batch_size, deep_share, seed=0)
    shown = [batch for epoch in range(40) for batch in batches.epoch(epoch)]
    assert len(shown) == 40 * batches.steps_per_epoch
    assert set(torch.cat(shown).tolist()) == set(range(27))
    assert max(map(len, shown)) <= batch_size
