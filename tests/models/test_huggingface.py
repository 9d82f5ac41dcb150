"""Weights and configuration, from and to a Hugging Face folder."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import fsspec
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from models import (
    decoder,
    folders,
    huggingface,
    safetensors_file,
    sharding,
    tokenizer,
    weights,
)
from tests.models import configs

SMALL = {
    "model_type": "qwen2",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROOT = pathlib.Path(__file__).parents[2]
# As in the model cards of Qwen2.5, for contexts of 131,072 tokens.
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def edit(folder, change):
    """Applies change(tensors) to the tensors of a folder, in place."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def random_model(**changes):
    config = huggingface.config_from_dict(SMALL | changes)
    return jax.jit(lambda key: decoder.Decoder(key, config))(jax.random.key(0))


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
        (
            {"model_type": "qwen3_moe"},
            "model_type='qwen3_moe' .*knows qwen2, qwen3, llama, mistral",
        ),
        ({"model_type": None}, "model_type=None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"use_mrope": True}, "use_mrope=True"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling=.*dynamic"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1]}}, "rope_scaling=.*mrope"),
        ({"rope_scaling": YARN | {"attn_factor": 0.9}}, "rope_scaling=.*attn_factor"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "rope_scaling=.*factor 0.5 is less than 1"),
        ({"rope_scaling": YARN | {"attention_factor": -1.0}}, "attention_factor -1.0 is negative"),
        ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "beta_fast 0.5 is less than beta_slow 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"original_max_position_embeddings": 4096}, "original_max_position_embeddings=4096"),
        (
            {"rope_scaling": YARN, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope_scaling and rope_parameters contradict",
        ),
        (
            {"rope_scaling": {"type": "default"}, "rope_parameters": YARN},
            "rope_scaling and rope_parameters contradict",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters=.*linear"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
            "different rope_theta",
        ),
        ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
    ],
)
def test_settings_that_would_change_results_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        huggingface.config_from_dict(SMALL | changes)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"is_causal": False}, "is_causal=False"),  # transformers then sees all tokens
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "'default' or 'yarn' or 'llama3'"),
        ("llama", {"rope_scaling": LLAMA3 | {"beta_fast": 32}}, "rope_scaling=.*beta_fast"),
        ("llama", {"rope_scaling": LLAMA3 | {"factor": None}}, "factor is missing"),
        ("llama", {"rope_scaling": LLAMA3 | {"factor": 0.5}}, "factor 0.5 is less than 1"),
        ("llama", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "is not above"),
        ("llama", {"rope_theta": 1.0}, "rope_theta=1.0 .supported: above 1"),
        ("llama", {"layer_types": ["sliding_attention"]}, "layer_types"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("mistral", {"sliding_window": 4096}, "sliding_window=4096 .supported: null"),
        ("mistral", {}, "sliding_window=4096 .supported: null"),  # what transformers assumes
    ],
)
def test_what_other_families_do_not_have_is_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        huggingface.config_from_dict(SMALL | {"model_type": kind} | changes)


FAMILIES = {
    "qwen2": {},
    "qwen3": {},  # a head of 128, whatever the width
    "llama": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
    "mistral": {"sliding_window": None},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_config_of_a_family_comes_back_with_what_transformers_assumes(tmp_path, kind):
    import transformers

    values = SMALL | {"model_type": kind} | FAMILIES[kind]
    config = huggingface.config_from_dict(values)
    theirs = transformers.AutoConfig.for_model(**values)
    assert config.head_dim == getattr(theirs, "head_dim", 8)
    for name in ("rms_norm_eps", "max_position_embeddings", "num_key_value_heads"):
        assert getattr(config, name) == getattr(theirs, name)
    for original in (None, values):
        written = huggingface.config_to_dict(config, original=original)
        (tmp_path / "config.json").write_text(json.dumps(written))
        again = transformers.AutoConfig.from_pretrained(tmp_path)
        assert type(again) is type(theirs)
        assert huggingface.config_from_dict(json.loads(json.dumps(written))) == config
        assert huggingface.config_from_dict(again.to_dict()) == config
    nulls = dict.fromkeys((*huggingface.ABSENT, "num_key_value_heads"))
    silent = huggingface.config_from_dict(SMALL | {"model_type": "llama"} | nulls)
    assert (silent.num_key_value_heads, silent.rms_norm_eps) == (4, 1e-6)


def test_all_refused_settings_are_listed_at_once():
    with pytest.raises(ValueError, match="(?s)hidden_act='relu'.*use_sliding_window=True"):
        huggingface.config_from_dict(SMALL | {"hidden_act": "relu", "use_sliding_window": True})


@pytest.mark.parametrize("head_dim", [8, 16])
def test_config_round_trips_and_transformers_reads_it(tmp_path, head_dim):
    import transformers

    config = configs.small(
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


def test_what_the_original_configuration_says_stays():
    original = SMALL | {
        "rope_theta": 5e5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_window_layers": 21,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "rope_scaling": YARN,
        "dtype": "float32",
    }
    config = huggingface.config_from_dict(original)
    kept = huggingface.config_to_dict(config, dtype="bfloat16", original=original)
    assert kept.pop("torch_dtype") == kept["dtype"] == "bfloat16"
    assert kept.pop("rope_parameters")["rope_theta"] == 5e5
    assert kept == original | {"dtype": "bfloat16"}
    # Another model's configuration has no say.
    other = dataclasses.replace(config, rms_norm_eps=1e-5)
    assert huggingface.config_to_dict(other, original=original) == huggingface.config_to_dict(other)


# What a base says and what must be written: `read_by_4` is what Qwen2Config of transformers 4 reads
# (and vLLM, SGLang), under names that 5 does not need; `read_by_5` the other way round.
YARN_4 = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
YARN_5 = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
DERIVED = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


@pytest.mark.parametrize(
    ("said", "read_by_4", "read_by_5"),
    [
        (
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "dtype": "float32"},
            {"rope_theta": 1e6, "torch_dtype": "bfloat16"},
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "dtype": "bfloat16"},
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "float32"},
            {"rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "bfloat16"},
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "dtype": "bfloat16"},
        ),
        (
            {"rope_parameters": {"rope_theta": 1e6} | YARN_5},
            {"rope_theta": 1e6, "rope_scaling": YARN_5 | DERIVED},
            {"rope_parameters": {"rope_theta": 1e6} | YARN_5 | DERIVED},
        ),
        (
            {"rope_theta": 1e6, "rope_scaling": YARN_4},
            {"rope_theta": 1e6, "rope_scaling": YARN_4},
            {"rope_parameters": {"rope_theta": 1e6} | YARN_5 | DERIVED},
        ),
        (
            {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}},
            {"rope_theta": 1e6},
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        ),
        ({}, {"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
    ],
)
def test_both_versions_of_transformers_find_what_they_read(said, read_by_4, read_by_5):
    import transformers

    said = SMALL | said
    config = huggingface.config_from_dict(said)
    written = huggingface.config_to_dict(config, dtype="bfloat16", original=said)
    for read in (read_by_4, read_by_5):
        assert {name: written.get(name) for name in read} == read
    assert huggingface.config_from_dict(written) == config
    # The class of the version that is installed, which is 5.
    theirs = transformers.Qwen2Config(**written)
    found = {name: theirs.rope_parameters.get(name) for name in ("rope_theta", "rope_type")}
    assert found == {name: read_by_5["rope_parameters"][name] for name in found}
    assert str(theirs.dtype).endswith("bfloat16")


# ---------------------------------------------------------------- YaRN


YARNS = {
    "published": YARN,
    "no_original": {"rope_type": "yarn", "factor": 2.0},
    "ratio": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8192},
    "betas": YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
    "zeros": YARN | {"beta_fast": 0, "mscale": 0, "mscale_all_dim": 1.0},
    "untruncated": YARN | {"truncate": False},
    "attention_factor": YARN | {"attention_factor": 0.7},
    "mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
    "one_mscale": YARN | {"mscale": 0.7},
    "factor_1": YARN | {"factor": 1.0},
    "equal_bounds": YARN | {"beta_fast": 1.0, "original_max_position_embeddings": 7},
}


def their_rope(config):
    """(inverse frequencies, factor) of transformers."""
    from transformers.models.qwen2 import modeling_qwen2

    rope = modeling_qwen2.Qwen2RotaryEmbedding(config)
    return rope.inv_freq.numpy(), rope.attention_scaling


@pytest.mark.parametrize("yarn", YARNS)
@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("head_dim", "theta"), [(128, 1e6), (64, 1e4)])
def test_yarn_frequencies_equal_transformers(yarn, style, head_dim, theta):
    import transformers

    values = SMALL | {"hidden_size": 4 * head_dim, "max_position_embeddings": 32768}
    if style == "rope_scaling":
        values |= {"rope_theta": theta, "rope_scaling": dict(YARNS[yarn])}
    else:
        kind = {"rope_type": "yarn", "rope_theta": theta}
        values |= {"rope_parameters": YARNS[yarn] | kind}
    ours = huggingface.config_from_dict(values)
    frequency_H, factor = decoder.rope_frequencies(ours)
    their_H, their_factor = their_rope(transformers.Qwen2Config(**values))
    np.testing.assert_allclose(frequency_H, their_H, rtol=3e-6)
    assert factor == pytest.approx(their_factor, rel=1e-6)
    # Written and read again it is the same, for us and for them.
    again = json.loads(json.dumps(huggingface.config_to_dict(ours)))
    assert huggingface.config_from_dict(again) == ours
    again_H, again_factor = their_rope(transformers.Qwen2Config(**again))
    np.testing.assert_allclose(again_H, their_H, rtol=1e-6)
    assert again_factor == pytest.approx(their_factor)
    assert hash(ours) == hash(huggingface.config_from_dict(again))


def test_plain_frequencies_equal_transformers():
    import transformers

    values = SMALL | {"hidden_size": 512, "rope_theta": 1e6, "rope_scaling": None}
    frequency_H, factor = decoder.rope_frequencies(huggingface.config_from_dict(values))
    their_H, _ = their_rope(transformers.Qwen2Config(**values))
    np.testing.assert_allclose(frequency_H, their_H, rtol=3e-6)
    assert factor == 1.0


# With 16 dimensions a head, these keep the fastest frequency, divide the slowest and mix others.
LOUD_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
}


def yarn_model(folder):
    """A transformers model with YaRN and std 0.3, saved to `folder`."""
    import torch
    import transformers

    values = SMALL | {"hidden_size": 64, "rope_theta": 1e4, "rope_scaling": dict(LOUD_YARN)}
    config = transformers.Qwen2Config(**values, attn_implementation="eager")
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name else 0.0
            parameter.copy_(center + 0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def our_logits(model, token_BT):
    with jax.default_matmul_precision("highest"):
        until_BT = np.full_like(token_BT, token_BT.shape[1])
        return np.asarray(
            jax.jit(lambda m, t, u: m.logits(m.hidden(t, u)))(model, token_BT, until_BT)
        )


@pytest.mark.slow
def test_yarn_logits_equal_transformers_and_each_part_counts(tmp_path):
    import torch

    theirs = yarn_model(tmp_path)
    token_BT = np.random.default_rng(0).integers(0, 64, (1, 600)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(token_BT)).logits.numpy()
    model = huggingface.load(tmp_path)
    gap = lambda: np.abs(our_logits(model, token_BT) - expected).max() / np.abs(expected).max()
    assert gap() < 1e-4
    right = model.config
    assert right.rope_scaling == decoder.Yarn(4.0, 256, beta_fast=8.0)
    for wrong in (
        None,
        dataclasses.replace(right.rope_scaling, attention_factor=1.0),
        dataclasses.replace(right.rope_scaling, beta_fast=32.0),
    ):
        model.config = dataclasses.replace(right, rope_scaling=wrong)
        assert gap() > 1e-3, wrong
    huggingface.save(tmp_path / "again", huggingface.load(tmp_path), base_folder=None)
    assert huggingface.load(tmp_path / "again").config == right


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("shape", ["tied", "untied", "wide_heads", "qwen3", "mistral"])
def test_export_of_loaded_weights_is_bit_exact(reference, tmp_path, shape):
    folder = reference(shape).folder
    huggingface.save(tmp_path, huggingface.load(folder))
    assert_same_tensors(tmp_path, safetensors.numpy.load_file(folder / "model.safetensors"))


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


def cast_folder(folder, dtype_of):
    """Casts the tensors of a folder in place; returns them."""
    exact = {}

    def cast(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype_of(name))
        exact.update(tensors)

    edit(folder, cast)
    return exact


@pytest.mark.slow
def test_bfloat16_files_load_and_come_back(reference, tmp_path):
    folder = copy(reference("tied"), tmp_path)
    exact = cast_folder(folder, lambda name: ml_dtypes.bfloat16)
    kept = huggingface.load(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    as_float32 = huggingface.load(folder, dtype=jnp.float32)
    table_VD = np.asarray(as_float32.embed.table_VD[...])
    assert table_VD.dtype == np.float32
    np.testing.assert_array_equal(table_VD, exact["model.embed_tokens.weight"].astype(np.float32))
    for out, model, dtype in (("a", kept, None), ("b", as_float32, jnp.bfloat16)):
        huggingface.save(tmp_path / out, model, dtype=dtype)
        assert_same_tensors(tmp_path / out, exact)
        written = json.loads((tmp_path / out / "config.json").read_text())
        assert written["torch_dtype"] == "bfloat16"


def test_without_a_dtype_the_widest_of_a_parameter_is_kept(reference, tmp_path):
    folder = copy(reference("tied"), tmp_path)
    dtypes = {
        "layers.1.mlp.up_proj": np.float32,
        "layers.1.mlp.down_proj": np.float16,  # neither holds the other
        "embed": np.float16,
        "model.norm": np.float64,
    }
    other = np.dtype(ml_dtypes.bfloat16)
    exact = cast_folder(
        folder, lambda name: next((d for k, d in dtypes.items() if k in name), other)
    )
    model = huggingface.load(folder)
    mlp = model.blocks.mlp
    assert (mlp.w_up_DF.dtype, mlp.w_down_FD.dtype) == (np.float32, np.float32)
    assert (mlp.w_gate_DF.dtype, model.embed.table_VD.dtype) == (other, np.float16)
    assert model.final_norm.scale_D.dtype == np.float32
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        down_DF = exact[name].astype(np.float32)
        np.testing.assert_array_equal(mlp.w_down_FD[...][layer], down_DF.T)


def assert_same_tensors(folder, exact):
    """The folder's files hold exactly these tensors, bit for bit."""
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


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


MESHES = {
    "data": dict(data=8),
    "mixed": dict(data=2, fsdp=2, tensor=2),
}


def shardings_for(folder, **sizes):
    config = huggingface.config_from_dict(huggingface.read_config(folder))
    abstract = jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))
    return sharding.parameter_shardings(sharding.make_mesh(**sizes), abstract)


@pytest.fixture
def bytes_read(monkeypatch):
    """Sizes of all reads of safetensors files, headers included."""
    fill, sizes = safetensors_file.File._fill, []

    def count(self, raw, offset):
        sizes.append(len(raw))
        fill(self, raw, offset)

    monkeypatch.setattr(safetensors_file.File, "_fill", count)
    return sizes


@pytest.mark.parametrize("mesh", [pytest.param("data", marks=pytest.mark.slow), "mixed"])
def test_sharded_arrays_go_round_bit_by_bit_and_are_read_once(
    reference, tmp_path, bytes_read, mesh
):
    folder = reference("untied").folder
    shardings = shardings_for(folder, **MESHES[mesh])
    plain = huggingface.load(folder)
    bytes_read.clear()
    placed = huggingface.load(folder, shardings=shardings)
    # Copies on several devices, too, come from one read.
    assert sum(bytes_read) == (folder / "model.safetensors").stat().st_size
    for a, b, place in zip(*map(jax.tree.leaves, (plain, placed, shardings)), strict=True):
        assert b.sharding == place and b.sharding.spec == place.spec
        np.testing.assert_array_equal(a, b)
    huggingface.save(tmp_path, placed)
    assert_same_tensors(tmp_path, safetensors.numpy.load_file(folder / "model.safetensors"))


@pytest.mark.slow
def test_a_device_can_be_asked_for(reference):
    folder, device = reference("untied").folder, jax.devices()[3]
    plain = huggingface.load(folder)
    place = jax.sharding.SingleDeviceSharding(device)
    placed = huggingface.load(folder, shardings=jax.tree.map(lambda _: place, plain))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(placed), strict=True):
        assert b.devices() == {device}
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_rows_that_the_devices_do_not_divide(tmp_path):
    model = random_model(vocab_size=61)
    huggingface.save(tmp_path, model)
    placed = huggingface.load(tmp_path, shardings=shardings_for(tmp_path, fsdp=8))
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_read_ahead_fits_beside_the_tensor_in_work(reference, monkeypatch):
    folder, alive, most = reference("untied").folder, {}, []
    begin, add = weights.Read.begin, weights._add

    def begun(self, pool):
        alive[self.tensor] = self.nbytes
        most.append((sum(alive.values()), len(alive)))
        return begin(self, pool)

    def added(arrays, dtype_of, read, pending):
        add(arrays, dtype_of, read, pending)
        del alive[read.tensor]

    monkeypatch.setattr(weights.Read, "begin", begun)
    monkeypatch.setattr(weights, "_add", added)
    huggingface.load(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    assert len(most) == len(tensors) and not alive
    assert max(size for size, _ in most) == max(value.nbytes for value in tensors.values())
    assert max(count for _, count in most) > 1


def test_our_shards_are_what_transformers_reads(reference, tmp_path):
    import transformers

    expected = reference("untied")
    model = huggingface.load(expected.folder)
    huggingface.save(tmp_path, model, max_shard_bytes=20_000)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert len(paths) > 2
    assert paths[0].name == f"model-00001-of-{len(paths):05}.safetensors"
    exact = safetensors.numpy.load_file(expected.folder / "model.safetensors")
    assert_same_tensors(tmp_path, exact)
    sizes = [sum(v.nbytes for v in safetensors.numpy.load_file(p).values()) for p in paths]
    assert max(sizes) <= 20_000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), exact[name])
    # A file that is written over them takes their place, and they do not stay beside it.
    huggingface.save(tmp_path, model)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


def test_a_save_that_fails_keeps_the_folder_as_it_was(reference, tmp_path, monkeypatch):
    model = huggingface.load(reference("tied").folder)
    huggingface.save(tmp_path / "old", model)
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    real, calls = weights._to_file, []

    def fails_late(*arguments):
        calls.append(arguments)
        if len(calls) > 10:
            raise RuntimeError("device lost")
        return real(*arguments)

    monkeypatch.setattr(weights, "_to_file", fails_late)
    changed = jax.tree.map(lambda leaf: leaf + 1, model)
    for out in ("old", "new"):
        calls.clear()
        with pytest.raises(RuntimeError, match="device lost"):
            huggingface.save(tmp_path / out, changed)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    assert list((tmp_path / "new").iterdir()) == []


def test_adapters_are_not_dropped_silently(reference):
    model = huggingface.load(reference("tied").folder)
    model.blocks.attn.lora_q = decoder.RMSNorm(model.config, jnp.float32)
    with pytest.raises(ValueError, match="has no place for blocks/attn/lora_q/scale_D. Adapters"):
        huggingface.save("unused", model)


TWO_PROCESSES = """
import pathlib, sys
import jax, numpy as np
rank, port, folder, full, out = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
from models import huggingface, decoder, safetensors_file, sharding
fill, sizes = safetensors_file.File._fill, []
def count(self, raw, offset):
    sizes.append(len(raw))
    fill(self, raw, offset)
config = huggingface.config_from_dict(huggingface.read_config(folder))
abstract = jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))
for numbers in (dict(data=2, fsdp=2, tensor=2), dict(fsdp=8)):
    places = sharding.parameter_shardings(sharding.make_mesh(**numbers), abstract)
    safetensors_file.File._fill, header = fill, 0
    sizes.clear()
    safetensors_file.File._fill = count
    model = huggingface.load(folder, shardings=places)
    found = dict(zip(sharding.parameter_names(model), jax.tree.leaves(model)))
    expected = np.load(full)
    for name, array in found.items():
        assert not array.is_fully_addressable or array.sharding.is_fully_replicated
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[name][shard.index])
    pathlib.Path(out, f"bytes_{rank}").write_text(str(sum(sizes)))
huggingface.save(pathlib.Path(out, "model"), model, max_shard_bytes=20_000)
assert huggingface.read_config(pathlib.Path(out, "model"))  # no process goes on before it is there
"""


@pytest.mark.slow
def test_two_processes_read_half_each_and_write_one_folder(reference, tmp_path):
    folder = reference("untied").folder
    model = huggingface.load(folder)
    full = dict(zip(sharding.parameter_names(model), jax.tree.leaves(model), strict=True))
    np.savez(tmp_path / "full.npz", **full)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    arguments = [str(port), str(folder), str(tmp_path / "full.npz"), str(tmp_path)]
    run = lambda rank: subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, str(rank), *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for finished in pool.map(run, range(2)):
            assert finished.returncode == 0, finished.stderr
    exact = safetensors.numpy.load_file(folder / "model.safetensors")
    assert_same_tensors(tmp_path / "model", exact)
    total = sum(value.nbytes for value in exact.values())
    header = (folder / "model.safetensors").stat().st_size - total
    for rank in range(2):
        assert int((tmp_path / f"bytes_{rank}").read_text()) - header == total / 2


PEAK = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
from experiments.speed import loading
loading.make_folder(sys.argv[1], gigabytes=0.6)
loading.load(sys.argv[1])
print(loading.peak_beyond_model(sys.argv[1]), loading.largest_tensor(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_host_memory_beyond_the_model_is_one_tensor(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC", "GLIBC"))}
    finished = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    extra, largest = map(int, finished.stdout.split())
    assert extra < largest + 128e6


# ---------------------------------------------------------------- remote folders


@pytest.fixture
def bucket():
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.slow
def test_remote_folders_are_read_and_written(reference, tmp_path, bucket):
    source = tmp_path / "source"
    tokenizer.train_byte_bpe(["some text"] * 3, vocab_size=400, folder=source)
    model = random_model(vocab_size=512)
    huggingface.save(source, model)
    (source / "LICENSE").write_text("Apache")
    for name in os.listdir(source):
        folders.Folder(f"{bucket}/base").write(name, (source / name).read_bytes())
    assert huggingface.read_config(f"{bucket}/base") == huggingface.read_config(source)
    loaded = huggingface.load(f"{bucket}/base")
    huggingface.save(
        f"{bucket}/out", loaded, base_folder=f"{bucket}/base", max_shard_bytes=50_000, card="# Hi"
    )
    out = folders.Folder(f"{bucket}/out")
    assert {"config.json", "tokenizer.json", "LICENSE", weights.INDEX} <= set(out.names())
    assert out.read("README.md") == b"# Hi"
    text = tokenizer.Tokenizer.load(f"{bucket}/out")
    assert text.encode("some 123") == tokenizer.Tokenizer.load(source).encode("some 123")
    assert text.eos_ids == tokenizer.Tokenizer.load(source).eos_ids
    for a, b in zip(
        jax.tree.leaves(model), jax.tree.leaves(huggingface.load(f"{bucket}/out")), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(FileNotFoundError, match="memory://bucket/none holds no model"):
        huggingface.read_config(f"{bucket}/none")
    with pytest.raises(FileNotFoundError, match="memory://bucket/none holds no tokenizer"):
        tokenizer.Tokenizer.load(f"{bucket}/none")


# ---------------------------------------------------------------- damaged folders


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


def test_a_tensor_in_two_files_is_an_error(reference, tmp_path):
    folder = reference("tied").folder
    shutil.copy(folder / "config.json", tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(folder / "model.safetensors", tmp_path / name)
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="twice: model.norm.weight"):
        huggingface.load(tmp_path)


def test_folder_without_safetensors_names_what_is_there(reference, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no config.json"):
        huggingface.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json is damaged: it holds a list, not an object"):
        huggingface.load(tmp_path)
    shutil.copy(reference("tied").folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match="it has config.json, pytorch_model.bin"):
        huggingface.load(tmp_path)


@pytest.mark.slow
def test_save_copies_the_tokenizer_and_its_ends(reference, tmp_path):
    import transformers

    source, out = tmp_path / "source", tmp_path / "out"
    trained = tokenizer.train_byte_bpe(["some text"] * 3, vocab_size=400, folder=source)
    model = huggingface.load(reference("tied").folder)
    with pytest.raises(ValueError, match="has 3.. tokens, the model only 64"):
        huggingface.save(out, model, tokenizer_folder=source)
    huggingface.save(out, random_model(vocab_size=512), tokenizer_folder=source)
    assert tokenizer.Tokenizer.load(out).encode("some 123") == trained.encode("some 123")
    theirs = transformers.GenerationConfig.from_pretrained(out)
    assert theirs.eos_token_id == trained.eos_ids[0]
    assert transformers.AutoConfig.from_pretrained(out).eos_token_id == trained.eos_ids[0]


def test_save_keeps_what_the_base_folder_says(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    trained = tokenizer.train_byte_bpe(["some text"] * 3, vocab_size=400, folder=base)
    model = random_model(vocab_size=512)
    said = SMALL | {"vocab_size": 512, "max_window_layers": 21, "eos_token_id": 7}
    (base / "config.json").write_text(json.dumps(said))
    (base / "LICENSE").write_text("Apache")
    huggingface.save(
        out, model, base_folder=base, dtype="bfloat16", generation={"top_k": 0}, card="# Card"
    )
    written = json.loads((out / "config.json").read_text())
    added = {"dtype": "bfloat16", "torch_dtype": "bfloat16", "pad_token_id": trained.pad_id}
    rope = {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}
    assert written == said | added | rope
    generation = json.loads((out / "generation_config.json").read_text())
    ends = {"eos_token_id": trained.eos_ids[0], "pad_token_id": trained.pad_id}
    assert generation == ends | {"top_k": 0}
    assert (out / "LICENSE").read_text() == "Apache" and (out / "README.md").read_text() == "# Card"
    assert tokenizer.Tokenizer.load(out).encode("some 123") == trained.encode("some 123")
