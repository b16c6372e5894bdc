"""Spectra and progress measures: planted structure is found, noise is not. Shapes as in metrics/fourier.py."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from least_action.config import TrainerConfig
from least_action.data import Pairs, all_pairs, answer
from least_action.metrics import fourier
from least_action.metrics.fourier import (
    character_power,
    embedding_fourier_norms,
    find_key_frequencies,
    gini,
    grid_logits,
    group_coordinates,
    low_frequency_share,
    progress_measures,
    slot_power,
    spectral_smoothness,
    spectral_smoothness_original,
    weight_ginis,
)
from least_action.model import PairModel, create_model
from studycore.streams import generator

torch.set_num_threads(1)
OPERATIONS = ["add", "subtract", "multiply", "divide"]


def noise(*shape: int, name: str = "noise") -> Tensor:
    return torch.randn(shape, generator=generator(0, name), dtype=torch.float64)


def planted_logits(pairs: Pairs, p: int, operation: str, frequencies: list[int], sign: int = 1) -> Tensor:
    """[N, P], sum of cos 2 pi f (i + sign j - k) / n; 0 outside the group. Indices are made here, one by one."""
    n = p if operation in ("add", "subtract") else p - 1
    if operation in ("multiply", "divide"):
        root = next(g for g in range(2, p) if len({pow(g, e, p) for e in range(p - 1)}) == p - 1)
        coordinate = {pow(root, e, p): e for e in range(p - 1)}
    else:
        coordinate = {residue: residue for residue in range(p)}
    logits_NP = torch.zeros(len(pairs), p, dtype=torch.float64)
    for row, (a, b) in enumerate(zip(pairs.a_N.tolist(), pairs.b_N.tolist(), strict=True)):
        if a not in coordinate or b not in coordinate:
            continue
        j = coordinate[b] * (-1 if operation in ("subtract", "divide") else 1)
        for c, k in coordinate.items():
            phase = coordinate[a] + sign * j - k
            logits_NP[row, c] = sum(math.cos(2 * math.pi * f * phase / n) for f in frequencies)
    return logits_NP


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("p", [3, 5, 13, 17])
def test_every_operation_is_addition_in_its_group(p, operation):
    group, pairs = group_coordinates(p, operation), all_pairs(p, operation)
    i_N, j_N, k_N = group.i_P[pairs.a_N], group.j_P[pairs.b_N], group.k_P[pairs.y_N]
    inside_N = (i_N >= 0) & (j_N >= 0)
    assert inside_N.sum() == group.n**2 == (p if operation in ("add", "subtract") else p - 1) ** 2
    assert torch.equal(k_N[inside_N], ((i_N + j_N) % group.n)[inside_N])
    assert (k_N[~inside_N] == -1).all()
    for index_P, element in ((group.i_P, group.a_I), (group.j_P, group.b_J), (group.k_P, group.class_K)):
        assert torch.equal(index_P[element], torch.arange(group.n))


def test_groups_that_do_not_exist():
    with pytest.raises(ValueError, match="9 is not prime"):
        group_coordinates(9, "multiply")
    with pytest.raises(ValueError, match="power"):
        group_coordinates(7, "power")
    assert group_coordinates(9, "subtract").n == 9


@pytest.mark.parametrize("operation", OPERATIONS)
def test_grid_logits_follows_the_coordinates(operation):
    p, pairs = 7, all_pairs(7, operation)
    order = torch.randperm(len(pairs), generator=generator(0, "order"))
    # A logit that spells out its own pair and class.
    logits_NP = (100 * pairs.a_N + 10 * pairs.b_N)[:, None].double() + torch.arange(p)
    grid_IJK, group = grid_logits(logits_NP[order], pairs[order], p, operation), group_coordinates(p, operation)
    for i, j, k in [(0, 0, 0), (1, 2, 4), (group.n - 1, 3, 2)]:
        expected = 100 * group.a_I[i] + 10 * group.b_J[j] + group.class_K[k]
        assert grid_IJK[i, j, k] == expected


@pytest.mark.parametrize("index", [list(range(24)), [0, *range(24)], [*range(25), 3]])
def test_grid_logits_needs_every_pair_once(index):
    pairs = all_pairs(5, "add")[torch.tensor(index)]
    with pytest.raises(ValueError, match="needed once"):
        grid_logits(torch.zeros(len(index), 5), pairs, 5, "add")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("f", [1, 4, 6])
def test_planted_character_holds_all_power(operation, f):
    p, pairs = 13, all_pairs(13, operation)  # n = 13, or 12 with f = 6 the Nyquist frequency
    logits_NP = planted_logits(pairs, p, operation, [f])
    power = character_power(grid_logits(logits_NP, pairs, p, operation))
    expected_F = torch.zeros(6, dtype=torch.float64)
    expected_F[f - 1] = 1
    torch.testing.assert_close(power.share_F, expected_F)
    assert power.aligned == pytest.approx(1)
    # Neither other names for the classes nor terms that the softmax or the constant absorb change anything.
    renamed_NP = logits_NP[:, torch.randperm(p, generator=generator(0, "names"))]
    if operation in ("add", "subtract"):  # otherwise the class outside the group would move
        again = character_power(grid_logits(renamed_NP, pairs, p, operation))
        torch.testing.assert_close(again.share_F, expected_F)
    shifted_NP = logits_NP + noise(len(pairs), 1) + noise(p, name="bias")
    torch.testing.assert_close(character_power(grid_logits(shifted_NP, pairs, p, operation)).share_F, expected_F)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_opposite_direction_is_not_aligned(operation):
    p, pairs = 13, all_pairs(13, operation)
    power = character_power(grid_logits(planted_logits(pairs, p, operation, [2, 5], sign=-1), pairs, p, operation))
    assert power.aligned < 1e-20


@pytest.mark.parametrize("n", [12, 13])
def test_character_power_reads_the_diagonal_slots(n):
    grid_IJK = noise(n, n, n)
    centred_IJK = grid_IJK - grid_IJK.mean(dim=2, keepdim=True)
    power_XY = torch.fft.fft2(centred_IJK, dim=(0, 1)).abs().square().sum(dim=2)
    power_XY[0, 0] = 0
    slots_F = [{(f, f), (n - f, n - f)} for f in range(1, n // 2 + 1)]
    expected_F = [sum(power_XY[slot].item() for slot in slots) / power_XY.sum().item() for slots in slots_F]
    power = character_power(grid_IJK)
    assert power.share_F.tolist() == pytest.approx(expected_F, rel=1e-9)
    assert power.aligned == pytest.approx(1 / (n + 1), rel=0.2)  # noise


@pytest.mark.parametrize("n", [12, 13])
def test_slot_power_is_the_whole_transforms(n):
    grid_IJK = noise(n, n, n) + 100 * noise(n, name="bias")
    centred_IJK = grid_IJK - grid_IJK.mean(dim=2, keepdim=True)
    power_XY = torch.fft.fft2(centred_IJK, dim=(0, 1)).abs().square().sum(dim=2) / n**2
    power_XY[0, 0] = 0
    torch.testing.assert_close(slot_power(grid_IJK), power_XY)
    assert slot_power(grid_IJK).sum().item() == pytest.approx(fourier.centre(grid_IJK).square().sum().item())


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("radius", [None, 2, 6])
def test_spectral_smoothness_is_the_low_share_without_the_constant(n, radius):
    grid_IJK = noise(n, n, n)
    centred_IJK = grid_IJK - grid_IJK.mean(dim=2, keepdim=True)
    power_XY = torch.fft.fft2(centred_IJK, dim=(0, 1)).abs().square().sum(dim=2)
    power_XY[0, 0] = 0
    f_X = torch.fft.fftfreq(n)
    low_XY = (f_X[:, None] ** 2 + f_X**2).sqrt() <= (n // 4 if radius is None else radius) / n + 1e-6
    expected = (power_XY[low_XY].sum() / power_XY.sum()).item()
    assert spectral_smoothness(grid_IJK, radius) == pytest.approx(expected, rel=1e-9)
    shifted_IJK = grid_IJK + 10 * noise(n, n, 1, name="shift") + 10 * noise(n, name="bias")
    assert spectral_smoothness(shifted_IJK, radius) == pytest.approx(expected, rel=1e-9)


def test_spectral_smoothness_separates_smooth_rough_and_noise():
    p, pairs = 17, all_pairs(17, "add")
    smooth, rough = (grid_logits(planted_logits(pairs, p, "add", [f]), pairs, p, "add") for f in (2, 8))
    assert spectral_smoothness(smooth) == pytest.approx(1)
    assert spectral_smoothness(rough) == pytest.approx(0, abs=1e-12)
    # 48 of the 288 slots other than (0, 0) lie within radius 4.
    assert spectral_smoothness(noise(p, p, p)) == pytest.approx(48 / 288, rel=0.1)


def test_low_frequency_share_has_a_gradient():
    grid_IJK = noise(5, 5, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda grid: low_frequency_share(grid, 1), (grid_IJK,))


def test_seed_smoothness_cannot_tell_structure_from_noise():
    """The reference's measured values at p = 113: noise and a perfect product table score the same."""
    p, a = 113, torch.arange(113)
    addition, product = (answer(a[:, None], a, p, operation) for operation in ("add", "multiply"))
    random = torch.randint(0, p, (p, p), generator=generator(0, "classes"))
    assert spectral_smoothness_original(addition, 28) == pytest.approx(0.993, abs=5e-4)
    assert spectral_smoothness_original(product, 28) == pytest.approx(0.794, abs=5e-4)
    assert spectral_smoothness_original(random, 28) == pytest.approx(0.794, abs=6e-3)
    assert spectral_smoothness_original(addition, 0) == pytest.approx(0.747, abs=5e-4)
    # The radius counts signed frequencies: [0, 1] x constant has its power at f = 0 and Nyquist.
    assert spectral_smoothness_original(torch.tensor([[0, 1], [0, 1]]), 0) == pytest.approx(0.5)
    product_logits_NP = F.one_hot(product.reshape(-1), p).float()
    grid_IJK = grid_logits(product_logits_NP, all_pairs(p, "multiply"), p, "multiply")
    assert character_power(grid_IJK).aligned == pytest.approx(1, abs=1e-5)
    assert (
        character_power(grid_logits(F.one_hot(random.reshape(-1), p).float(), all_pairs(p, "add"), p, "add")).aligned
        < 0.01
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_planted_key_frequencies_are_found_in_noise(operation):
    p, pairs = 17, all_pairs(17, operation)
    logits_NP = planted_logits(pairs, p, operation, [2, 5, 8]) + 0.5 * noise(len(pairs), p)
    assert find_key_frequencies(grid_logits(logits_NP, pairs, p, operation)) == (2, 5, 8)
    # Not 8 for multiply: at n / 2 both directions are one function.
    opposite_NP = planted_logits(pairs, p, operation, [2, 5, 7], sign=-1) + 0.5 * noise(len(pairs), p)
    assert find_key_frequencies(grid_logits(opposite_NP, pairs, p, operation)) == ()


def test_all_frequencies_at_once_are_found():
    pairs = all_pairs(13, "add")
    one_hot_NP = F.one_hot(pairs.y_N, 13).double()  # a delta in i + j - k is the sum of all characters
    assert find_key_frequencies(grid_logits(one_hot_NP, pairs, 13, "add")) == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("n", [6, 12, 17])
def test_no_key_frequencies_in_noise(n):
    """The null hypothesis, with independent classes and with all classes in step, the heaviest tail."""
    stream, found = generator(0, "null", n), 0
    for _ in range(250):
        independent = torch.randn(n, n, n, generator=stream)
        in_step = torch.randn(n, n, 1, generator=stream) * torch.randn(n, generator=stream)
        found += bool(find_key_frequencies(independent)) + bool(find_key_frequencies(in_step))
    assert found <= 1  # of 500, at most 1 in 1000 each
    assert find_key_frequencies(torch.zeros(n, n, n)) == ()


def test_false_alarms_come_at_the_stated_rate(monkeypatch):
    """With all classes in step, before the threshold is doubled: at a chance of 0.2, 1 in 5 tables."""
    monkeypatch.setattr(fourier, "FALSE_ALARM", 0.2)
    stream, n = generator(0, "rate"), 9
    found = 0
    for _ in range(1000):
        values_XY = torch.randn(n, n, generator=stream)
        spectrum_XY = torch.fft.fft2(values_XY)
        spectrum_XY.diagonal()[1:] *= 2**0.5  # twice the power undoes the doubling
        table_IJ = torch.fft.ifft2(spectrum_XY).real
        found += bool(find_key_frequencies(table_IJ[..., None] * torch.randn(n, generator=stream)))
    # Four frequencies of equal chance: 1 - (1 - 0.05)^4 = 0.185, standard deviation 0.012.
    assert found / 1000 == pytest.approx(0.185, abs=0.045)


@pytest.mark.parametrize("n", [12, 17])
@pytest.mark.parametrize("width", [4, 64])
def test_no_key_frequencies_in_random_interactions_of_one_table(n, width):
    """Random bilinear functions of one table for a and b have twice the background's power in the slots (f, f)."""
    stream, found, ratio = generator(0, "shared", n, width), 0, 0.0
    for _ in range(100):
        table_ID, weight_KD = torch.randn(n, width, generator=stream), torch.randn(n, width, generator=stream)
        grid_IJK = torch.einsum("id,jd,kd->ijk", table_ID, table_ID, weight_KD)
        found += bool(find_key_frequencies(grid_IJK))
        power_XY = slot_power(grid_IJK)
        ratio += (power_XY[2, 2] / power_XY[2, [1, 3, 4, 5]].mean()).item() / 100
    assert found <= 1
    assert width == 4 or ratio == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_smallest_groups_have_no_background(operation):
    pairs = all_pairs(3, operation)
    assert find_key_frequencies(grid_logits(planted_logits(pairs, 3, operation, [1]), pairs, 3, operation)) == ()


def test_a_key_frequency_may_be_weak_in_all_but_its_own_row():
    """The share of a frequency in all power doesn't matter, its background does."""
    pairs = all_pairs(17, "add")
    one_operand_IJK = 30 * noise(17, 1, 17) + 30 * noise(1, 17, 17, name="b")
    planted_IJK = grid_logits(planted_logits(pairs, 17, "add", [3]), pairs, 17, "add")
    grid_IJK = one_operand_IJK + planted_IJK + 0.3 * noise(17, 17, 17, name="rest")
    assert find_key_frequencies(grid_IJK) == (3,)
    assert character_power(grid_IJK).share_F[2] < 0.001


def test_untrained_networks_have_no_key_frequencies():
    pairs = all_pairs(13, "multiply")
    for model_type in ("baseline", "routed", "transformer"):
        for seed in range(5):
            config = TrainerConfig(
                p=13, operation="multiply", model_type=model_type, hidden_dim=8, n_layers=1, n_heads=2, seed=seed
            )
            with torch.no_grad():
                logits_NP = create_model(config).forward_pairs(pairs.a_N, pairs.b_N).logits_NP
            assert find_key_frequencies(grid_logits(logits_NP, pairs, 13, "multiply")) == ()


def dense_progress(grid_IJK: Tensor, train_IJ: Tensor, keys: tuple[int, ...]) -> tuple[float, float]:
    """(restricted, excluded) by projection on unit vectors made of products of the one-dimensional basis."""
    n = len(grid_IJK)
    i = torch.arange(n, dtype=torch.float64)
    flat_NK = grid_IJK.reshape(n * n, n)
    part_NK = torch.zeros_like(flat_NK)
    for f in keys:
        cos, sin = (2 * math.pi * f * i / n).cos(), (2 * math.pi * f * i / n).sin()
        for direction_IJ in (
            torch.outer(cos, cos) - torch.outer(sin, sin),
            torch.outer(sin, cos) + torch.outer(cos, sin),
        ):
            if direction_IJ.norm() > 1e-9:  # the sine of the Nyquist frequency is zero
                unit_N = direction_IJ.reshape(-1) / direction_IJ.norm()
                part_NK += torch.outer(unit_N, unit_N @ flat_NK)
    y_N = ((i[:, None] + i) % n).long().reshape(-1)
    train_N = train_IJ.reshape(-1)
    restricted = F.cross_entropy(flat_NK.mean(dim=0) + part_NK, y_N)
    return restricted.item(), F.cross_entropy((flat_NK - part_NK)[train_N], y_N[train_N]).item()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("keys", [(), (1,), (2, 6)])
def test_progress_measures_project_on_the_right_directions(operation, keys):
    p, pairs = 13, all_pairs(13, operation)
    logits_NP = noise(len(pairs), p) + 3 * noise(p, name="bias")
    train_N = torch.rand(len(pairs), generator=generator(0, "mask")) < 0.4
    measured = progress_measures(logits_NP, pairs, train_N, p, operation, F.cross_entropy, keys)
    grid_IJK = grid_logits(logits_NP, pairs, p, operation)
    train_IJ = grid_logits(train_N[:, None].double().expand(-1, p), pairs, p, operation)[:, :, 0] == 1
    expected = dense_progress(grid_IJK, train_IJ, keys)
    assert (measured.restricted_loss, measured.excluded_loss) == pytest.approx(expected, rel=1e-10)
    assert measured.key_frequencies == keys
    share_F = character_power(grid_IJK).share_F
    assert measured.key_share == pytest.approx(sum(share_F[f - 1].item() for f in keys))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_progress_of_a_generalising_and_of_a_memorising_network(operation):
    p, pairs = 17, all_pairs(17, operation)
    n = group_coordinates(p, operation).n
    train_N = torch.rand(len(pairs), generator=generator(0, "mask")) < 0.3
    general_NP = 10 * planted_logits(pairs, p, operation, [1, 3, 6])
    measured = progress_measures(general_NP, pairs, train_N, p, operation, F.cross_entropy)
    assert measured.key_frequencies == (1, 3, 6)
    assert measured.key_share == pytest.approx(1)
    assert measured.restricted_loss < 0.01
    assert measured.excluded_loss == pytest.approx(math.log(n))  # nothing is left
    assert measured.restricted_acc == 1
    # Rounding errors alone choose the class.
    assert measured.excluded_acc < 0.5
    memorised_NP = 10 * F.one_hot(pairs.y_N, p) * train_N[:, None] + noise(len(pairs), p)
    measured = progress_measures(memorised_NP, pairs, train_N, p, operation, F.cross_entropy, [1, 3, 6])
    assert measured.restricted_loss > 0.5 * math.log(n)
    assert measured.excluded_loss < 0.2
    assert measured.excluded_acc < 0.3  # of held-out pairs, which it never knew
    measured = progress_measures(noise(len(pairs), p), pairs, train_N, p, operation, F.cross_entropy)
    assert measured.key_frequencies == ()
    assert measured.restricted_loss == pytest.approx(math.log(n), rel=0.01)


def test_progress_measures_refuses_what_it_cannot_measure():
    pairs = all_pairs(7, "add")
    logits_NP, everything = torch.zeros(49, 7), torch.ones(49, dtype=torch.bool)
    for keys in ((0,), (4,)):
        with pytest.raises(ValueError, match=r"1\.\.3"):
            progress_measures(logits_NP, pairs, everything, 7, "add", F.cross_entropy, keys)
    with pytest.raises(ValueError, match="train_mask"):
        progress_measures(logits_NP, pairs, ~everything, 7, "add", F.cross_entropy)


def test_gini_closed_forms():
    assert gini(torch.full((7,), 3.0)) == pytest.approx(0)
    assert gini(torch.tensor([0.0, 5.0, 0.0, 0.0])) == pytest.approx(3 / 4)
    x = noise(40).abs()
    differences = (x[:, None] - x).abs().sum() / (2 * len(x) ** 2 * x.mean())  # the coefficient's definition
    assert gini(x) == pytest.approx(differences.item())
    assert math.isnan(gini(torch.zeros(3)))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("f", [2, 6])
def test_fourier_norms_of_a_planted_table(operation, f):
    p, group = 13, group_coordinates(13, operation)
    n = group.n
    table_PD = torch.full((p, 2), 7.0, dtype=torch.float64)  # the constant, and the residue outside the group
    phase_I = 2 * math.pi * f * torch.arange(n) / n
    table_PD[group.a_I] += torch.stack([phase_I.cos(), 2 * phase_I.cos()], dim=1)
    norms = embedding_fourier_norms(table_PD, p, operation)
    assert norms.shape == (n - 1,)
    expected = torch.zeros(n - 1, dtype=torch.float64)
    expected[2 * (f - 1)] = math.sqrt(5) * phase_I.double().cos().norm()
    torch.testing.assert_close(norms, expected, atol=1e-5, rtol=1e-6)
    # b's coordinates run the other way for subtract and divide: the same norms.
    reversed_PD = table_PD.clone()
    reversed_PD[group.b_J] = table_PD[group.a_I]
    torch.testing.assert_close(embedding_fourier_norms(reversed_PD, p, operation), norms)


@pytest.mark.parametrize("operation", ["add", "divide"])
def test_fourier_norms_keep_the_power(operation):
    p, table_PD = 13, noise(13, 3)
    norms = embedding_fourier_norms(table_PD, p, operation)
    inside_ID = table_PD[group_coordinates(p, operation).a_I]
    assert norms.square().sum().item() == pytest.approx((inside_ID - inside_ID.mean(dim=0)).square().sum().item())


def small_model(**settings: object) -> PairModel:
    config = TrainerConfig(p=13, hidden_dim=8, n_layers=1, n_heads=2, dtype="float64", seed=0, **settings)
    return create_model(config)


@pytest.mark.parametrize("model_type", ["transformer", "baseline", "routed"])
def test_weight_ginis_tell_sparse_from_dense_tables(model_type):
    model = small_model(model_type=model_type)
    dense_embedding, dense_neurons, dense_unembedding = weight_ginis(model, "add")
    assert dense_embedding < 0.3
    assert max(dense_neurons, dense_unembedding) < 0.3
    wave_P = (2 * math.pi * 3 * torch.arange(13) / 13).cos()
    with torch.no_grad():
        if model_type == "transformer":
            model.token.weight[:13] = wave_P[:, None]
        else:
            model.input.weight[:] = torch.cat([wave_P, wave_P])
    sparse_embedding, same_neurons, same_unembedding = weight_ginis(model, "add")
    assert sparse_embedding == pytest.approx(11 / 12, abs=1e-4)
    assert (same_neurons, same_unembedding) == (dense_neurons, dense_unembedding)
    with torch.no_grad():
        model.head.weight[:] = wave_P[:, None]
    ginis = weight_ginis(model, "add")
    assert (ginis.unembedding, ginis.neuron_to_logit) == pytest.approx((11 / 12, 11 / 12), abs=1e-4)


def test_the_papers_gini_is_of_the_map_from_neurons_to_logits():
    """W_L = W_U W_out: a W_U with two frequencies of which W_out passes on one."""
    model = small_model(model_type="transformer")
    angle_P = 2 * math.pi * torch.arange(13) / 13
    with torch.no_grad():
        model.head.weight[:, :4] = (3 * angle_P).cos()[:, None]
        model.head.weight[:, 4:] = (5 * angle_P).cos()[:, None]
        model.blocks[0].ff.down.weight[4:] = 0
    ginis = weight_ginis(model, "add")
    assert ginis.neuron_to_logit == pytest.approx(11 / 12, abs=1e-4)
    assert ginis.unembedding == pytest.approx(10 / 12, abs=1e-4)


def test_weight_ginis_see_both_operands_of_an_mlp():
    model = small_model(model_type="baseline")
    wave_P = (2 * math.pi * 3 * torch.arange(13) / 13).cos()
    with torch.no_grad():
        model.input.weight[:, :13] = wave_P
        model.input.weight[:, 13:] = 0
        a_only = weight_ginis(model, "add")[0]
        model.input.weight[:, 13:] = noise(8, 13)
    assert a_only == pytest.approx(11 / 12, abs=1e-4) and weight_ginis(model, "add")[0] < 0.6


def test_weight_ginis_of_tied_and_unknown_models():
    embedding, _, unembedding = weight_ginis(small_model(model_type="transformer", tie_embeddings=True), "add")
    assert embedding == unembedding

    class Other(PairModel):
        p = 13

    with pytest.raises(TypeError, match="Other"):
        weight_ginis(Other(), "add")
