"""Meshes and the table of parameter shardings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from models import decoder, lora, sharding, weights
from models.engine import placement
from tests.models import configs

CONFIG = configs.small(tie_word_embeddings=False)
WIDE = dataclasses.replace(CONFIG, num_attention_heads=8, num_key_value_heads=4)


def abstract(config=CONFIG):
    return jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))


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
        "embed/table_VD": P(None, ("fsdp", "tensor")),
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
    others = abstract(dataclasses.replace(CONFIG, model_type="qwen3"))
    leaves = jax.tree.leaves(sharding.parameter_shardings(mesh, others))
    own = dict(zip(sharding.parameter_names(others), (x.spec for x in leaves), strict=True))
    norms = dict.fromkeys(("blocks/attn/q_norm/scale_H", "blocks/attn/k_norm/scale_H"), P())
    assert own == {name: spec for name, spec in found.items() if "/b_" not in name} | norms
    assert {*found, *own} == set(weights.LAYOUT)


def test_unused_rules_are_none():
    add = lambda model: lora.add(model, jax.random.key(0), lora.Settings(1, 1, tuple(lora.TARGETS)))
    names = sharding.parameter_names(jax.eval_shape(add, abstract()))
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


def test_axes_that_together_do_not_divide_are_an_error():
    message = (
        "'embed/table_VD': dimension D=12 is not divisible by mesh axis fsdp \\* tensor=8. "
        "Valid sizes of 'fsdp \\* tensor' on 8 devices: 1, 2, 4."
    )
    tree = {"embed": {"table_VD": jnp.zeros((64, 12))}}
    with pytest.raises(ValueError, match=message):
        sharding.parameter_shardings(sharding.make_mesh(fsdp=4, tensor=2), tree)


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(fsdp=4, tensor=2), dict(fsdp=2, tensor=2)])
def test_embedded_rows_are_those_of_the_table(sizes, sequence):
    """Values exactly, the gradient of tokens that several devices have in common to rounding."""
    mesh = sharding.make_mesh(data=-1, **sizes)
    residual = sharding.residual_sharding(mesh, sequence=sequence)
    rng = np.random.default_rng(0)
    table_VD = rng.normal(size=(64, 32)).astype(np.float32)
    slope_BTD = rng.normal(size=(8, 6, 32)).astype(np.float32)
    token_BT = rng.integers(0, 5, (8, 6)).astype(np.int32)

    def weighted(table_VD, token_BT):
        x_BTD = sharding.embedded_rows(table_VD, token_BT, residual, jnp.float32)
        return (x_BTD * slope_BTD).sum(), x_BTD

    split = sharding.parameter_shardings(mesh, {"embed": {"table_VD": table_VD}})
    placed_VD = jax.device_put(table_VD, split["embed"]["table_VD"])
    rows_BT = jax.device_put(token_BT, sharding.batch_sharding(mesh))
    program = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    (_, x_BTD), grad_VD = program(placed_VD, rows_BT)
    assert x_BTD.sharding.is_equivalent_to(residual, 3)
    np.testing.assert_array_equal(x_BTD, table_VD[token_BT])
    expected_VD = np.zeros_like(table_VD)
    np.add.at(expected_VD, token_BT, slope_BTD)
    np.testing.assert_allclose(grad_VD, expected_VD, rtol=1e-5, atol=1e-5)


def test_gathered_weights_are_whole_along_fsdp_and_split_along_tensor():
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    block = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), abstract().blocks)
    placed = jax.jit(lambda block: sharding.gathered(mesh, block))(block)
    shards = {
        name: x.addressable_shards[0].data.shape
        for name, x in zip(sharding.parameter_names(placed), jax.tree.leaves(placed), strict=True)
    }
    assert shards["attn/w_q_DNH"] == (32, 2, 8)
    assert shards["attn/b_k_KH"] == (1, 8)
    assert shards["mlp/w_down_FD"] == (24, 32)
    assert shards["mlp_norm/scale_D"] == (32,)


def test_sharded_model_computes_the_same():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    model = decoder.Decoder(jax.random.key(1), CONFIG)
    placed = jax.device_put(model, sharding.parameter_shardings(mesh, model))
    token_BT = np.arange(32, dtype=np.int32).reshape(4, 8)
    until_BT = np.full_like(token_BT, 8)

    @jax.jit
    def logits(model, token_BT, until_BT):
        return model.logits(model.hidden(token_BT, until_BT))

    rows = jax.device_put((token_BT, until_BT), sharding.batch_sharding(mesh))
    assert rows[0].addressable_shards[0].data.shape == (1, 8)
    expected = logits(model, token_BT, until_BT)
    np.testing.assert_allclose(logits(placed, *rows), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("moved_bytes", [2**28, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("tensor", "replicas"), [(2, 4), (4, 2), (2, 1), (1, 0)])
def test_replicas_get_the_values_in_their_shardings(monkeypatch, tensor, replicas, moved_bytes):
    monkeypatch.setattr(placement, "MOVED_BYTES", moved_bytes)
    model = decoder.Decoder(jax.random.key(0), WIDE)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    spread = jax.device_put(model, sharding.parameter_shardings(mesh, model))
    meshes = placement.meshes(tensor=tensor, replicas=replicas)
    copies = placement.copies(spread, jnp.bfloat16, meshes, separate=False)
    assert len(copies) == len(meshes) == (replicas or 1)  # one where devices are CPUs
    assert len({device for mesh in meshes for device in mesh.devices.flat}) == tensor * len(meshes)
    for mesh, copy in zip(meshes, copies, strict=True):
        wanted = sharding.parameter_shardings(mesh, model)
        for leaf, original, place in zip(*map(jax.tree.leaves, (copy, model, wanted)), strict=True):
            assert leaf.sharding == place
            np.testing.assert_array_equal(leaf, original.astype(jnp.bfloat16))


def test_what_lies_as_wanted_is_not_copied():
    model = decoder.Decoder(jax.random.key(0), CONFIG)
    meshes = placement.meshes(tensor=1, replicas=1)
    [copy] = placement.copies(model, jnp.float32, meshes, separate=False)
    for leaf, original in zip(*map(jax.tree.leaves, (copy, model)), strict=True):
        assert leaf.unsafe_buffer_pointer() == original.unsafe_buffer_pointer()


@pytest.mark.parametrize("tensor", [1, 2])
def test_layers_may_have_arrays_of_their_own(tensor):
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    model = decoder.Decoder(jax.random.key(0), WIDE)
    spread = jax.device_put(model, sharding.parameter_shardings(mesh, model))
    meshes = placement.meshes(tensor=tensor, replicas=2)
    stacked = placement.copies(spread, jnp.bfloat16, meshes, separate=False)
    separate = placement.copies(spread, jnp.bfloat16, meshes, separate=True)
    for whole, apart in zip(stacked, separate, strict=True):
        np.testing.assert_array_equal(apart.embed.table_VD[...], whole.embed.table_VD[...])
        arrays = jax.tree.leaves(apart.blocks, is_leaf=lambda leaf: isinstance(leaf, tuple))
        for layers, array in zip(arrays, jax.tree.leaves(whole.blocks), strict=True):
            assert isinstance(layers, tuple) and len(layers) == len(array)
            for layer, slice in zip(layers, array, strict=True):
                np.testing.assert_array_equal(layer, slice)
                wanted = NamedSharding(array.sharding.mesh, P(*array.sharding.spec[1:]))
                assert layer.sharding.is_equivalent_to(wanted, layer.ndim)


def test_two_weight_sets_of_the_same_layers_get_one_copy_of_them():
    model = decoder.Decoder(jax.random.key(0), CONFIG)
    made = placement.Copies(jnp.float32, placement.meshes(tensor=1, replicas=1), separate=True)
    ([policy], [frozen]) = (made.make(name, model) for name in ("policy", "frozen"))
    assert buffers(policy) == buffers(frozen)
    assert not buffers(policy.blocks) & buffers(model.blocks)
    assert buffers(policy.embed) == buffers(model.embed)


def buffers(tree):
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return {shard.data.unsafe_buffer_pointer() for shard in shards}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("tensor", "replicas"), [(1, 1), (2, 1), (2, 4)])
@pytest.mark.parametrize("sizes", [dict(data=1, fsdp=8), dict(data=4, tensor=2), None])
def test_a_donation_that_is_allowed_leaves_the_copies(sizes, tensor, replicas, dtype):
    model = jax.tree.map(lambda leaf: leaf + 0, decoder.Decoder(jax.random.key(0), WIDE))
    if sizes is not None:
        mesh = sharding.make_mesh(**sizes)
        model = jax.device_put(model, sharding.parameter_shardings(mesh, model))
    expected = [np.asarray(leaf.astype(dtype)) for leaf in jax.tree.leaves(model)]
    meshes = placement.meshes(tensor=tensor, replicas=replicas)
    copies = placement.copies(model, dtype, meshes, separate=False)
    allowed = not placement.shares(model, dtype)
    assert allowed == (dtype != jnp.float32)
    assert not (allowed and any(buffers(copy) & buffers(model) for copy in copies))
    if allowed:
        jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(model)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(model))
    for copy in copies:
        for leaf, values in zip(jax.tree.leaves(copy), expected, strict=True):
            np.testing.assert_array_equal(leaf, values)


def test_what_two_weight_sets_have_in_common_is_copied_once():
    meshes = placement.meshes(tensor=2, replicas=2)
    made = placement.Copies(jnp.float32, meshes, separate=False)
    mesh = sharding.make_mesh(fsdp=8)
    base, head, newer = (
        jax.device_put(
            {"embed": {"table_VD": np.full((64, 32), n, np.float32)}},
            sharding.parameter_shardings(mesh, {"embed": {"table_VD": np.zeros((64, 32))}}),
        )
        for n in range(3)
    )
    tree = lambda first: {"base": base, "head": first}
    policy = made.make("policy", tree(head))
    frozen = made.make("frozen", tree(base))
    again = made.make("policy", tree(newer))
    for old, other, new in zip(policy, frozen, again, strict=True):
        assert buffers(old["base"]) == buffers(other) == buffers(new["base"])
        assert not buffers(old["head"]) & buffers(new["head"])
        np.testing.assert_array_equal(new["head"]["embed"]["table_VD"], 2)
    made.forget()
    for new, after in zip(again, made.make("policy", tree(newer)), strict=True):
        assert not buffers(new) & buffers(after)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(tensor=3, replicas=0), "tensor=3 does not divide 8 devices; valid: .1, 2, 4, 8."),
        (dict(tensor=4, replicas=3), "replicas=3 with tensor=4, .* at most 2"),
    ],
)
def test_replicas_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        placement.meshes(**sizes)
