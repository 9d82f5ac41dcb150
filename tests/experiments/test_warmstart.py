"""The warm start of any model: bit for bit in one go or two, all parameters and adapters."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import warmstart
from experiments.configs import quickstart
from experiments.running import command, sessions
from experiments.warmstarting import conversations, nano, replies
from experiments.worlds import catalogue, world
from flow_grpo_jax import metrics
from models import decoder, huggingface, model_card

MODEL = "experiments/data/quickstart/model"
VOLATILE = ("time/", "throughput/", "compile/")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model of one small layer, and conversations to learn and to measure."""
    folder = tmp_path_factory.mktemp("files")
    shape = quickstart.get_config().warmstart.model.to_dict()
    shape |= dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    shapes = sessions.abstract_model(decoder.Config(**shape))
    rng = np.random.default_rng(0)  # on the host: nothing to compile
    model = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), shapes)
    huggingface.save(folder / "model", model, tokenizer_folder=MODEL)
    how = dict(tools=sessions.make_tools(quickstart.get_config()), max_turns=3, seed=0)
    stream = world.demonstrations([catalogue.WORLDS["quickstart"]], **how)
    for name, count in (("learn", 10), ("held_out", 8)):
        shown = itertools.islice((s for s in stream if s.role != "base"), count)
        found = [conversations.Example("", s.role, s.messages, s.response) for s in shown]
        conversations.write(folder / f"{name}.jsonl", found)
    return folder


def config_of(files, **changes):
    c = quickstart.get_config()
    c.batch.rows = (1,)  # of each device
    c.engine.slots = 8
    c.warmstart.update(
        start=str(files / "model"),
        worlds="",
        data=str(files / "learn.jsonl"),
        held_out=str(files / "held_out.jsonl"),
        prompt_weight=0.0,
        modules=("planner", "executor", "verifier"),
        steps=4,
        warmup_steps=1,
        batch=3,
        lr=1e-2,
        probes=4,
        probe_every=2,
    )
    c.warmstart.update(changes)
    return c


def lines(workdir):
    """Metrics without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith(VOLATILE)}
        for line in metrics.read(workdir / warmstart.LOG)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_two_parts_are_bit_equal_to_one_run(files, tmp_path, rank):
    c = config_of(files)
    c.model.lora.rank = rank
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    measured = warmstart.warmstart(c, whole)
    polled = itertools.count()
    with pytest.raises(warmstart.Stopped):  # between two measurements
        warmstart.warmstart(c, parts, should_stop=lambda: next(polled) == 3)
    assert [line["step"] for line in lines(parts)] == [0, 1, 2, 3]
    assert not (parts / "model").exists()
    assert warmstart.warmstart(c, parts) == measured
    assert lines(parts) == lines(whole) and [line["step"] for line in lines(parts)] == [*range(5)]
    weights = [(each / "model" / "model.safetensors").read_bytes() for each in (whole, parts)]
    assert weights[0] == weights[1]

    first, last = lines(whole)[0], lines(whole)[-1]
    names = [name for name in first if name.startswith("held_out/loss/")]
    assert [name.split("/")[-1] for name in names] == ["executor", "planner", "verifier"]
    assert rank or all(last[name] < first[name] for name in names)
    assert last == last | measured and model_card.prompts(whole / "model") == "compact"
    before, after = (load_file(each / "model" / "model.safetensors") for each in (files, whole))
    moved = {name for name in before if np.any(before[name] != after[name])}
    assert moved == ({n for n in before if "proj.weight" in n} if rank else set(before))

    other = json.loads((files / "learn.jsonl").read_text().splitlines()[1])
    other["messages"][-1]["content"] += "!"
    text = (files / "learn.jsonl").read_text()
    try:
        (files / "learn.jsonl").write_text(text + json.dumps(other) + "\n")
        with pytest.raises(command.ConfigError, match="replies to learn are not those"):
            warmstart.warmstart(c, parts)
    finally:
        (files / "learn.jsonl").write_text(text)


@pytest.mark.parametrize(
    "changes, why",
    [
        (dict(start=""), "warmstart.start is empty"),
        (dict(start="absent/model"), "absent/model"),
        (dict(data=""), "warmstart.worlds and warmstart.data are empty"),
        (dict(data="absent.jsonl"), "There is no file or folder .*absent.jsonl"),
        (dict(modules=("planer",)), "warmstart.modules has planer; valid: analyst"),
        (dict(replies="first"), "warmstart.replies='first' is unknown; valid: last, all"),
        (dict(bad_rows="keep"), "warmstart.bad_rows='keep' is unknown; valid: refuse, drop"),
        (dict(too_long="cut"), "warmstart.too_long='cut' is unknown"),
        (dict(worlds="chess"), "chess"),
        (dict(modules=("base",)), "has no conversation of base"),
        (dict(warmup_steps=4), "warmstart.warmup_steps=4 must be less than warmstart.steps=4"),
        (dict(enough=1.5), "warmstart.enough=1.5 must be"),
        (dict(prompt_weight=0.1), "Set it to 0 to use warmstart.data, .*held_out, .*modules"),
    ],
)
def test_what_cannot_be_trained_is_said_before_a_model_is_loaded(files, tmp_path, changes, why):
    with pytest.raises(command.ConfigError, match=why):
        warmstart.warmstart(config_of(files, **changes), tmp_path)
    assert not (tmp_path / warmstart.LOG).exists()


def test_rows_too_short_for_demonstrations_are_refused(files, tmp_path):
    c = config_of(files, worlds="quickstart", data="", held_out="", modules=(), prompt_weight=0.1)
    c.warmstart.update(train_questions=3, held_out_questions=3, row_length=16, probes=2)
    with pytest.raises(command.ConfigError, match="row_length=16 has room for 0 of 20 held-out"):
        warmstart.warmstart(c, tmp_path)


def test_limits_are_those_of_rollouts_and_rows(files):
    c = config_of(files)
    c.rollout.update(max_prompt_tokens=200, max_response_tokens=30, max_module_tokens=20)
    found = replies.limits(c)
    assert (found.prompt, found.row, found.row_replies) == (200, 256, 128)
    assert (found.reply["planner"], found.reply["base"], found.reply[""]) == (30, 20, 30)


def test_another_config_is_refused(files, tmp_path):
    values = json.loads(config_of(files).to_json_best_effort())
    del values["warmstart"]["enough"], values["loss"]["tis_cap"]  # of an earlier version
    (tmp_path / warmstart.CONFIG).write_text(json.dumps(values))
    warmstart.check_config(config_of(files, lr=1.0), tmp_path)  # nothing was learnt yet
    (tmp_path / warmstart.LOG).touch()
    warmstart.check_config(config_of(files), tmp_path)
    with pytest.raises(command.ConfigError, match="it differs in warmstart.enough, warmstart.lr"):
        warmstart.check_config(config_of(files, lr=1.0, enough=0.5), tmp_path)
    (tmp_path / warmstart.CONFIG).write_text("{")
    with pytest.raises(command.ConfigError, match="is damaged"):
        warmstart.check_config(config_of(files), tmp_path)


def test_files_of_others_stay_as_they_are(files, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("mine\n")
    c = config_of(files, worlds="quickstart", data="", held_out="", modules=(), prompt_weight=0.1)
    with pytest.raises(command.ConfigError, match="holds train.jsonl, which no warm start wrote"):
        warmstart.warmstart(c, tmp_path)
    assert path.read_text() == "mine\n" and not (tmp_path / warmstart.CONFIG).exists()
    warmstart.check_config(config_of(files, worlds=""), tmp_path)  # nothing writes it


def test_every_module_must_be_read_for_an_early_end():
    read = {"held_out/parsed/planner": 0.9, "held_out/parsed/verifier": 1.0}
    assert warmstart.enough(read, 0.9) and not warmstart.enough(read, 0.91)
    assert not warmstart.enough(read, 0.0) and not warmstart.enough({"loss": 1.0}, 0.5)


def test_the_rate_rises_and_falls():
    c = quickstart.get_config()
    c.warmstart.update(steps=10, warmup_steps=2, lr=1.0, final_lr=0.1, weight_decay=0.0)
    adam = warmstart.make_optimizer(c)
    params, rates = {"w": np.ones(1, np.float32)}, []
    state, update = adam.init(params), jax.jit(adam.update)
    for _ in range(11):  # the gradient never changes: each step has the size of the rate
        updates, state = update({"w": np.full(1, 0.5, np.float32)}, state, params)
        rates.append(-float(updates["w"][0]))
    assert rates[:3] == pytest.approx([0.0, 0.5, 1.0], rel=1e-4)
    assert rates[6] == pytest.approx(0.55, rel=1e-4) and rates[10] == pytest.approx(0.1, rel=1e-4)


def test_whole_rows_weigh_prompts_and_replies():
    """As a picture: two samples in a row, one in the next; the first token is predicted by none."""
    encoded = iter([([7, 8, 9], 1), ([5, 6], 1), ([1, 2, 3, 4], 2), ([3] * 6, 1), ([8, 8], 1)])
    [rows] = itertools.islice(nano.packed_rows(encoded, rows=2, length=5, prompt_weight=0.5), 1)
    token_BT, segment_BT, weight_BT = rows
    assert token_BT.tolist() == [[7, 8, 9, 5, 6], [1, 2, 3, 4, 0]]
    assert segment_BT.tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]]
    assert weight_BT.tolist() == [[0, 0.5, 1, 0, 1], [0, 0.5, 1, 1, 0]]


def test_the_shipped_log_is_of_the_shipped_model():
    found = metrics.read(pathlib.Path("experiments/data/quickstart/warmstart.jsonl"))
    assert found[-1]["step"] == quickstart.get_config().warmstart.steps
