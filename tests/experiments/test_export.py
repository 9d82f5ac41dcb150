"""The export of a run that was laid down by hand."""

import json
import pathlib
import shutil

import fsspec
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import export
from experiments.configs import common, smoke
from experiments.running import command, places, stored
from flow_grpo_jax import checkpoint, optimizer, update
from models import folders, huggingface, lora, model_card


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, trained parameters): a checkpoint of step 7, evaluated, and one of step 3."""
    workdir, config = tmp_path_factory.mktemp("run"), smoke.get_config()
    facts = {"level": "strict", "layers": {"process": "verified", "seccomp": "verified"}}
    stored.write_config(config, workdir, sandbox=facts)
    base = huggingface.load(places.resolve(config.model.path), dtype=jnp.float32)
    trained = jax.jit(lambda tree: jax.tree.map(lambda x: x * 1.01 + 1e-3, tree))(base)
    adamw = optimizer.make(**config.optim)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=2)
    for step, params in ((3, base), (7, trained)):
        checkpoints.save(step, update.init(params, adamw), {"reference": "f00d"})
    checkpoints.close()
    lines = [{"step": 0}, {"step": 7, "eval/success": 0.5, "eval/correct": 6, "eval/total": 12}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir, trained


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """workdir of a run that trained adapters, with a checkpoint of step 5."""
    workdir, config = tmp_path_factory.mktemp("lora"), smoke.get_config()
    config.model.lora.update(rank=4, alpha=8.0)
    stored.write_config(config, workdir)
    base = huggingface.load(places.resolve(config.model.path), dtype=jnp.float32)
    adapters = lora.init(base, jax.random.key(0), lora.Settings(**config.model.lora))
    noisy = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
    state = update.init(jax.tree.map(noisy, adapters), optimizer.make(**config.optim))
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=1)
    checkpoints.save(5, state, {"reference": "f00d"})
    checkpoints.close()
    (workdir / "metrics.jsonl").write_text("")
    return workdir


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12) * 7).logits.numpy()


def assert_equal(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_newest_checkpoint_is_exported_with_all_that_serving_needs(run, tmp_path):
    workdir, trained = run
    assert export.export(workdir, tmp_path, base_model="someone/nano") == 7
    assert_equal(huggingface.load(tmp_path), trained)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings["eos_token_id"] == 2047 and settings["top_k"] == 0
    assert settings["temperature"] == smoke.get_config().rollout.temperature
    original = huggingface.read_config(places.resolve(smoke.get_config().model.path))
    rope = {"rope_theta": 1e4, "rope_type": "default"}
    added = {"dtype": "float32", "rope_parameters": rope}
    assert huggingface.read_config(tmp_path) == original | added
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers" and "flow-grpo" in card.data.tags
    assert card.data.base_model == "someone/nano"
    assert model_card.prompts(tmp_path) == smoke.get_config().rollout.prompts
    for said in ("Flow-GRPO", "2510.05592", "| training step | 7 |", "6/12", "vllm serve", "f00d"):
        assert said in card.text
    assert json.loads((workdir / "config.json").read_text())["hash"] in card.text
    assert "| python tool | sandbox of level strict: process, seccomp |" in card.text


def test_an_exported_planner_ends_its_replies_as_in_training(run, tmp_path):
    """The base names another end than its template, and the run one more."""
    base = shutil.copytree(places.resolve(smoke.get_config().model.path), tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": 2045, "top_p": 0.8}')
    workdir = shutil.copytree(run[0], tmp_path / "run")
    config = smoke.get_config()
    config.model.path, config.engine.stop_ids = str(base), ("<|im_start|>",)
    stored.write_config(config, workdir)
    export.export(workdir, tmp_path / "planner")
    written = json.loads((tmp_path / "planner" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2045, 2047, 2046]
    card = (tmp_path / "planner" / "README.md").read_text()
    assert "<|endoftext|> (2045), <|im_end|> (2047), <|im_start|> (2046)" in card


def test_the_base_is_the_snapshot_that_the_run_read_and_nothing_else(tmp_path, monkeypatch):
    """A name on the hub may mean a newer snapshot by now; a checkpoint may name any folder."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = pathlib.Path(places.resolve(smoke.get_config().model.path))
    old, new = (tmp_path / "models--A--B" / "snapshots" / name for name in ("old", "new"))
    other = tmp_path / "models--A--C" / "snapshots" / "old"
    for place in (old, new, other, tmp_path / "away"):
        place.mkdir(parents=True)
        shutil.copy(model / "config.json", place)
    (tmp_path / "models--A--B" / "refs").mkdir()
    (tmp_path / "models--A--B" / "refs" / "main").write_text("new")
    config = common.base()
    config.model.path = "A/B"
    assert stored.base_folder(config, {"model_folder": str(old)}) == str(old)
    assert stored.base_folder(config, {}) == str(new)  # of an earlier version
    for read in (tmp_path / "away", other, old / "..", old.parent / "gone", "gs://bucket/model", 7):
        assert stored.base_folder(config, {"model_folder": str(read)}) == str(new)


@pytest.mark.slow
def test_step_dtype_and_place_can_be_chosen(run):
    workdir, _ = run
    out = "memory://bucket/planner"
    assert export.export(workdir, out, step=3, dtype="bfloat16") == 3
    assert huggingface.read_config(out)["torch_dtype"] == "bfloat16"
    base = huggingface.load(places.resolve(smoke.get_config().model.path))
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), base)
    assert_equal(huggingface.load(out), rounded)
    card = folders.Folder(out).read("README.md").decode()
    assert "not measured; before training" in card and "base_model:" not in card
    fsspec.filesystem("memory").store.clear()
    with pytest.raises(command.ConfigError, match="no checkpoint of step 4 .*there are .3, 7."):
        export.export(workdir, out, step=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # from PEFT
def test_an_adapter_in_peft_is_the_merged_model_in_transformers(lora_run, tmp_path):
    import peft
    import torch
    import transformers

    assert export.export(lora_run, tmp_path / "merged") == 5
    assert export.export(lora_run, tmp_path / "adapter", adapter=True) == 5
    assert not list((tmp_path / "adapter").glob("model*"))
    load = transformers.AutoModelForCausalLM.from_pretrained
    base = load(places.resolve(smoke.get_config().model.path), dtype=torch.float32)
    merged = logits(load(tmp_path / "merged", dtype=torch.float32))
    # As the card says: it finds the base by itself.
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "adapter", dtype=torch.float32
    )
    assert np.abs(logits(adapted) - merged).max() <= 1e-5 * np.abs(merged).max()
    assert np.abs(logits(base) - merged).max() > 0.1 * np.abs(merged).max()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer.decode(tokenizer.encode("Answer: Paris")) == "Answer: Paris"


def test_an_adapter_names_its_base_and_how_to_use_it(lora_run, tmp_path):
    export.export(lora_run, tmp_path, adapter=True, base_model="someone/nano", dtype="bfloat16")
    found = json.loads((tmp_path / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == "someone/nano"
    assert (found["r"], found["lora_alpha"]) == (4, 8)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft" and card.data.base_model == "someone/nano"
    for said in ("vllm serve someone/nano --enable-lora", "| training step | 5 |", "bfloat16"):
        assert said in card.text


def test_a_run_without_adapter_says_so(run, tmp_path):
    with pytest.raises(command.ConfigError, match="lora.rank=0 .* Leave out --adapter"):
        export.export(run[0], tmp_path, adapter=True)


def test_an_adapter_of_a_gguf_model_needs_the_name_of_a_base(lora_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export.sessions, "is_gguf", lambda config: True)
    with pytest.raises(command.ConfigError, match="is a GGUF model. Give the name .*--base_model"):
        export.export(lora_run, tmp_path, adapter=True)
