"""The tokenizer of a run: what ends its replies, what its template must take, and what is said."""

import json
import pathlib
import shutil
from types import SimpleNamespace

import pytest

from experiments import plan, serve, solve
from experiments.configs import common
from experiments.running import command, fields, sessions, stored, tokens
from models import tokenizer

MODEL = pathlib.Path(__file__).parents[2] / "experiments/data/quickstart/model"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
)
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
ONE_TURN += "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MODEL, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def template(folder, text):
    edit(folder / "tokenizer_config.json", chat_template=text)


def test_what_ends_replies_in_a_shipped_model_is_as_before():
    assert tokens.load(MODEL).eos_ids == (2047,)


def test_a_base_model_ends_its_replies_too(folder):
    edit(folder / "generation_config.json", eos_token_id=2045)
    assert tokens.load(folder).eos_ids == (2045, 2047)
    assert tokens.load(folder, stops=(2046, "<|im_end|>")).eos_ids == (2045, 2047, 2046)
    assert tokens.describe_ends(tokens.load(folder)) == "<|endoftext|> (2045), <|im_end|> (2047)"


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        (("<|end|>",), "'<|end|>' is not a token"),
        ((2048,), "2048 is not a token .* id below 2048"),
        (tuple(range(9)), "10 tokens end a reply .* The engine takes 8"),
    ],
)
def test_ends_that_cannot_be_used_are_refused(stops, message):
    with pytest.raises(command.ConfigError, match=message):
        tokens.load(MODEL, stops=stops)


def test_a_template_whose_end_is_not_one_token_is_told(folder, caplog):
    template(folder, "{% for m in messages %}{{ m.content + '<|end|>' }}{% endfor %}")
    assert tokens.load(folder).eos_ids == (2047,)
    assert "'<|end|>', which is not one token" in caplog.text
    assert "<|im_end|> (2047) does" in caplog.text and "engine.stop_ids" in caplog.text
    (folder / "generation_config.json").unlink()
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(command.ConfigError, match="Nothing ends a reply .*'<|end|>', which is not"):
        tokens.load(folder)


def test_a_template_without_system_messages_is_told(folder, caplog):
    template(folder, NO_SYSTEM)
    assert tokens.load(folder).merges_system
    assert "takes no system message: its text goes in front" in caplog.text


def test_a_template_is_tried_with_what_the_run_says(folder):
    template(folder, ONE_TURN)
    tokens.load(folder)
    with pytest.raises(command.ConfigError, match="refuses .*assistant, user.: one turn"):
        tokens.load(folder, conversations=(tokens.REPAIR,))
    template(folder, "{{ raise_exception('never') }}")
    with pytest.raises(command.ConfigError, match="refuses a conversation .system, user.: never"):
        tokens.load(folder)


def test_named_templates_open(folder):
    template(folder, [{"name": "default", "template": tokenizer.CHAT_TEMPLATE}])
    assert tokens.load(folder).chat([{"role": "user", "content": "a"}])


# ---- the first step ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finished_QG", "warned"),
    [
        ([[(False,), (False, False)], [(False,), ()]], True),
        ([[(False,), (False, True)], [(False,), ()]], False),
        ([[(), ()]], False),  # no response at all has causes of its own
    ],
)
def test_a_step_in_which_no_response_ended_is_told(caplog, finished_QG, warned):
    turns = lambda group: [SimpleNamespace(finished=end) for end in group]
    groups = [[SimpleNamespace(own_turns=turns(each)) for each in group] for group in finished_QG]
    tokens.warn_if_nothing_ended(groups, tokenizer.Tokenizer.load(MODEL), common.base())
    assert ("none of the planner's 4 responses ended" in caplog.text) == warned
    if warned:
        for said in ("max_response_tokens=2048", "<|im_end|> (2047)", "engine.stop_ids"):
            assert said in caplog.text


# ---- the config --------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(), (1,), ("<|im_end|>",), ("<|im_end|>", 1)])
def test_ends_of_a_config_may_be_texts_and_ids(tmp_path, stops):
    config = common.base()
    config.engine.stop_ids = stops
    fields.check(config)
    stored.write_config(config, tmp_path)
    assert stored.read_config(tmp_path)[0].engine.stop_ids == stops


@pytest.mark.parametrize("stops", [(1.5,), (None,), ((1,),), (True,)])
def test_other_ends_are_refused(stops):
    config = common.base()
    with config.unlocked():
        config.engine.stop_ids = stops
    with pytest.raises(command.ConfigError, match="engine.stop_ids=.* a text or a whole number"):
        fields.check(config)


def test_a_run_of_an_earlier_version_has_no_more_ends(tmp_path):
    stored.write_config(common.base(), tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["engine"]["stop_ids"]
    path.write_text(json.dumps(content))
    assert stored.read_config(tmp_path)[0].engine.stop_ids == ()
    stored.check_config(common.base(), tmp_path)


# ---- names on the hub --------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The shipped model as Org/Nano in the hub's cache; its snapshot."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "models--Org--Nano" / "snapshots" / "f00d"
    shutil.copytree(MODEL, snapshot)
    return snapshot


def test_every_command_finds_a_model_by_its_name(cached, monkeypatch):
    config = common.base()
    config.model.path = "Org/Nano"
    assert sessions.model_folder(config) == str(cached)
    assert "model.safetensors" in sessions.model_files(config)[1]
    assert plan.model_dims(config, "").vocab_size == 2048
    solving = dict(url=None, workdir=None, api_key_variable=None)
    chosen = solve.choose_config(None, model="Org/Nano", **solving)
    assert sessions.model_folder(chosen) == str(cached)
    # What is built first shows which folder the server takes.
    seen = []
    monkeypatch.setattr(command, "need", lambda extra: None)
    monkeypatch.setattr(serve.huggingface, "read_config", lambda folder: seen.append(folder) or {})
    with pytest.raises(command.ConfigError, match="/f00d: .*model_type=None"):
        serve.make("Org/Nano", **dict.fromkeys(SERVER))
    assert seen == [str(cached)]


SERVER = ("name", "slots", "max_length", "cache_tokens", "dtype", "tensor", "queue")
SERVER += ("top_logprobs", "grammar", "api_key", "stop_ids", "stop_seconds")


def test_a_model_that_is_not_here_is_a_matter_of_the_config(cached):
    config = common.base()
    config.model.path = "Org/Other"
    with pytest.raises(command.ConfigError, match="hf download Org/Other"):
        sessions.model_folder(config)
    with pytest.raises(command.ConfigError, match="hf download Org/Other"):
        serve.make("Org/Other", **dict.fromkeys(SERVER))


def test_a_template_sees_thinking_and_the_day_of_the_config(folder):
    day = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
    text = "{{ date_string }}{% if enable_thinking is false %} no thoughts{% endif %}"
    template(folder, f"{day}{text}{{% for m in messages %}} {{{{ m.content }}}}{{% endfor %}}")
    config = common.base()
    config.model.date = "1 May 2020"
    messages = [{"role": "user", "content": "hi"}]
    words = tokens.load(folder, switches=tokens.switches(config.model))
    assert words.decode(words.chat(messages)) == "1 May 2020 no thoughts hi"
    config.model.thinking = True
    words = tokens.load(folder, switches=tokens.switches(config.model))
    assert words.decode(words.chat(messages)) == "1 May 2020 hi"
    # A folder's name for a token does not overrule the config.
    names = {"date_string": "<|im_end|>"}
    edit(folder / "tokenizer_config.json", extra_special_tokens=names)
    words = tokens.load(folder, switches=tokens.switches(config.model))
    assert words.decode(words.chat(messages)) == "1 May 2020 hi"
    # As Mistral's and SmolLM3's templates ask for it.
    template(
        folder, "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %} {{ m.content }}{% endfor %}"
    )
    words = tokens.load(folder, switches=tokens.switches(config.model))
    assert words.decode(words.chat(messages)) == "2020-05-01 hi"
    config.model.date = "today"
    with pytest.raises(command.ConfigError, match="date_string='today' is no day like 26 Jul 2024"):
        tokens.load(folder, switches=tokens.switches(config.model))
