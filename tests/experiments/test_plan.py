"""Plans: formulas against hand-made numbers, bytes against real arrays, the command end to end."""

import ast
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments import plan
from experiments.configs import lora_7b_single_gpu, paper_7b, smoke
from experiments.planning import advice, formulas, programs, rollouts
from experiments.running import command, limits, sessions
from flow_grpo_jax import optimizer, update
from models import decoder, hardware, published, sharding
from models.engine import placement
from tests.models import engines

ROOT = pathlib.Path(__file__).parents[2]
GiB = 2**30


def whole_model(dims):
    """The Setting in which all parameters are trained on one device."""
    config = paper_7b.get_config()
    return advice.setting(config, dims, programs.abstract_mesh(config, 1))


@pytest.mark.parametrize(
    ("size", "matmul", "cache_KiB"),
    [("0.5b", 0.494e9, 12), ("1.5b", 1.544e9, 28), ("3b", 3.086e9, 36), ("7b", 7.070e9, 56)],
)
def test_sizes_by_hand(size, matmul, cache_KiB):
    """Parameters that a token is multiplied with, and its bytes of cache, in published models."""
    config, one = paper_7b.get_config(), hardware.topology("cpu:1")
    dims, tokens = published.SIZES[size], config.engine.cache_tokens
    useful, _ = formulas.turn_flops(whole_model(dims), 1, 1)
    assert useful / 6 == pytest.approx(matmul, rel=1e-3)
    found = rollouts.need(config, dims, one, advice.need(config, dims, 1))
    assert found.cache == tokens * cache_KiB * 1024


@pytest.mark.parametrize(
    ("size", "chip", "tokens", "thousands"),
    [("7b", "v5e", 4096, 4.4), ("7b", "h200", 20480, 14.4), ("1.5b", "v5p", 4096, 44.5)],
)
def test_training_limit_by_hand(size, chip, tokens, thousands):
    """Tokens a second at which all products of training take all of a chip."""
    peak = (hardware.TPUS | hardware.GPUS)[chip]
    flops = formulas.turn_flops(whole_model(published.SIZES[size]), tokens, tokens)[0] / tokens
    assert peak.flops / flops == pytest.approx(thousands * 1e3, rel=0.02)


@pytest.mark.slow
def test_bytes_are_those_of_placed_arrays():
    config = paper_7b.get_config()
    config.mesh.fsdp, config.mesh.tensor = 4, 2
    dims = published.SIZES["0.5b"]
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    values = programs.inputs(config, dims, mesh)
    leaves = jax.tree.leaves(values.params)
    largest = max(leaves, key=lambda leaf: leaf.size)
    placed = jax.device_put(jnp.zeros(largest.shape, largest.dtype), largest.sharding)
    assert programs.bytes_per_device([largest]) == placed.addressable_shards[0].data.nbytes
    assert programs.bytes_per_device(values.opt_state) == pytest.approx(
        2 * programs.bytes_per_device(values.params), rel=1e-4
    )


def nano(**sizes):
    """The smoke config on a mesh of eight devices, and a model so wide that weights dominate."""
    config = smoke.get_config()
    config.batch.row_lengths, config.batch.response_lengths = (16,), (8,)
    config.batch.rows = (1,)
    config.rollout.max_prompt_tokens = config.rollout.max_response_tokens = 8
    config.mesh.update(sizes)
    dims = decoder.Config(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=False,
    )
    return config, dims


@pytest.mark.slow
def test_bytes_of_a_whole_state_are_those_of_its_arrays():
    config, dims = nano(fsdp=4, tensor=2)
    mesh = programs.mesh_over(config, jax.devices())
    values = programs.inputs(config, dims, mesh)
    adamw = optimizer.make(**config.optim)
    shardings = jax.tree.map(lambda x: x.sharding, values.params)
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), values.params)
    state = update.init(jax.jit(zeros, out_shardings=shardings)(), adamw, shardings=shardings)
    counted = programs.bytes_per_device((values.params, values.opt_state, values.count))
    for device in jax.devices():
        shards = [s for x in jax.tree.leaves(state) for s in x.addressable_shards]
        assert sum(s.data.nbytes for s in shards if s.device == device) == counted


@pytest.mark.slow
def test_the_gradient_of_a_micro_batch_never_exists_as_a_whole():
    """With remat "full" the backward pass adds each layer's part to the sum."""
    config, dims = nano(fsdp=1)
    config.model.remat, config.loss.kl_coef = "full", 0.0
    mesh = programs.mesh_over(config, jax.devices()[:1])
    values = programs.inputs(config, dims, mesh)
    found = programs.compiled(config, limits.choose_variant(config), values, mesh)
    assert [program.name for program in found] == ["accumulate", "step", "zeros"]
    assert found[0].temporaries < 0.5 * programs.bytes_per_device(values.grads)


def test_what_does_not_fit_is_told_what_would():
    config = paper_7b.get_config()
    h200 = hardware.topology("gpu:h200x1")
    result = plan.plan(config, h200, model="7b", estimate=True)
    assert result["spare"] < 0.1
    assert any("moment_dtype=bfloat16" in flag for c in result["changes"] for flag in c["flags"])
    assert result["together"]["total"] < 0.9 * h200.limits.memory
    assert "What would help" in plan.as_text(result)
    adapted = plan.plan(lora_7b_single_gpu.get_config(), h200, model="7b", estimate=True)
    assert adapted["spare"] > 0.5 and "changes" not in adapted


@pytest.mark.slow
def test_rollouts_count_the_bytes_of_a_real_engine():
    config, dims = nano(fsdp=2)
    config.engine.update(tensor=2, slots=4, cache_tokens=640)
    target = hardware.topology("cpu:2")
    found = rollouts.need(config, dims, target, advice.need(config, dims, 2))
    model = decoder.Decoder(jax.random.key(0), dims)
    [mesh] = placement.meshes(tensor=2, replicas=1)
    [copy] = placement.copies(model, jnp.float32, [mesh], separate=False)
    weights = {"policy": copy, "frozen": copy}
    engine = engines.build(weights, mesh=mesh, **sessions.engine_shapes(config))
    parts = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(copy)]
    assert found.weights == 2 * sum(parts)
    assert found.cache == engine.cache_bytes
    assert found.total == found.weights + found.cache + found.state


def test_adapters_leave_one_base_for_the_engine_and_the_trainer():
    config, one = lora_7b_single_gpu.get_config(), hardware.topology("gpu:h200x1")
    dims = published.SIZES["7b"]
    config.engine.layers = "stacked"
    found = rollouts.need(config, dims, one, advice.need(config, dims, 1))
    assert found.weights < 0.5 * GiB  # adapters only
    assert found.state > 14 * GiB
    config.engine.layers = "auto"
    separate = rollouts.need(config, dims, one, advice.need(config, dims, 1))
    layers = 28 * 2 * (dims.layer_parameters + 2 * 3584 + 3584 + 2 * 512)  # norms and biases too
    assert separate.weights - found.weights == layers
    config.engine.cache_tokens = 2_000_000  # leaves no room for them
    tight = rollouts.need(config, dims, one, advice.need(config, dims, 1))
    assert tight.weights == found.weights


def test_rollouts_that_do_not_fit_are_told_so():
    config = paper_7b.get_config()
    config.engine.cache_tokens = 2_000_000
    result = plan.plan(config, hardware.topology("v5p:2x2x2"), model="7b", estimate=True)
    assert result["rollouts"]["spare"] < 0 < result["spare"]
    assert not result["fits"]
    text = plan.as_text(result)
    assert "does not fit: rollouts; rollouts would take" in text
    assert "For rollouts: lower engine.cache_tokens" in text
    config.engine.cache_tokens = 262_144
    result = plan.plan(config, hardware.topology("v5p-16"), model="7b", estimate=True)
    assert result["phases"]["rollouts"] > result["phases"]["update"] == result["total"]
    assert "fits: the fullest phase, rollouts, takes 54.7" in plan.as_text(result)
    config.engine.tensor = 3
    with pytest.raises(command.ConfigError, match="engine.tensor=3 does not divide 8 devices"):
        plan.plan(config, hardware.topology("v5p:2x2x2"), model="7b", estimate=True)


@pytest.mark.parametrize(("size", "topology"), [("14b", "v5e:4x4"), ("7b", "gpu:a100x1")])
def test_what_is_said_to_fit_does(size, topology):
    """The flags are the command's, and without those of any one part it would not fit."""
    config, target = paper_7b.get_config(), hardware.topology(topology)
    result = plan.plan(config, target, model=size, estimate=True)
    assert result["spare"] < 0
    pairs = [flag.removeprefix("--config.").split("=") for flag in result["together"]["flags"]]

    def spare(pairs):
        values = {
            name: value if value.isalnum() and not value.isdigit() else ast.literal_eval(value)
            for name, value in pairs
        }
        values = {k: {"True": True, "False": False}.get(v, v) for k, v in values.items()}
        need = advice.need(advice.changed(config, values), published.SIZES[size], target.devices)
        return 1 - need.total / target.limits.memory

    assert spare(pairs) >= advice.SPARE
    for part in {name.split(".")[0] for name, _ in pairs}:
        assert spare([pair for pair in pairs if pair[0].split(".")[0] != part]) < advice.SPARE


def test_nothing_helps_a_model_that_is_far_too_large():
    config = paper_7b.get_config()
    result = plan.plan(config, hardware.topology("v5e:2x2"), model="72b", estimate=True)
    assert result["together"] is None
    assert "Not even all of it" in plan.as_text(result)


@pytest.mark.skipif(not programs.has_libtpu(), reason="libtpu is not installed")
@pytest.mark.slow
def test_tpu_programs_compile():
    config, dims = nano(fsdp=2, tensor=2)
    config.mesh.sequence = True
    mesh = programs.mesh_over(config, programs.devices(hardware.topology("v5e:2x2")))
    found = programs.compiled(
        config, limits.choose_variant(config), programs.inputs(config, dims, mesh), mesh
    )
    assert [program.name for program in found] == ["accumulate", "step", "zeros"]
    assert all(program.total > program.inputs for program in found[:1])


@pytest.mark.parametrize(
    ("whole", "count", "name"),
    [("v5e:4x4", 4, "v5e:2x2"), ("v5p:2x2x2", 1, "v5p:1x1x1"), ("v6e:2x4", 2, "v6e:1x2")],
)
def test_a_part_of_a_slice_is_a_slice(whole, count, name):
    assert hardware.part(hardware.topology(whole), count) == hardware.topology(name)
    assert hardware.part(hardware.topology("cpu:8"), count).devices == count


@pytest.mark.parametrize(
    ("name", "chips"),
    [("v5e-16", "v5e:4x4"), ("v5litepod-8", "v5e:2x4"), ("v6e-8", "v6e:2x4"), ("V6E-1", "v6e:1x1")]
    # Of v4 and v5p the number counts cores, two a chip.
    + [("v5p-8", "v5p:2x2x1"), ("v5p-16", "v5p:2x2x2"), ("v4-32", "v4:2x2x4")],
)
def test_slices_go_by_the_names_that_people_know(name, chips):
    assert hardware.topology(name) == hardware.topology(chips)
    counted = int(name.split("-")[1]) // (2 if name.startswith(("v4", "v5p")) else 1)
    assert hardware.topology(name).devices == counted


def test_every_named_slice_has_as_many_chips_as_its_name_says():
    for kind, slices in hardware.SLICES.items():
        for size in slices:
            cores = 2 if kind in ("v4", "v5p") else 1
            assert hardware.topology(f"{kind}-{size}").devices * cores == size
    with pytest.raises(ValueError, match="'v5p-4' is no slice that Google names; valid: v5p-8, v5"):
        hardware.topology("v5p-4")


@pytest.mark.parametrize("name", ["v9:2x2", "gpu:b300x1", "v5e", "cpu:0"])
def test_unknown_topologies_name_valid_ones(name):
    with pytest.raises(ValueError, match="v5e:4x4"):
        hardware.topology(name)


def test_a_model_must_be_named():
    with pytest.raises(command.ConfigError, match="--model to a published size: .*7b"):
        plan.model_dims(paper_7b.get_config(), "")
    with pytest.raises(command.ConfigError, match="--model='8b' is unknown"):
        plan.model_dims(paper_7b.get_config(), "8b")


@pytest.mark.skipif(programs.has_libtpu(), reason="libtpu is installed")
def test_missing_compiler_says_how_to_install_it():
    with pytest.raises(command.ConfigError, match="pip install -e"):
        programs.devices(hardware.topology("v5e:2x2"))


@pytest.mark.slow
def test_command_compiles_for_virtual_devices():
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.plan",
            "--config=experiments/configs/smoke.py",
            "--topology=cpu:2",
            "--json",
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result["devices"] == 2 and result["basis"] == "cpu:2"
    assert [p["name"] for p in result["programs"]] == ["accumulate", "step", "zeros"]
    assert all(p["total"] > p["temporaries"] >= 0 for p in result["programs"])
    assert set(result["rollouts"]["temporaries"]) == {"prefill", "decode"}


# ---- the page of sizes -------------------------------------------------------------------------

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/scaling.md").read_text("utf-8").splitlines()
    if line.startswith("| ")
]


def numbers(cells):
    return [float(re.match(r"[*(]*([\d.]+)", cell)[1]) for cell in cells]


def shipped(name):
    """A config as the page names it, such as `search.py` or `paper_7b.py:v6e8`."""
    file, _, argument = name.strip("`").partition(":")
    make = runpy.run_path(str(ROOT / "experiments/configs" / file))["get_config"]
    return make(argument) if argument else make()


SAMPLED = [row for row in ROWS if len(row) == 8 and re.match(r"`\w[\w.]*\.py[:`]", row[0])]


@pytest.mark.parametrize("row", SAMPLED, ids=lambda row: f"{row[0]} {row[1]}")
def test_what_rollouts_take_is_what_the_page_says(row):
    config = shipped(re.match(r"`\S+`", row[0])[0])
    sizes = {"search.py": "1.5b", "colab_0.5b.py": "0.5b"}
    size = sizes.get(row[0].split("`")[1], "7b")
    topology = hardware.topology(row[1].strip("`"))
    result = plan.plan(config, topology, model=size, estimate=True)
    found = [result["rollouts"][name] / GiB for name in ("state", "weights", "cache", "total")]
    assert numbers(row[2:6]) == pytest.approx(found, abs=0.051)
    tokens = int(re.search(r"([\d,]+) tokens", row[4])[1].replace(",", ""))
    assert tokens == config.engine.cache_tokens
    assert float(row[6]) == pytest.approx(result["memory"] / GiB, abs=0.01)
    if row[7] != "–":
        assert 0.5 < float(row[7]) - numbers(row[5:6])[0] < 1.0  # GiB of temporaries


def cells():
    """(size, topology, LoRA, text, memory) of each cell of the tables by formula."""
    heads, found = [], []
    for row in ROWS:
        if row[0] == "GiB per device":
            # The second table of Qwen2.5 is of LoRA; that of other families says it of each column.
            again = len(heads) and [re.search("`(.*)`", cell)[1] for cell in row[1:]] == [
                topology for topology, *_ in heads
            ]
            heads = [
                (re.search("`(.*)`", cell)[1], again or cell.startswith("LoRA")) for cell in row[1:]
            ]
            memories = [float(re.search(r"\(([\d.]+)\)", cell)[1]) for cell in row[1:]]
        elif heads and len(row) == len(heads) + 1 and row[0].strip("`").lower() in published.SIZES:
            size = row[0].strip("`").lower()
            found += [
                (size, *head, text, memory)
                for head, text, memory in zip(heads, row[1:], memories, strict=True)
            ]
    return found


@pytest.mark.slow
def test_the_tables_by_formula_are_those_of_the_tool():
    assert len(cells()) == 2 * 7 * 8 + 8 * 5
    for size, name, adapter, text, memory in cells():
        topology, dims = hardware.topology(name), published.SIZES[size]
        assert memory == pytest.approx(topology.limits.memory / GiB, abs=0.01)
        tensor = re.search(r"t(\d)", text)
        if text == "–":  # as much as the heads and devices allow
            tensor = max(n for n in (1, 2, 4, 8) if not (dims.num_key_value_heads % n))
            tensor = min(tensor, topology.devices)
        else:
            tensor = int(tensor[1]) if tensor else 1
        half = text == "–" or "m16" in text
        values = {"mesh.tensor": tensor, "mesh.sequence": tensor > 1}
        values |= {"optim.moment_dtype": "bfloat16" if half else "float32"}
        values |= advice.ADAPTER if adapter else {}
        config = advice.changed(paper_7b.get_config(), values)
        total = advice.need(config, dims, topology.devices).total / GiB
        if text == "–":
            assert total > memory, (size, name)
            continue
        assert numbers([text]) == pytest.approx([total], abs=0.051), (size, name)
        assert text.startswith("(") == (total > (1 - advice.SPARE) * memory), (size, name)
