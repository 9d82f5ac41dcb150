"""Every config for real use trains for a step, with a nano model and small sizes."""

import dataclasses
import functools
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from experiments import export, train
from experiments.configs import quickstart
from experiments.running import command, limits, places
from flow_grpo_jax import metrics
from models import decoder, huggingface, sharding

FOLDER = pathlib.Path(train.__file__).parent / "configs"
# Name, argument, how many devices stand for the real ones, and the mesh they form.
RUNS = [
    ("paper_7b", (), 2, dict(fsdp=2)),
    ("paper_7b", ("v5e16",), 4, dict(fsdp=2, tensor=2)),
    ("paper_7b", ("authors",), 1, dict()),
    ("search", (), 1, dict()),
    ("math", (), 1, dict()),
    ("lora_7b_single_gpu", (), 1, dict()),
    ("colab_0.5b", (), 1, dict()),
]
FOR_REAL = {name for name, *_ in RUNS} | {"smollm2"}  # which is the quickstart's in other sizes


def module(name):
    spec = importlib.util.spec_from_file_location("config", FOLDER / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """Folder of a model with the quickstart's tokenizer; the engine compiles layer by layer."""
    base, folder = (
        places.resolve(quickstart.get_config().model.path),
        tmp_path_factory.mktemp("m"),
    )
    shape = huggingface.model_config(base)
    shape = dataclasses.replace(shape, num_hidden_layers=1)
    model = jax.jit(lambda: decoder.Decoder(jax.random.key(0), shape))()
    huggingface.save(folder, model, tokenizer_folder=base)
    return folder


def reduced(config, mesh, *, model):
    """The config with its choices kept and small sizes."""
    config.steps = 1
    config.compile_cache = ""
    config.model.path = str(model)
    config.data.train = quickstart.get_config().data.train
    config.mesh.update(mesh)
    config.rollout.update(
        prompts="compact",
        questions=2,
        group=2,
        max_turns=2,
        max_prompt_tokens=224,
        max_response_tokens=16,
        max_module_tokens=16,
        temperature=1.0,
    )
    config.engine.update(slots=4, prefill_rows=4, page_size=16, prefill_tokens=32)
    config.engine.tensor = min(config.engine.tensor, 2)  # of the small model's key/value heads
    lengths = (256, 512)[: len(config.batch.row_lengths)]
    config.batch.row_lengths, config.batch.response_lengths = lengths, lengths
    if config.model.lora.rank:
        config.model.lora.rank = 4
    return config


def test_every_config_is_here():
    assert {path.stem for path in FOLDER.glob("*.py")} - FOR_REAL == {
        "__init__",
        "common",
        "echo",
        "lake",
        "quickstart",
        "ranges",
        "smoke",
        "worlds",
    }


@pytest.mark.parametrize("name", sorted(FOR_REAL))
def test_header_says_what_it_costs_and_how_to_start_it(name):
    text = module(name).__doc__
    assert "Cost:" in text
    assert f"python -m experiments.train --config=experiments/configs/{name}.py" in text


@pytest.mark.parametrize("name", sorted(FOR_REAL))
def test_limits_fit_together(name):
    config = module(name).get_config()
    config.data.train = "somewhere"
    limits.check_limits(config)
    points = []
    module(name).sweep(lambda **point: points.append(point))
    flat = config.copy_and_resolve_references()
    assert len(points) == 3
    for point in points:
        flat.update_from_flattened_dict(point)  # every field exists


def test_a_small_model_trains_an_adapter_or_all_parameters():
    make = module("smollm2").get_config
    assert [make(*way).model.lora.rank for way in ((), ("full",))] == [16, 0]
    with pytest.raises(ValueError, match="argument 'ful'; valid: lora, full"):
        make("ful")


def test_steps_and_bounds_that_depend_on_each_other(caplog):
    config = module("paper_7b").get_config("authors")
    assert (config.loss.variant, config.loss.mini_batch_turns) == ("original", 64)
    config.data.train = "somewhere"
    limits.check_limits(config)
    config.engine.page_size = 100
    with pytest.raises(command.ConfigError, match="prefill_tokens=256 must be a multiple of"):
        limits.check_limits(config)
    config.engine.page_size = 64
    config.loss.mini_batches = 2
    with pytest.raises(command.ConfigError, match="loss.mini_batches=2 splits by questions and"):
        limits.check_limits(config)
    config = module("paper_7b").get_config()
    config.data.train, config.loss.variant = "somewhere", "gspo"
    limits.check_limits(config)
    assert "loss.variant=gspo with loss.clip_low=0.2 and loss.clip_high=0.3" in caplog.text
    for name, value, warns in (("clip_low", 3e-4, True), ("clip_high", 4e-4, False)):
        caplog.clear()
        config.loss[name] = value
        limits.check_limits(config)
        assert bool(caplog.text) is warns


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rollout.group": 2**20}, "questions=32 times rollout.group=1048576 are more than 16,7"),
        ({"engine.cache_tokens": 0, "engine.slots": 2**20}, "slots=1048576 of the longest requ"),
    ],
)
def test_sizes_that_are_too_large_together_are_refused(changes, told):
    config = module("paper_7b").get_config()
    config.data.train = "somewhere"
    config.update_from_flattened_dict(changes)
    with pytest.raises(command.ConfigError, match=told):
        limits.check_limits(config)


def test_a_group_that_does_not_hold_roots_and_branches_is_refused(caplog):
    config = module("smoke").get_config()
    config.rollout.group, config.loss.variant = 8, "turns"
    plan = limits.branching(config, limits.check(config))
    assert (plan.points, plan.siblings, plan.broadcast, plan.roots(8)) == (1, 3, 0.0, 2)
    assert not caplog.text
    config.loss.turns.siblings = 4
    with pytest.raises(
        command.ConfigError, match="rollout.group=8 must be a multiple of 5, such as 10"
    ):
        limits.check(config)
    config.loss.variant = "flow"
    assert limits.branching(config, limits.check(config)) is None


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("name", "arguments", "devices", "mesh"), RUNS)
def test_a_step_of_training(tmp_path, monkeypatch, one_layer, name, arguments, devices, mesh):
    few = functools.partial(sharding.make_mesh, devices=jax.devices()[:devices])
    monkeypatch.setattr(sharding, "make_mesh", few)
    config = reduced(module(name).get_config(*arguments), mesh, model=one_layer)
    train.train(config, tmp_path)
    (line,) = metrics.read(tmp_path / "metrics.jsonl")
    assert line["step"] == 1 and line["optim/steps"] == 1 and line["optim/skipped"] == 0
    assert line["tokens/sharing"] > 1  # the layout is a tree
    assert line["compile/count"] < 20
    assert np.isfinite(line["loss/total"]) and np.isfinite(line["optim/grad_norm"])
    if name.startswith("lora"):  # adapters are merged
        export.export(tmp_path, tmp_path / "out")
        assert type(huggingface.load(tmp_path / "out")) is decoder.Decoder
