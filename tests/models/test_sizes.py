"""Every published size of Qwen2.5, without its memory: shapes, names and counts.

Configurations are those of the hub's config.json files; what is compared with is transformers'
model on torch's meta device, which allocates nothing.
"""

import functools

import jax
import numpy as np
import pytest

from models import decoder, huggingface, published, sharding, weights

PUBLISHED = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
SHAPES = {  # hidden, layers, heads, key/value heads, feed-forward, parameters
    "0.5B": (896, 24, 14, 2, 4864, 494_032_768),
    "1.5B": (1536, 28, 12, 2, 8960, 1_543_714_304),
    "3B": (2048, 36, 16, 2, 11008, 3_085_938_688),
    "7B": (3584, 28, 28, 4, 18944, 7_615_616_512),
    "14B": (5120, 48, 40, 8, 13824, 14_770_033_664),
    "32B": (5120, 64, 40, 8, 27648, 32_763_876_352),
    "72B": (8192, 80, 64, 8, 29568, 72_706_203_648),
}
SMALL = {"tie_word_embeddings": True, "vocab_size": 151936}
BASE = {"eos_token_id": 151643, "use_mrope": False}
LONG = {"max_position_embeddings": 131072, "sliding_window": 131072}
MATH = {"max_position_embeddings": 4096, "sliding_window": 4096, "rope_theta": 10000.0}
MODELS = {  # size, what its config.json says beside PUBLISHED and SHAPES
    "Qwen2.5-0.5B": ("0.5B", SMALL | BASE | {"max_window_layers": 24}),
    "Qwen2.5-0.5B-Instruct": ("0.5B", SMALL | {"max_window_layers": 21}),
    "Qwen2.5-1.5B": ("1.5B", SMALL | BASE | LONG | {"max_window_layers": 28}),
    "Qwen2.5-1.5B-Instruct": ("1.5B", SMALL | {"max_window_layers": 21}),
    "Qwen2.5-3B-Instruct": ("3B", SMALL | {"max_window_layers": 70}),
    "Qwen2.5-7B": ("7B", BASE | LONG | {"max_window_layers": 28}),
    "Qwen2.5-7B-Instruct": ("7B", {"max_window_layers": 28, "sliding_window": 131072}),
    "Qwen2.5-14B": ("14B", BASE | LONG | {"max_window_layers": 48, "rms_norm_eps": 1e-5}),
    "Qwen2.5-14B-Instruct": ("14B", {"max_window_layers": 70, "sliding_window": 131072}),
    "Qwen2.5-32B": ("32B", BASE | LONG | {"max_window_layers": 64, "rms_norm_eps": 1e-5}),
    "Qwen2.5-32B-Instruct": ("32B", {"max_window_layers": 70, "sliding_window": 131072}),
    "Qwen2.5-72B": ("72B", BASE | LONG | {"max_window_layers": 80, "rms_norm_eps": 1e-5}),
    "Qwen2.5-72B-Instruct": ("72B", {"max_window_layers": 70, "sliding_window": 131072}),
    "Qwen2.5-Math-1.5B": ("1.5B", SMALL | BASE | MATH | {"max_window_layers": 21}),
    "Qwen2.5-Math-7B": ("7B", BASE | MATH | {"max_window_layers": 28}),
    "Qwen2.5-Math-72B-Instruct": ("72B", MATH | {"max_window_layers": 70}),
    "Qwen2.5-Coder-1.5B-Instruct": ("1.5B", SMALL | {"max_window_layers": 21}),
    "Qwen2.5-Coder-7B-Instruct": ("7B", {"max_window_layers": 28, "sliding_window": 131072}),
    "Qwen2.5-Coder-32B-Instruct": ("32B", {"max_window_layers": 70, "sliding_window": 131072}),
    "Qwen2.5-7B-Instruct, long contexts": (
        "7B",
        {
            "max_window_layers": 28,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
    ),
}


def config_json(name):
    """The parsed config.json of a model."""
    size, own = MODELS[name]
    hidden, layers, heads, kv_heads, feed_forward, _ = SHAPES[size]
    return PUBLISHED | {
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        **own,
    }


@functools.cache
def shapes(size):
    """The Decoder of shapes of a size."""
    name = next(name for name in MODELS if MODELS[name][0] == size)
    config = huggingface.config_from_dict(config_json(name))
    return jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))


@pytest.mark.parametrize("name", MODELS)
def test_published_configurations_are_followed(name):
    values = config_json(name)
    config = huggingface.config_from_dict(values)
    yarn = values.get("rope_scaling") and decoder.Yarn(4.0, 32768)
    assert config == decoder.Config(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=values["num_attention_heads"],
        num_key_value_heads=values["num_key_value_heads"],
        head_dim=64 if MODELS[name][0] == "0.5B" else 128,
        rope_theta=1e4 if "Math" in name else 1e6,
        rms_norm_eps=values["rms_norm_eps"],
        tie_word_embeddings=MODELS[name][0] in ("0.5B", "1.5B", "3B"),
        max_position_embeddings=values["max_position_embeddings"],
        rope_scaling=yarn,
    )
    written = huggingface.config_to_dict(config, dtype="bfloat16", original=values)
    assert {key: written[key] for key in values} == values
    assert set(written) - set(values) <= {"dtype", "rope_parameters"}  # as transformers 5 says it


OTHERS = {  # parameters of published models of other families
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b": 7_248_023_552,
}


@pytest.mark.parametrize("name", published.SIZES)
def test_sizes_for_plans_are_as_large_as_published(name):
    config = published.SIZES[name]
    tree = jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))
    known = OTHERS | {size.lower(): values[-1] for size, values in SHAPES.items()}
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == known[name]


@pytest.mark.parametrize("size", SHAPES)
def test_parameters_are_as_many_as_published(size):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(size))) == SHAPES[size][-1]


@pytest.mark.parametrize("size", SHAPES)
def test_tensors_have_the_names_and_shapes_of_transformers(size):
    import torch
    import transformers

    name = next(name for name in MODELS if MODELS[name][0] == size)
    with torch.device("meta"):
        theirs = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**config_json(name)))
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    if theirs.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    found = {key: part.file_shape for key, part in weights.parts(shapes(size)).items()}
    assert found == expected
    # In the file, too, one layer follows the other.
    layer_of = lambda key: int(key.split(".")[2]) if ".layers." in key else None
    assert [*map(layer_of, found)] == [*map(layer_of, expected)]


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", SHAPES)
def test_sharding_works_or_names_sizes_that_do(size, tensor):
    devices = jax.devices()[:tensor]
    mesh = sharding.make_mesh(tensor=tensor, devices=devices)
    tree = shapes(size)
    if SHAPES[size][3] % tensor:  # not every device gets a key/value head
        with pytest.raises(ValueError, match="dimension K=.*Valid sizes of 'tensor'") as error:
            sharding.parameter_shardings(mesh, tree)
        valid = str(error.value).rsplit(":", 1)[1].strip(" .").split(", ")
        assert valid[-1] == str(max(n for n in (1, 2, 4, 8) if SHAPES[size][3] % n == 0))
        return
    places = sharding.parameter_shardings(mesh, tree)
    local = jax.tree.map(lambda leaf, place: place.shard_shape(leaf.shape), tree, places)
    share = sum(np.prod(shape) for shape in jax.tree.leaves(local, is_leaf=_is_shape))
    assert share < SHAPES[size][-1] / tensor * 1.001  # only norms are everywhere


def _is_shape(value):
    return isinstance(value, tuple)
