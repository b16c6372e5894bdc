"""The data set by exhaustive enumeration."""

from dataclasses import replace

import pytest
import torch

from least_action.cli import main
from least_action.config import TrainerConfig
from least_action.data import ModularArithmeticDataset, SequenceArithmeticDataset, all_pairs, memory_of


@pytest.mark.parametrize("p", [3, 7, 13])
@pytest.mark.parametrize("operation", ["add", "subtract", "multiply", "divide"])
def test_answers_solve_the_operation(p, operation):
    pairs = all_pairs(p, operation)
    for a, b, y in zip(pairs.a_N.tolist(), pairs.b_N.tolist(), pairs.y_N.tolist(), strict=True):
        if operation == "divide":
            assert b != 0
            assert y * b % p == a
        else:
            assert y == {"add": a + b, "subtract": a - b, "multiply": a * b}[operation] % p
    assert len(set(zip(pairs.a_N.tolist(), pairs.b_N.tolist(), strict=True))) == (
        p * (p - 1) if operation == "divide" else p * p
    )


def test_split_is_a_partition_that_depends_on_the_data_seed_alone():
    one, same = ModularArithmeticDataset(7, data_seed=1), SequenceArithmeticDataset(7, data_seed=1)
    other = ModularArithmeticDataset(7, data_seed=2)
    union = torch.cat([one.train_index, one.test_index]).sort().values
    assert union.tolist() == list(range(49))
    assert one.train_index.tolist() == same.train_index.tolist()
    assert one.train_index.tolist() != other.train_index.tolist()
    assert len(one.train) == round(0.3 * 49)


def test_inputs_of_both_kinds_say_the_same():
    one_hot, tokens = ModularArithmeticDataset(5), SequenceArithmeticDataset(5)
    for get in ("get_train", "get_test", "get_all"):
        (x, y), (t, y2) = getattr(one_hot, get)(), getattr(tokens, get)()
        assert y.tolist() == y2.tolist()
        assert x[:, :5].argmax(-1).tolist() == t[:, 0].tolist()
        assert x[:, 5:].argmax(-1).tolist() == t[:, 2].tolist()
        assert (x.sum(-1) == 2).all()
        assert (t[:, 1] == 5).all()
        assert (t[:, 3] == 6).all()


@pytest.mark.parametrize("train_frac", [0.0, 1.0, 0.001, 1.5, -1])
def test_a_fraction_that_leaves_nothing_is_refused(train_frac):
    with pytest.raises(ValueError, match="train_frac"):
        ModularArithmeticDataset(5, train_frac=train_frac)


def test_a_run_that_cannot_fit_is_refused_with_its_size_before_it_is_allocated(tmp_path, capsys):
    for p, size in ((100_003, r"take 4,471,198 GiB"), (10**18 + 9, "TiB; give at most")):
        flags = ["--p", str(p), "--dry-run", "--device", "cpu", "--output-dir", str(tmp_path / "run")]
        assert main(["train", *flags]) == 2
        assert size in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["baseline", "routed", "transformer", "routed_transformer"])
def test_so_is_a_width_that_cannot_fit(tmp_path, capsys, kind):
    flags = ["--hidden-dim", "1000000", "--model-type", kind, "--device", "cpu", "--output-dir", str(tmp_path / "run")]
    assert main(["train", *flags]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "error: hidden_dim: 1000000: weights, gradients, moments and a batch take " in said
    assert not (tmp_path / "run").exists()


def test_memory_counts_pairs_and_the_logits_of_a_batch():
    config = TrainerConfig(p=97, train_frac=0.5, loss_dtype="float32")
    n = 97**2
    assert memory_of(config) == 2 * n * 24 + 2 * round(n / 2) * 97 * 4
    assert memory_of(replace(config, batch_size=100)) == 2 * n * 24 + 2 * 100 * 97 * 4
    assert memory_of(replace(config, loss_dtype="float64")) == 2 * n * 24 + 2 * round(n / 2) * 97 * 8


def test_compose_is_the_group_of_permutations_of_five_things():
    from itertools import permutations

    elements = list(permutations(range(5)))
    index = {element: i for i, element in enumerate(elements)}
    pairs = all_pairs(120, "compose")
    for n in (0, 1, 137, 5000, 14399):
        a, b = elements[pairs.a_N[n]], elements[pairs.b_N[n]]
        assert pairs.y_N[n] == index[tuple(a[i] for i in b)]
    table = pairs.y_N.reshape(120, 120)
    assert (table.sort(dim=1).values == torch.arange(120)).all()  # each row and each column once: a group's table
    assert (table[0] == torch.arange(120)).all()
    assert (table != table.T).any()
