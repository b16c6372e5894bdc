"""Published models, tokenizers and datasets: what is loaded, what may be changed before, and what is said of what is wrong.

The studies' own suites try many kinds of damage (packages/retrofit/tests/test_foreign_models.py); here stands what all share.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from studycore.errors import UserError
from studycore.language import pretrained


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a tiny Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def copy(made, tmp_path, change):
    """The folder with other weights."""
    tensors = load_file(made / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((made / "config.json").read_text())
    return str(tmp_path)


def test_the_precision_and_the_configuration_are_as_asked(made):
    changed = []

    def adapt(config):
        changed.append(config.attention_dropout)
        config.attention_dropout = 0.25

    model, commit = pretrained.load_model(str(made), dtype=torch.bfloat16, adapt=adapt)
    assert (changed, model.config.attention_dropout, commit) == ([0.0], 0.25, None)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert (pretrained.context_of(model), pretrained.vocabulary_of(model)) == (32, 50)


def test_the_fingerprint_is_of_every_bit_and_name(made, tmp_path):
    model, _ = pretrained.load_model(str(made))
    first = pretrained.weights_fingerprint(model)
    assert pretrained.weights_fingerprint(pretrained.load_model(str(made))[0]) == first
    with torch.no_grad():
        weight = model.model.norm.weight
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))
    assert pretrained.weights_fingerprint(model) != first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks model.norm.weight; restore its files"),
        (lambda t: t.update(more=torch.zeros(2)), "does not take: more; restore its files"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(17)}), "model.norm.weight of shape 17 where its config.json asks for 16"),
        (lambda t: t["lm_head.weight"].__setitem__((0, 0), torch.inf), "lm_head.weight holds NaN or infinity"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_under_the_settings_own_name(made, tmp_path, change, said):
    name = copy(made, tmp_path, change)
    with pytest.raises(UserError) as caught:
        pretrained.load_model(name, flag="model.name")
    assert str(caught.value).startswith(f"model.name: '{name}'")
    assert said in str(caught.value)


def test_a_place_without_a_model_is_named(made, tmp_path):
    for name, said in (
        (str(tmp_path), "holds no config.json"),
        (str(made / "config.json"), "is a file; give the Hugging Face model folder"),
        ("/nowhere/model", "there is no such file or folder"),
    ):
        for load in (pretrained.load_model, pretrained.load_tokenizer):
            with pytest.raises(UserError, match=f"^model.name: .*{said}"):
                load(name, flag="model.name")


def test_a_model_rebuilt_from_its_architecture_takes_the_same_weights(made):
    model, _ = pretrained.load_model(str(made))
    other = pretrained.build_model(json.loads(json.dumps(pretrained.architecture_of(model))))
    other.load_state_dict(model.state_dict())
    probe = pretrained.probe_inputs(model)
    one, two = (pretrained.replay_probe(m, probe)["output_logits"] for m in (model, other))
    assert torch.equal(one, two)
    assert one.abs().max() > 0


def test_rows_of_a_dataset_are_streamed_and_its_columns_checked(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["a", "b", "c"], "n": [1, 2, 3]}), tmp_path / "train.parquet")
    rows = pretrained.hub_rows(str(tmp_path), "train", ("text",), flag="data.source")
    assert [next(rows)["text"], next(rows)["text"]] == ["a", "b"]
    with pytest.raises(UserError, match=r"^data\.source: .* has no column 'story'; there are text, n$"):
        next(pretrained.hub_rows(str(tmp_path), "train", ("story",), flag="data.source"))
    with pytest.raises(UserError, match=r"^data\.source: .*cannot be read as a dataset with a split 'test'"):
        next(pretrained.hub_rows(str(tmp_path), "test", ("text",), flag="data.source"))


def test_a_token_without_an_embedding_is_named(made):
    class Tokenizer:
        def __len__(self):
            return 53

        def convert_ids_to_tokens(self, token):
            return f"word{token}"

    pretrained.check_tokens([], Tokenizer(), 50, "text", "--model: 'x'")
    pretrained.check_tokens([3, 49], Tokenizer(), 50, "text", "--model: 'x'")
    with pytest.raises(UserError) as caught:
        pretrained.check_tokens(iter([3, 50, 4]), Tokenizer(), 50, "training text", "--model: 'x'")
    assert str(caught.value) == (
        "--model: 'x': the tokenizer knows 53 tokens and the model 50: 'word50' (token 50) stands in the training text; "
        "give the tokenizer that belongs to the model"
    )


@pytest.mark.parametrize("padding", [50, 10**6, -51])
def test_a_padding_id_outside_the_vocabulary_is_named_with_its_value(made, tmp_path, padding):
    place = copy(made, tmp_path, lambda tensors: None)
    values = json.loads((made / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"pad_token_id": padding}))
    with pytest.raises(UserError, match=rf"pad_token_id is {padding} in its config.json, .* has 50 tokens"):
        pretrained.load_model(place)


@pytest.mark.parametrize(
    ("policy", "adds", "has", "expected"),
    [
        ("tokenizer", True, True, 7), ("tokenizer", False, True, None), ("always", False, True, 7),
        ("never", True, True, None), ("tokenizer", False, False, None), ("never", False, False, None),
    ],
)  # fmt: skip
def test_windows_begin_as_the_tokenizer_begins_a_text_unless_told_otherwise(policy, adds, has, expected):
    class Tokenizer:
        bos_token_id = 7 if has else None

        def __call__(self, text, verbose):
            return {"input_ids": [7, 3] if adds else [3]}

    assert pretrained.bos_of(Tokenizer(), policy) == expected
    if not has:
        with pytest.raises(UserError, match=r"^data\.bos: always, and the model's tokenizer has no .*; give never$"):
            pretrained.bos_of(Tokenizer(), "always", "data.bos")
