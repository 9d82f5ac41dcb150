"""Adapters against PEFT over transformers' models.

Dimensions:
  B rows    T tokens in a row    L layers    I inputs    O outputs    P rank    V vocabulary
"""

import copy
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec as P

from models import decoder, huggingface, lora, sharding
from models.engine.types import Request, Sampling
from tests.models import configs, engines

# PEFT reads a property that transformers 5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOLERANCE = 1e-4  # of the largest value
SETTINGS = lora.Settings(4, 6, tuple(lora.TARGETS))  # a scale that is not 1
CONFIG = configs.small(head_dim=16)


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def loud(shapes, *, seed=0):
    """Arrays of these shapes, so large that a mistake in any of them shows."""
    rng = np.random.default_rng(seed)
    values = lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype)
    return jax.device_put(jax.tree.map(values, shapes))


@functools.cache
def base_model():
    return loud(jax.eval_shape(lambda key: decoder.Decoder(key, CONFIG), jax.random.key(0)))


def loud_adapters(base, settings=SETTINGS, *, seed=0):
    key = jax.random.key(0)
    return loud(jax.eval_shape(lambda key: lora.init(base, key, settings), key), seed=seed)


def adapted(base, settings=SETTINGS):
    return lora.combine(loud_adapters(base, settings), base)


def tokens(rows=2, length=20, *, seed=0):
    return np.random.default_rng(seed).integers(0, 64, (rows, length)).astype(np.int32)


@jax.jit
def forward(model, token_BT):
    return model.logits(model.hidden(token_BT, jnp.full_like(token_BT, token_BT.shape[1])))


def gap(ours, theirs):
    """Largest difference as a share of the largest value."""
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def same_arrays(tree, other):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(leaf is leaf_ for leaf, leaf_ in pairs)


def in_peft(expected, folder, **options):
    """PEFT's model over the transformers model, with the adapters in `folder`."""
    import peft

    return peft.PeftModel.from_pretrained(copy.deepcopy(expected.model), folder, **options)


def logits_of(torch_model, token_BT):
    import torch

    with torch.no_grad():
        return torch_model(torch.tensor(token_BT)).logits.numpy()


# ---- Settings and new adapters ----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(rank=0, alpha=8), "rank=0 must be at least 1"),
        (dict(rank=4, alpha=0), r"alpha=0 must be positive, e.g. alpha=8"),
        (dict(rank=4, alpha=8, targets=()), r"targets=\(\) must name at least one"),
        (dict(rank=4, alpha=8, targets=("q",)), r"targets=\('q',\) .* each one of q_proj, k_proj"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        lora.Settings(**{"targets": ("q_proj",)} | values)


@pytest.mark.slow
def test_new_adapters_change_nothing():
    base = base_model()
    model = lora.add(base, jax.random.key(1), SETTINGS)
    np.testing.assert_array_equal(forward(model, tokens()), forward(base, tokens()))


@pytest.mark.slow
def test_init_is_that_of_peft(reference):
    """Uniform with PEFT's bound in every matrix and layer, drawn independently; B is 0."""
    import peft

    expected, targets = reference("wide_heads"), ("q_proj", "o_proj", "up_proj", "down_proj")
    config = peft.LoraConfig(r=64, target_modules=list(targets), task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(copy.deepcopy(expected.model), config).state_dict()
    base, settings = huggingface.load(expected.folder), lora.Settings(64, 64, targets)
    start = jax.jit(lambda key: lora.init(base, key, settings))
    adapters, seen = start(jax.random.key(0)), []
    for target in targets:
        part, name, _, _ = lora.TARGETS[target]
        low_rank = adapters["blocks"][part][name]
        assert not low_rank.b_PO[...].any()
        for layer, a_IP in enumerate(np.asarray(low_rank.a_IP[...])):
            stem = f"model.layers.{layer}.{lora.PARTS[part]}.{target}"
            other_PI = theirs[f"base_model.model.{stem}.lora_A.default.weight"].numpy()
            assert a_IP.shape == other_PI.T.shape
            assert np.abs(a_IP).max() == pytest.approx(np.abs(other_PI).max(), rel=0.01)
            assert a_IP.std() == pytest.approx(other_PI.std(), rel=0.05)
            assert abs(a_IP.mean()) < 0.1 * a_IP.std()
            seen.append(a_IP.ravel()[:512])
    assert np.abs(np.corrcoef(seen) - np.eye(len(seen))).max() < 0.3
    other = start(jax.random.key(1))["blocks"]["attn"]["lora_q"].a_IP[...]
    assert not np.array_equal(adapters["blocks"]["attn"]["lora_q"].a_IP[...], other)


# ---- Taking apart and putting together ----


@pytest.mark.slow
@pytest.mark.parametrize("targets", [tuple(lora.TARGETS), ("v_proj", "down_proj"), ("o_proj",)])
def test_split_and_combine_are_inverse_and_copy_nothing(targets):
    base = base_model()
    model = lora.add(base, jax.random.key(1), lora.Settings(4, 8, targets))
    assert jax.tree.structure(base) == jax.tree.structure(base_model())  # `add` left it alone
    adapters, found = lora.split(model)
    assert jax.tree.structure(found) == jax.tree.structure(base)
    assert same_arrays(found, base)
    again = lora.combine(adapters, found)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert same_arrays(again, model)
    assert jax.tree.structure(found) == jax.tree.structure(base)  # and so did `combine`
    names = set(sharding.parameter_names(model))
    assert set(sharding.parameter_names(adapters)) == names - set(sharding.parameter_names(base))
    assert len(jax.tree.leaves(adapters)) == 2 * len(targets)
    assert "blocks/attn/lora_o/a_IP" in names or "o_proj" not in targets


def test_split_and_combine_while_traced():
    model = adapted(base_model())
    adapters, base = jax.eval_shape(lora.split, model)
    assert jax.tree.structure((adapters, base)) == jax.tree.structure(lora.split(model))
    again = jax.eval_shape(lora.combine, adapters, base)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert sharding.parameter_names(again) == sharding.parameter_names(model)


def test_model_without_adapters_splits_into_none():
    adapters, base = lora.split(base_model())
    assert jax.tree.leaves(adapters) == []
    assert jax.tree.structure(base) == jax.tree.structure(base_model())


def test_adapters_compute_in_the_dtype_of_the_input():
    model = adapted(base_model())
    low_rank = jax.tree.map(lambda leaf: leaf[0], model.blocks.mlp.lora_up)
    x_XI = jax.random.normal(jax.random.key(3), (5, 32))
    exact_XO = (np.float64(x_XI) @ np.float64(low_rank.a_IP[...])) @ low_rank.b_PO[...] * 6 / 4
    assert low_rank(x_XI).dtype == jnp.float32
    assert gap(low_rank(x_XI), exact_XO) < 1e-6
    half_XO = low_rank(x_XI.astype(jnp.bfloat16))
    assert half_XO.dtype == jnp.bfloat16
    assert gap(np.float32(half_XO), exact_XO) < 0.02


# ---- PEFT folders ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "targets"),
    [
        ("tied", tuple(lora.TARGETS)),
        ("qwen3", tuple(lora.TARGETS)),
        ("llama", tuple(lora.TARGETS)),
        ("mistral", tuple(lora.TARGETS)),
        ("one_kv_head", ("q_proj", "down_proj")),
    ],
)
def test_saved_adapters_give_the_same_logits_in_peft(reference, tmp_path, shape, targets):
    expected = reference(shape)
    base = huggingface.load(expected.folder)
    model = adapted(base, lora.Settings(4, 6, targets))
    lora.save(tmp_path, lora.split(model)[0], base_folder=expected.folder)
    theirs = logits_of(in_peft(expected, tmp_path), tokens())
    assert gap(forward(model, tokens()), theirs) < TOLERANCE
    assert gap(expected.logits(tokens()), theirs) > 0.1  # loud enough to test something

    again = lora.load(tmp_path, base)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for leaf, leaf_ in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(leaf, leaf_)


@pytest.fixture(scope="module")
def in_both(reference, tmp_path_factory):
    """A model with adapters and the logits that PEFT computes with them."""
    expected, folder = reference("tied"), tmp_path_factory.mktemp("adapters")
    model = adapted(huggingface.load(expected.folder))
    lora.save(folder, lora.split(model)[0], base_folder=expected.folder)
    return model, logits_of(in_peft(expected, folder), tokens())


def swapped(one, other):
    def change(part):
        first, second = getattr(part, one), getattr(part, other)
        setattr(part, one, second)
        setattr(part, other, first)

    return change


def scaled(name, factor):
    def change(part):
        b_PO = getattr(part, name).b_PO
        b_PO[...] = np.asarray(b_PO[...]) * np.float32(factor)

    return change


def layers_reversed(part):
    b_PO = part.lora_gate.b_PO
    b_PO[...] = np.asarray(b_PO[...])[::-1]


@pytest.mark.parametrize(
    ("part", "change"),
    [("attn", swapped("lora_k", "lora_v")), ("mlp", swapped("lora_gate", "lora_up"))]
    + [("attn", scaled(f"lora_{name}", 0)) for name in "qkvo"]
    + [("mlp", scaled("lora_down", 0)), ("mlp", scaled("lora_up", 1.01)), ("mlp", layers_reversed)],
)
def test_parity_with_peft_would_notice(in_both, part, change):
    model, theirs = in_both
    model = lora.combine(*lora.split(model))
    assert gap(forward(model, tokens()), theirs) < TOLERANCE
    change(getattr(model.blocks, part))
    assert gap(forward(model, tokens()), theirs) > 10 * TOLERANCE


def test_config_says_what_servers_need(tmp_path):
    adapters = lora.split(adapted(base_model(), lora.Settings(4, 8.0, ("v_proj", "q_proj"))))[0]
    lora.save(tmp_path, adapters, base_folder="Qwen/Qwen2.5-7B-Instruct")
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    needed = dict(
        peft_type="LORA",
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        bias="none",
        base_model_name_or_path="Qwen/Qwen2.5-7B-Instruct",
        modules_to_save=None,
        use_dora=False,
        use_rslora=False,
    )
    assert values | needed == values
    assert isinstance(values["lora_alpha"], int)  # servers declare it so
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    stem = "base_model.model.model.layers.1.self_attn."
    assert len(shapes) == 2 * 2 * CONFIG.num_hidden_layers
    assert shapes[f"{stem}q_proj.lora_A.weight"] == (4, 32)
    assert shapes[f"{stem}q_proj.lora_B.weight"] == (64, 4)
    assert shapes[f"{stem}v_proj.lora_B.weight"] == (32, 4)


def test_tokenizer_comes_along(tmp_path):
    source = tmp_path / "base"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    adapters = lora.split(adapted(base_model()))[0]
    lora.save(tmp_path / "out", adapters, base_folder=source, tokenizer_folder=source)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_nothing_to_save_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no adapters to save"):
        lora.save(tmp_path / "out", lora.split(base_model())[0], base_folder="base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("targets", "rslora", "dtype"),
    [
        ("all-linear", False, "float32"),
        (["k_proj", "up_proj"], True, "float32"),
        (r".*\.(o|down)_proj", False, "bfloat16"),
    ],
)
def test_folder_of_peft_gives_its_logits(reference, tmp_path, targets, rslora, dtype):
    import peft
    import torch

    expected = reference("wide_heads")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_rslora=rslora, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(copy.deepcopy(expected.model), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape).to(getattr(torch, dtype)))
    theirs.save_pretrained(tmp_path)
    if dtype == "bfloat16":  # as training in half precision writes them
        file = tmp_path / "adapter_model.safetensors"
        half = {
            name: tensor.astype(jnp.bfloat16)
            for name, tensor in safetensors.numpy.load_file(file).items()
        }
        safetensors.numpy.save_file(half, file, metadata={"format": "pt"})
    ours = lora.load(tmp_path, huggingface.load(expected.folder))
    assert gap(forward(ours, tokens()), logits_of(theirs, tokens())) < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(use_dora=True), "use_dora=True"),
        (dict(bias="all"), "bias='all'"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save="),
        (dict(rank_pattern={"q_proj": 8}), "rank_pattern="),
        (dict(alpha_pattern={"q_proj": 8}), "alpha_pattern="),
        (dict(init_lora_weights="pissa"), "init_lora_weights='pissa' changed the weights"),
        (dict(peft_type="IA3"), "peft_type='IA3'"),
        (dict(something_new={"a": 1}), "something_new="),
        (dict(r=None), "r is missing"),
    ],
)
def test_unknown_kinds_of_adapters_are_refused(tmp_path, changes, message):
    base = base_model()
    lora.save(tmp_path, lora.split(adapted(base))[0], base_folder="base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=re.escape(message)):
        lora.load(tmp_path, base)


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    base = base_model()
    lora.save(tmp_path, lora.split(adapted(base))[0], base_folder="base")
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    stem = "base_model.model.model.layers"
    del tensors[f"{stem}.1.mlp.up_proj.lora_A.weight"]
    tensors[f"{stem}.0.mlp.up_proj.lora_B.weight"] = np.zeros((4, 48), np.float32)
    tensors[f"{stem}.2.mlp.up_proj.lora_B.weight"] = np.zeros((48, 4), np.float32)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        lora.load(tmp_path, base)
    assert str(error.value).splitlines()[1:] == [
        f"  shape of {stem}.0.mlp.up_proj.lora_B.weight: [4, 48], expected [48, 4]",
        f"  missing: {stem}.1.mlp.up_proj.lora_A.weight [4, 32]",
        f"  unexpected: {stem}.2.mlp.up_proj.lora_B.weight [48, 4]",
    ]
    safetensors.numpy.save_file({"base_model.model.lm_head.lora_A.weight": np.zeros((4, 32))}, path)
    with pytest.raises(ValueError, match="none of its tensors adapts q_proj, k_proj"):
        lora.load(tmp_path, base)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors does not exist"):
        lora.load(tmp_path, base)


# ---- Merging ----


@pytest.mark.slow
def test_merged_model_gives_the_same_logits_in_transformers(reference, tmp_path):
    import transformers

    model = adapted(huggingface.load(reference("wide_heads").folder))
    huggingface.save(tmp_path, lora.merged(model))
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert gap(logits_of(theirs.eval(), tokens()), forward(model, tokens())) < TOLERANCE


def test_merged_matrix_is_the_rounded_float32_sum():
    to_half = lambda leaf: jnp.asarray(np.asarray(leaf).astype(jnp.bfloat16))
    half = jax.tree.map(to_half, base_model())
    model = adapted(half, lora.Settings(4, 6, ("o_proj", "up_proj")))
    merged = lora.merged(model)
    assert jax.tree.structure(merged) == jax.tree.structure(half)
    for name, low_rank, w, found in (
        ("o", model.blocks.attn.lora_o, half.blocks.attn.w_o_NHD, merged.blocks.attn.w_o_NHD),
        ("up", model.blocks.mlp.lora_up, half.blocks.mlp.w_up_DF, merged.blocks.mlp.w_up_DF),
    ):
        change = np.float64(low_rank.a_IP[...]) @ np.float64(low_rank.b_PO[...]) * 6 / 4
        exact = np.float64(w[...]) + change.reshape(w.shape)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float64(found[...]), exact, rtol=2**-8, atol=1e-6), name
    assert merged.blocks.attn.w_q_DNH[...] is half.blocks.attn.w_q_DNH[...]
    assert merged.embed.table_VD[...] is half.embed.table_VD[...]


def test_merging_donates_only_if_asked():
    own = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), base_model())
    model = adapted(own, lora.Settings(4, 6, ("down_proj",)))
    expected = lora.merged(model).blocks.mlp.w_down_FD[...]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(model))
    found = lora.merged(model, donate=True).blocks.mlp.w_down_FD[...]
    np.testing.assert_array_equal(found, expected)
    assert model.blocks.mlp.w_down_FD[...].is_deleted()
    assert not model.blocks.mlp.w_up_DF[...].is_deleted()


def test_merging_takes_the_memory_of_one_layer():
    layers, width = 16, 128
    w_LDF = jnp.zeros((layers, width, width))
    a_LIP, b_LPO = jnp.zeros((layers, width, 4)), jnp.zeros((layers, 4, width))
    program = jax.jit(lora._merged_matrix, static_argnames="scale", donate_argnums=0)
    memory = program.lower(w_LDF, a_LIP, b_LPO, scale=2.0).compile().memory_analysis()
    assert memory.alias_size_in_bytes == w_LDF.nbytes
    assert memory.temp_size_in_bytes < w_LDF.nbytes / 4


# ---- Gradients ----


def log_likelihood(model, token_BT, execution=None):
    """Log-likelihood of the next tokens, with weights of both signs."""
    hidden_BTD = model.hidden(token_BT, jnp.full_like(token_BT, token_BT.shape[1]), execution)
    logp_BTV = jax.nn.log_softmax(model.logits(hidden_BTD)[:, :-1])
    logp_BT = jnp.take_along_axis(logp_BTV, token_BT[:, 1:, None], axis=-1)[..., 0]
    return (logp_BT * weights(logp_BT.shape)).sum()


def weights(shape):
    """Of both signs; what they weigh does not cancel, or the sum would be rounding alone."""
    return 0.5 + np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


@jax.jit
def adapter_gradient(adapters, base, token_BT):
    objective = lambda adapters: log_likelihood(lora.combine(adapters, base), token_BT)
    return jax.value_and_grad(objective)(adapters)


@pytest.mark.slow
def test_gradients_equal_those_of_peft(reference, tmp_path):
    import torch

    expected = reference("wide_heads")
    adapters, base = lora.split(adapted(huggingface.load(expected.folder)))
    value, grads = adapter_gradient(adapters, base, tokens())

    lora.save(tmp_path, adapters, base_folder=expected.folder)
    theirs = in_peft(expected, tmp_path, is_trainable=True)
    token_BT = torch.tensor(tokens()).long()
    logp_BTV = torch.log_softmax(theirs(token_BT).logits[:, :-1], -1)
    logp_BT = logp_BTV.gather(-1, token_BT[:, 1:, None])[..., 0]
    loss = (logp_BT * torch.tensor(weights(logp_BT.shape))).sum()
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), rel=TOLERANCE)

    grad_of = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for target, (part, name, _, _) in lora.TARGETS.items():
        low_rank = grads["blocks"][part][name]
        for side, letter in (("a_IP", "A"), ("b_PO", "B")):
            for layer, ours in enumerate(np.asarray(getattr(low_rank, side)[...])):
                stem = f"model.layers.{layer}.{lora.PARTS[part]}.{target}"
                other = grad_of.pop(f"base_model.model.{stem}.lora_{letter}.default.weight")
                assert gap(ours, other.numpy().T) < TOLERANCE, (stem, letter)
    assert not grad_of  # PEFT trains nothing else


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots", "attention"])
def test_gradients_do_not_depend_on_remat(remat):
    adapters, base = lora.split(adapted(base_model()))
    execution = decoder.Execution(jnp.float32, remat)

    def objective(adapters, base):
        return log_likelihood(lora.combine(adapters, base), tokens(), execution)

    _, expected = adapter_gradient(adapters, base, tokens())
    grads = jax.jit(jax.grad(objective))(adapters, base)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert gap(ours, theirs) < 1e-5


def products(program, *args):
    """Shapes, in either order, of the results of all matrix products of a program."""
    text = jax.jit(program).lower(*args).as_text()
    found = re.findall(r"stablehlo\.dot_general.*-> tensor<(\d+)x(\d+)xf32>", text)
    return {tuple(sorted(map(int, shape))) for shape in found}


@pytest.mark.parametrize("remat", ["none", "full"])
def test_gradients_of_the_base_are_never_formed(remat):
    adapters, base = lora.split(adapted(base_model()))
    execution = decoder.Execution(jnp.float32, remat)
    token_BT = tokens(2, 20)  # 40 tokens: no dimension of a parameter
    matrices = {(32, 64), (32, 32), (32, 48)}  # D with N*H, K*H and F

    def value(adapters, base):
        return log_likelihood(lora.combine(adapters, base), token_BT, execution)

    assert not products(jax.grad(value), adapters, base) & matrices
    assert products(jax.grad(value, argnums=(0, 1)), adapters, base) >= matrices


# ---- Sharding ----


def test_every_adapter_has_its_rule():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    base = jax.eval_shape(base_model)
    shapes = jax.eval_shape(lambda: lora.init(base, jax.random.key(0), SETTINGS))
    shardings = sharding.parameter_shardings(mesh, shapes)
    specs = [leaf.spec for leaf in jax.tree.leaves(shardings)]
    wide, tall = (
        {"a_IP": P(None, "fsdp", None), "b_PO": P(None, None, "tensor")},
        {"a_IP": P(None, "tensor", None), "b_PO": P(None, None, "fsdp")},
    )
    expected = {
        f"blocks/{part}/{name}/{side}": spec
        for part, name, _, _ in lora.TARGETS.values()
        for side, spec in (tall if name in ("lora_o", "lora_down") else wide).items()
    }
    assert dict(zip(sharding.parameter_names(shapes), specs, strict=True)) == expected


def test_adapters_are_made_where_they_belong():
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    start = lambda key: lora.init(base_model(), key, lora.Settings(4, 8, ("o_proj",)))
    key = jax.random.key(0)
    shardings = sharding.parameter_shardings(mesh, jax.eval_shape(start, key))
    made = jax.jit(start, out_shardings=shardings)(key)
    for leaf, leaf_, place in zip(
        *map(jax.tree.leaves, (made, start(key), shardings)), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
        np.testing.assert_array_equal(leaf, leaf_)


def test_meshes_that_divide_the_matrices_divide_the_adapters():
    for tensor in (1, 2, 4, 8):
        for fsdp in (1, 2, 4, 8):
            if tensor * fsdp > 8:
                continue
            mesh = sharding.make_mesh(data=-1, fsdp=fsdp, tensor=tensor)
            adapters, base = lora.split(
                jax.eval_shape(lambda: lora.add(base_model(), jax.random.key(0), SETTINGS))
            )
            try:
                sharding.parameter_shardings(mesh, base)
            except ValueError:
                continue
            sharding.parameter_shardings(mesh, adapters)


def test_mesh_that_does_not_divide_is_an_error():
    base = jax.eval_shape(base_model)
    adapters = jax.eval_shape(lambda: lora.init(base, jax.random.key(0), SETTINGS))
    odd = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, 4, 47), x.dtype), adapters)
    with pytest.raises(ValueError, match="b_PO': dimension O=47 is not divisible by mesh axis"):
        sharding.parameter_shardings(sharding.make_mesh(data=4, tensor=2), odd)


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", [dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, tensor=2), dict(fsdp=8)]
)
def test_sharded_adapters_compute_the_same(axes, tmp_path):
    mesh = sharding.make_mesh(**axes)
    adapters, base = lora.split(adapted(base_model()))
    token_BT = tokens(8, 12)
    value, grads = adapter_gradient(adapters, base, token_BT)
    rows_BT = jax.device_put(token_BT, sharding.batch_sharding(mesh))
    spread_base = jax.device_put(base, sharding.parameter_shardings(mesh, base))
    lora.save(tmp_path / "one", adapters, base_folder="base")
    spread, _ = lora.split(lora.load(tmp_path / "one", spread_base, mesh=mesh))
    assert not spread["blocks"]["mlp"]["lora_up"].a_IP[...].sharding.is_fully_replicated
    spread_value, spread_grads = adapter_gradient(spread, spread_base, rows_BT)
    assert float(spread_value) == pytest.approx(float(value), rel=1e-6)
    for ours, theirs in zip(jax.tree.leaves(spread_grads), jax.tree.leaves(grads), strict=True):
        assert gap(np.asarray(ours), np.asarray(theirs)) < TOLERANCE
    lora.save(tmp_path / "spread", spread, base_folder="base")
    name = "adapter_model.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "spread" / name).read_bytes()


@pytest.mark.slow
def test_sharded_model_merges_in_its_own_sharding():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    model = adapted(base_model(), lora.Settings(4, 6, ("o_proj", "up_proj")))
    spread = jax.device_put(model, sharding.parameter_shardings(mesh, model))
    alone, merged = lora.merged(model), lora.merged(spread)
    wanted = sharding.parameter_shardings(mesh, merged)
    for ours, theirs, place in zip(*map(jax.tree.leaves, (merged, alone, wanted)), strict=True):
        assert ours.sharding.is_equivalent_to(place, ours.ndim)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


# ---- In the engine ----


def buffers(leaves):
    return [leaf.unsafe_buffer_pointer() for leaf in leaves]


def of_base(model, leaves):
    names = sharding.parameter_names(model)
    return [leaf for name, leaf in zip(names, leaves, strict=True) if "lora_" not in name]


def engine_of(base, dtype, *, separate=True):
    """An engine with loud adapters as `policy` and silent ones as `frozen`."""
    adapters = loud_adapters(base)
    silent = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), adapters))
    return engines.build(
        {"policy": lora.combine(adapters, base), "frozen": lora.combine(silent, base)},
        slots=2,
        max_length=24,
        page_size=8,
        prefill_tokens=8,
        prefill_rows=1,
        dtype=dtype,
        separate=separate,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_engine_shares_the_stacked_arrays_of_the_base(dtype):
    base = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), base_model())
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    base = jax.device_put(base, sharding.parameter_shardings(mesh, base))
    engine, own = engine_of(base, dtype, separate=False), buffers(jax.tree.leaves(base))
    newer = lora.combine(loud_adapters(base, seed=1), base)
    assert buffers(of_base(newer, engine._weights["policy"])) == own
    assert buffers(of_base(newer, engine._weights["frozen"])) == own
    engine.set_weights("policy", newer)
    assert buffers(of_base(newer, engine._weights["policy"])) == own


@pytest.mark.slow
def test_engine_serves_policy_and_base():
    base = base_model()
    engine = engine_of(base, jnp.float32)
    prompt = tokens(1, 6)[0].tolist()

    def served(name):
        id = engine.submit(Request(tuple(prompt), Sampling(6, temperature=0.0), name, (0,)))
        done = {}
        while engine.pending:
            done |= dict(engine.advance())
        return list(done[id].tokens)

    def greedy(model):
        token_T = list(prompt)
        for _ in range(6):
            padded_1T = np.array([token_T + [0] * (16 - len(token_T))], np.int32)
            token_T.append(int(forward(model, padded_1T)[0, len(token_T) - 1].argmax()))
        return token_T[6:]

    plain, first = greedy(base), greedy(lora.combine(loud_adapters(base), base))
    assert served("policy") == first != plain
    assert served("frozen") == plain
    compiled = engine.compile_count
    newer = lora.combine(loud_adapters(base, seed=1), base)
    engine.set_weights("policy", newer)
    assert served("policy") == greedy(newer) != first
    assert served("frozen") == plain
    assert engine.compile_count == compiled
