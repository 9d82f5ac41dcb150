"""Weights and configuration, from and to a Hugging Face folder."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec

from models import huggingface, qwen2, sharding, tokenizer

SMALL = {
    "model_type": "qwen2",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def edit(folder, change):
    """Applies change(tensors) to the tensors of a folder, in place."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def copy(reference, tmp_path):
    return shutil.copytree(reference.folder, tmp_path / "copy")


# ---------------------------------------------------------------- configuration


def test_config_of_transformers_4_and_5_is_the_same():
    four = SMALL | {"rope_theta": 5e5, "rope_scaling": None}
    five = SMALL | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    config = huggingface.config_from_dict(four)
    assert config == huggingface.config_from_dict(five)
    assert (config.rope_theta, config.head_dim) == (5e5, 8)
    # What transformers assumes where the file is silent.
    assert (config.rms_norm_eps, config.tie_word_embeddings) == (1e-6, False)
    assert huggingface.config_from_dict(SMALL).rope_theta == 1e4
    assert huggingface.config_from_dict(SMALL | {"head_dim": 16}).head_dim == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling=.*yarn"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters=.*linear"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
            "two different rope_theta",
        ),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
    ],
)
def test_settings_that_would_change_results_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        huggingface.config_from_dict(SMALL | changes)


def test_all_refused_settings_are_listed_at_once():
    with pytest.raises(ValueError, match="(?s)hidden_act='relu'.*use_sliding_window=True"):
        huggingface.config_from_dict(SMALL | {"hidden_act": "relu", "use_sliding_window": True})


@pytest.mark.parametrize("head_dim", [8, 16])
def test_config_round_trips_and_transformers_reads_it(tmp_path, head_dim):
    import transformers

    config = qwen2.Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        rope_theta=5e5,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    values = huggingface.config_to_dict(config, dtype="bfloat16")
    assert huggingface.config_from_dict(json.loads(json.dumps(values))) == config
    (tmp_path / "config.json").write_text(json.dumps(values))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is transformers.Qwen2Config
    assert theirs.rope_parameters == {"rope_theta": 5e5, "rope_type": "default"}
    assert str(theirs.dtype).endswith("bfloat16")
    assert huggingface.config_from_dict(theirs.to_dict()) == config


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("shape", ["tied", "untied", "wide_heads"])
def test_export_of_loaded_weights_is_bit_exact(reference, tmp_path, shape):
    folder = reference(shape).folder
    huggingface.save(tmp_path, huggingface.load(folder))
    before = safetensors.numpy.load_file(folder / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        np.testing.assert_array_equal(after[name].view(np.uint32), value.view(np.uint32), name)


def test_saved_folder_gives_transformers_the_same_logits(reference, tmp_path):
    import torch
    import transformers

    expected = reference("untied")
    huggingface.save(tmp_path, huggingface.load(expected.folder))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    token_BT = np.arange(24, dtype=np.int32).reshape(2, 12)
    with torch.no_grad():
        logits = theirs(torch.tensor(token_BT)).logits.numpy()
    np.testing.assert_array_equal(logits, expected.logits(token_BT))


def test_bfloat16_files_load_and_come_back(reference, tmp_path):
    folder = copy(reference("tied"), tmp_path)
    exact = {}

    def halve(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
        exact.update(tensors)

    edit(folder, halve)
    as_float32 = huggingface.load(folder)
    table_VD = np.asarray(as_float32.embed.table_VD[...])
    assert table_VD.dtype == np.float32
    np.testing.assert_array_equal(table_VD, exact["model.embed_tokens.weight"].astype(np.float32))
    kept = huggingface.load(folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    for out, model, dtype in (("a", kept, None), ("b", as_float32, jnp.bfloat16)):
        huggingface.save(tmp_path / out, model, dtype=dtype)
        again = safetensors.numpy.load_file(tmp_path / out / "model.safetensors")
        for name, value in exact.items():
            np.testing.assert_array_equal(again[name].view(np.uint16), value.view(np.uint16), name)
        written = json.loads((tmp_path / out / "config.json").read_text())
        assert written["torch_dtype"] == "bfloat16"


def test_shards_load_like_one_file(reference, tmp_path):
    expected = reference("untied")
    expected.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    one, many = huggingface.load(expected.folder), huggingface.load(tmp_path)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, b)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        huggingface.load(tmp_path)


def test_load_places_by_shardings(reference):
    folder = reference("tied").folder
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    plain = huggingface.load(folder)
    placed = huggingface.load(folder, shardings=sharding.parameter_shardings(mesh, plain))
    w_q = placed.blocks.attn.w_q_DNH[...]
    assert w_q.sharding.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert w_q.addressable_shards[0].data.shape == (3, 16, 2, 8)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_wrong_tensor_is_in_one_error(reference, tmp_path):
    folder = copy(reference("untied"), tmp_path)

    def damage(tensors):
        del tensors["model.layers.1.self_attn.k_proj.bias"]
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:60]
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].astype(np.int8)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    edit(folder, damage)
    with pytest.raises(ValueError, match="the tensors do not fit config.json") as error:
        huggingface.load(folder)
    assert sorted(str(error.value).splitlines()[1:]) == [
        "  dtype of model.embed_tokens.weight: I8, expected F64/F32/F16/BF16",
        "  missing: model.layers.1.self_attn.k_proj.bias [16]",
        "  missing: model.norm.weight [32]",
        "  shape of lm_head.weight: [60, 32], expected [64, 32]",
        "  unexpected: model.layers.0.self_attn.q_norm.weight [8]",
    ]


def test_head_beside_tied_embeddings_must_equal_them(reference, tmp_path):
    folder = copy(reference("tied"), tmp_path)

    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    edit(folder, add_head)
    huggingface.load(folder)

    def change_head(tensors):
        tensors["lm_head.weight"][0, 0] += 1

    edit(folder, change_head)
    with pytest.raises(ValueError, match="lm_head.weight differs from the embedding"):
        huggingface.load(folder)


def test_folder_without_safetensors_names_what_is_there(reference, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        huggingface.load(tmp_path)
    shutil.copy(reference("tied").folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match="it has config.json, pytorch_model.bin"):
        huggingface.load(tmp_path)


def test_save_copies_the_tokenizer_and_its_ends(reference, tmp_path):
    import transformers

    source, out = tmp_path / "source", tmp_path / "out"
    trained = tokenizer.train_byte_bpe(["some text"] * 3, vocab_size=400, folder=source)
    model = huggingface.load(reference("tied").folder)
    with pytest.raises(ValueError, match="has 3.. tokens, the model only 64"):
        huggingface.save(out, model, tokenizer_folder=source)
    config = huggingface.config_from_dict(SMALL | {"vocab_size": 512})
    huggingface.save(out, qwen2.Qwen2(jax.random.key(0), config), tokenizer_folder=source)
    assert tokenizer.Tokenizer.load(out).encode("some 123") == trained.encode("some 123")
    theirs = transformers.GenerationConfig.from_pretrained(out)
    assert theirs.eos_token_id == trained.eos_ids[0]
    assert transformers.AutoConfig.from_pretrained(out).eos_token_id == trained.eos_ids[0]
