"""Codes from counts equal codes from positions; nested fits; random projections; nearest rows; quantised codes."""

import pytest
import torch

from latentwire_adapter.model import codecs
from latentwire_adapter.model.compressor import EmbeddingCompressor, weighted_covariance
from studycore.errors import UserError


@pytest.fixture
def table():
    draw = torch.Generator().manual_seed(0)
    rows_VD = (
        torch.randn(60, 12, generator=draw, dtype=torch.float64)
        @ torch.randn(12, 12, generator=draw, dtype=torch.float64)
        + 3.0
    )
    counts_V = torch.randint(0, 9, (60,), generator=draw)
    return rows_VD, counts_V


def test_counts_give_the_covariance_of_the_positions(table):
    rows_VD, counts_V = table
    positions_ND = rows_VD.repeat_interleave(counts_V, 0)
    mean_D, covariance_DD = weighted_covariance(rows_VD, counts_V.double())
    expected = torch.cov(positions_ND.T)
    assert torch.linalg.norm(covariance_DD - expected) / torch.linalg.norm(expected) < 1e-12
    torch.testing.assert_close(mean_D, positions_ND.mean(0), rtol=1e-12, atol=1e-12)


def test_counts_give_the_subspace_of_the_positions(table):
    rows_VD, counts_V = table
    positions_ND = rows_VD.repeat_interleave(counts_V, 0)
    fitted = EmbeddingCompressor(12, 4).double().fit_counts(rows_VD, counts_V)
    _, _, right = torch.linalg.svd(positions_ND - positions_ND.mean(0), full_matrices=False)
    gap = fitted.projection @ fitted.projection.T - right[:4].T @ right[:4]
    assert torch.linalg.norm(gap) < 1e-6
    values = torch.linalg.svdvals(positions_ND - positions_ND.mean(0)) ** 2 / (len(positions_ND) - 1)
    torch.testing.assert_close(fitted.variances, values, rtol=1e-9, atol=1e-12)
    assert fitted.explained_variance == pytest.approx(float(values[:4].sum() / values.sum()))


def test_every_dimension_comes_from_one_fit(table):
    rows_VD, counts_V = table
    whole, four = (EmbeddingCompressor(12, k).double().fit_counts(rows_VD, counts_V) for k in (12, 4))
    cut = whole.truncated(4)
    torch.testing.assert_close(cut.compress(rows_VD), four.compress(rows_VD))
    assert cut.explained_variance == pytest.approx(four.explained_variance)
    torch.testing.assert_close(whole.decompress(whole.compress(rows_VD)), rows_VD)
    with pytest.raises(UserError, match="of a pca fit of 4"):
        four.truncated(5)


def test_the_inverse_of_a_random_projection_is_that_of_least_squares(table):
    rows_VD, counts_V = table
    random = EmbeddingCompressor(12, 5, "random", seed=3).double().fit_counts(rows_VD, counts_V)
    z_NK = random.compress(rows_VD).repeat_interleave(counts_V, 0)
    x_ND = (rows_VD - random.mean).repeat_interleave(counts_V, 0)
    torch.testing.assert_close(random.inverse, torch.linalg.lstsq(z_NK, x_ND).solution, rtol=1e-5, atol=1e-6)
    assert torch.equal(
        random.projection,
        EmbeddingCompressor(12, 5, "random", seed=3).double().fit_counts(rows_VD, counts_V).projection,
    )
    pca = EmbeddingCompressor(12, 5).double().fit_counts(rows_VD, counts_V)

    def error(c):
        return ((c.decompress(c.compress(rows_VD)) - rows_VD).square().sum(1) * counts_V).sum()

    assert error(pca) < error(random)


def test_mistakes():
    with pytest.raises(UserError, match="compress_dim: 9"):
        EmbeddingCompressor(8, 9)
    with pytest.raises(UserError, match="compress_method: 'svd'"):
        EmbeddingCompressor(8, 2, "svd")
    with pytest.raises(UserError, match="not fitted"):
        EmbeddingCompressor(8, 2).compress(torch.zeros(1, 8))
    with pytest.raises(UserError, match="1 token types"):
        EmbeddingCompressor(8, 2).fit(torch.zeros(1, 8))


def test_saved_and_loaded(table, tmp_path):
    rows_VD, counts_V = table
    made = EmbeddingCompressor(12, 4).fit_counts(rows_VD.float(), counts_V)
    made.save_pretrained(tmp_path)
    loaded = EmbeddingCompressor.from_pretrained(tmp_path)
    assert torch.equal(loaded.compress(rows_VD.float()), made.compress(rows_VD.float()))
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    from latentwire_adapter.model.adapter import Adapter

    with pytest.raises(UserError, match="holds a EmbeddingCompressor and no Adapter"):
        Adapter.from_pretrained(tmp_path)


def test_the_nearest_row_is_found_as_by_all_distances(table):
    rows_VD, counts_V = table
    compressor = EmbeddingCompressor(12, 3).fit_counts(rows_VD.float(), counts_V)
    codes_VK = compressor.compress(rows_VD.float())
    noisy = codes_VK[:20] + 0.3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.cdist(noisy, codes_VK).argmin(1)
    assert torch.equal(codecs.nearest_types(codes_VK, noisy, block=7), expected)
    ids = torch.arange(60)
    torch.testing.assert_close(codecs.nearest(rows_VD.float(), compressor)(ids), rows_VD.float())


def test_of_equal_codes_the_first_is_the_nearest():
    rows_VD = torch.tensor([[0.0, 1.0], [2.0, 0.0], [2.0, 0.0], [1.0, 3.0], [2.0, 0.0]])
    compressor = EmbeddingCompressor(2, 2).fit(rows_VD)
    codes_VK = compressor.compress(rows_VD)
    for block in (1, 2, 5):
        assert codecs.nearest_types(codes_VK, codes_VK, block).tolist() == [0, 1, 1, 3, 1]


def test_a_fit_has_one_sign_and_a_projection_its_seed(table):
    rows_VD, counts_V = table
    pca = EmbeddingCompressor(12, 6).double().fit_counts(rows_VD, counts_V)
    largest = pca.projection.abs().argmax(0)
    assert (pca.projection[largest, torch.arange(6)] > 0).all()
    one, other = (EmbeddingCompressor(12, 6, "random", seed).double().fit_counts(rows_VD, counts_V) for seed in (1, 2))
    assert not torch.allclose(one.projection, other.projection)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_codes_are_within_half_a_step(bits):
    z_UK = torch.randn(50, 9, generator=torch.Generator().manual_seed(2)) * torch.logspace(-3, 2, 50)[:, None]
    codes_UK, scale_U = codecs.quantise(z_UK, bits)
    assert codes_UK.abs().max() <= 2 ** (bits - 1) - 1
    error = (codecs.dequantise(codes_UK, scale_U) - z_UK).abs() / scale_U[:, None]
    assert error.max() < 0.56  # half a step, and the scale's own rounding to 16 bits
    assert torch.equal(scale_U, scale_U.half().float())


def test_a_table_is_made_once_and_looked_up():
    calls = []

    def rows(ids_U):
        calls.append(len(ids_U))
        return ids_U[:, None].float()

    table = codecs.Table(torch.tensor([7, 3, 3, 9]), rows)
    assert table(torch.tensor([[9, 3], [7, 9]])).squeeze(-1).tolist() == [[9, 3], [7, 9]]
    assert calls == [3]
