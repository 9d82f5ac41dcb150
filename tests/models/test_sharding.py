"""Meshes and the table of parameter shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from models import huggingface, qwen2, sharding

CONFIG = qwen2.Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=False,
)


def abstract(config=CONFIG):
    return jax.eval_shape(lambda key: qwen2.Qwen2(key, config), jax.random.key(0))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (dict(data=8), (8, 1, 1)),
        (dict(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (dict(data=-1), (8, 1, 1)),
        (dict(fsdp=-1, tensor=2), (1, 4, 2)),
        (dict(data=8, tensor=-1), (8, 1, 1)),
    ],
)
def test_mesh_covers_all_devices(asked, expected):
    mesh = sharding.make_mesh(**asked)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == expected
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_mesh_over_given_devices():
    mesh = sharding.make_mesh(tensor=2, devices=jax.devices()[6:])
    assert mesh.devices.ravel().tolist() == jax.devices()[6:]
    assert sharding.make_mesh(devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(), "take 1 devices, but there are 8. Valid with these: data=8, fsdp=1, tensor=1"),
        (dict(data=3), "data=3, fsdp=1, tensor=1 take 3 devices, but there are 8"),
        (dict(fsdp=4, tensor=4), "take 16 devices.* Valid with these: data=1, fsdp=2, tensor=4"),
        (dict(data=-1, tensor=3), "take a multiple of 3 devices, but there are 8"),
        (dict(data=-1, fsdp=-1), "at most one is -1"),
        (dict(data=0, fsdp=8), "each is 1 or more"),
    ],
)
def test_impossible_mesh_names_devices_and_a_valid_choice(asked, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**asked)


def test_every_parameter_has_its_rule():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shardings = sharding.parameter_shardings(mesh, abstract())
    leaves = jax.tree.leaves(shardings)
    found = dict(zip(sharding.parameter_names(abstract()), (x.spec for x in leaves), strict=True))
    assert found == {
        "embed/table_VD": P("tensor", "fsdp"),
        "blocks/attn_norm/scale_D": P(),
        "blocks/attn/w_q_DNH": P(None, "fsdp", "tensor", None),
        "blocks/attn/w_k_DKH": P(None, "fsdp", "tensor", None),
        "blocks/attn/w_v_DKH": P(None, "fsdp", "tensor", None),
        "blocks/attn/w_o_NHD": P(None, "tensor", None, "fsdp"),
        "blocks/attn/b_q_NH": P(None, "tensor", None),
        "blocks/attn/b_k_KH": P(None, "tensor", None),
        "blocks/attn/b_v_KH": P(None, "tensor", None),
        "blocks/mlp_norm/scale_D": P(),
        "blocks/mlp/w_gate_DF": P(None, "fsdp", "tensor"),
        "blocks/mlp/w_up_DF": P(None, "fsdp", "tensor"),
        "blocks/mlp/w_down_FD": P(None, "tensor", "fsdp"),
        "final_norm/scale_D": P(),
        "head/w_DV": P("fsdp", "tensor"),
    }
    assert set(found) == set(huggingface.LAYOUT)


def test_unused_rules_are_none():
    names = sharding.parameter_names(abstract())
    for pattern, _ in sharding.RULES:
        assert any(sharding.re.search(pattern, name) for name in names), pattern


def test_rules_hold_for_optimizer_moments():
    mesh = sharding.make_mesh(fsdp=8)
    moments = jax.eval_shape(lambda: optax.adam(1e-3).init(abstract_zeros()))[0].mu
    specs = [s.spec for s in jax.tree.leaves(sharding.parameter_shardings(mesh, moments))]
    wanted = sharding.parameter_shardings(mesh, abstract())
    assert specs == [s.spec for s in jax.tree.leaves(wanted)]


def abstract_zeros():
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract())


def test_unlisted_parameter_is_an_error():
    tree = {"blocks": {"attn": {"q_norm_H": jnp.zeros((2, 8))}}}
    message = r"No sharding rule matches 'blocks/attn/q_norm_H' of shape \(2, 8\)"
    with pytest.raises(ValueError, match=message):
        sharding.parameter_shardings(sharding.make_mesh(data=8), tree)


def test_axis_that_does_not_divide_is_an_error():
    message = (
        "'blocks/attn/b_k_KH': dimension K=2 is not divisible by mesh axis tensor=4. "
        "Valid sizes of 'tensor' on 8 devices: 1, 2."
    )
    with pytest.raises(ValueError, match=message):
        sharding.parameter_shardings(sharding.make_mesh(data=2, tensor=4), abstract())


def test_sharded_model_computes_the_same():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    model = qwen2.Qwen2(jax.random.key(1), CONFIG)
    placed = jax.device_put(model, sharding.parameter_shardings(mesh, model))
    token_BT = np.arange(32, dtype=np.int32).reshape(4, 8)
    segment_BT = np.ones_like(token_BT)

    @jax.jit
    def logits(model, token_BT, segment_BT):
        return model.logits(model.hidden(token_BT, segment_BT))

    rows = jax.device_put((token_BT, segment_BT), sharding.batch_sharding(mesh))
    assert rows[0].addressable_shards[0].data.shape == (1, 8)
    expected = logits(model, token_BT, segment_BT)
    np.testing.assert_allclose(logits(placed, *rows), expected, rtol=0, atol=1e-6)
