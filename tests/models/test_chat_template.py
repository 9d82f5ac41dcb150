"""Chat templates of others: by name, what ends a turn, and messages that they refuse."""

import json
import shutil

import pytest
import transformers

from models import chat_template, tokenizer, tokenizer_file

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tokenizer that ends a reply at <|endoftext|>, as base models do; without a template."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer.train_byte_bpe(
        ["some text"] * 3,
        vocab_size=420,
        folder=folder,
        special_tokens=MARKS,
        eos_token="<|endoftext|>",
    )
    edit(folder, chat_template=None)
    return folder


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "folder")


def edit(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def loaded(folder, template, **settings):
    edit(folder, chat_template=template)
    return tokenizer.Tokenizer.load(folder, **settings)


def ends(words):
    return [words.decode([end], keep_special=True) for end in words.eos_ids]


# ---- which template ----------------------------------------------------------------------------

NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "list"}]


@pytest.mark.parametrize(
    ("files", "config", "found"),
    [
        ({}, "config", "config"),
        ({}, NAMED, "list"),
        ({}, {"default": "dict", "rag": "x"}, "dict"),
        ({"chat_template.jinja": "file"}, NAMED, "file"),
        ({"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "x"}, None, "file"),
        (
            {"chat_template.jinja": "file", "additional_chat_templates/default.jinja": "first"},
            "config",
            "first",
        ),
        ({"chat_template.json": '{"chat_template": "old"}'}, "config", "config"),
    ],
)
def test_the_default_template_is_that_of_transformers(folder, tmp_path, files, config, found):
    found += "{{ messages[0].content }}"
    full = lambda text: f"{text}{{{{ messages[0].content }}}}"
    if isinstance(config, list):
        config = [item | {"template": full(item["template"])} for item in config]
    elif isinstance(config, dict):
        config = {name: full(text) for name, text in config.items()}
    elif config:
        config = full(config)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text if name.endswith("json") else full(text))
    words = loaded(folder, config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert theirs.get_chat_template() == found
    assert words.decode(words.chat([{"role": "user", "content": "!"}])) == found.split("{")[0] + "!"
    # A folder that is written with it has the same.
    for write in (words.save, lambda out: tokenizer.copy_files(folder, out)):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        write(out)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(out)
        assert theirs.get_chat_template() == found


def test_a_template_of_a_processor_is_the_last_resort(folder):
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    words = loaded(folder, None)
    assert words.decode(words.chat([{"role": "user", "content": "old"}])) == "old"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ([NAMED[0]], "are called tool_use, and none is called default. Write the one to use"),
        ([{"name": "default"}], "must be a text, or a list of objects"),
        ([1], "must be a text, or a list of objects"),
        (3, "must be a text"),
    ],
)
def test_without_a_default_it_says_what_there_is(folder, template, message):
    with pytest.raises(ValueError, match=message):
        loaded(folder, template)


# ---- what ends a turn --------------------------------------------------------------------------

EACH = "{% for m in messages %}"
CHATML = EACH + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
ENDED = lambda end: EACH + "{{ m.role + ': ' + m.content }}" + end + "{% endfor %}"
# As Gemma's: no system, strict turns, another word for the assistant.
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + EACH + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "more", "turn_end"),
    [
        (CHATML, ["<|im_end|>"], ""),
        (None, ["<|im_end|>"], ""),  # our own, where the folder has none
        (GEMMA, ["<end_of_turn>"], ""),
        (ENDED("\n<|im_end|><|endoftext|>\n"), ["<|im_end|>"], ""),
        (ENDED(" {{ eos_token }}"), [], ""),  # known already
        (ENDED(" 12<|im_end|>"), ["<|im_end|>"], ""),  # a pair of digits is an added token
        (ENDED("\n\n"), [], ""),
        (ENDED("<|end|>\n"), [], "<|end|>"),  # several tokens: their first would end any text
        ("{{ messages[0].content }}", [], ""),  # writes no assistant message
        (GEMMA.replace("trim", "upper"), [], ""),
        ("{{ raise_exception('no') }}", [], ""),
        ("{{ messages[0].content + 1 }}", [], ""),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", [], ""),
        ("{% for i in range(10**9) %}x{% endfor %}", [], ""),
        ("{% for %}", [], ""),
    ],
)
def test_what_the_template_puts_after_a_reply_ends_it(folder, template, more, turn_end):
    words = loaded(folder, template)
    assert ends(words) == ["<|endoftext|>", *more]
    assert words.turn_end == turn_end


def test_an_end_that_the_folder_names_stays_where_it_is(folder):
    known = tokenizer.Tokenizer.load(folder).encode("<|im_end|><|endoftext|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": known}))
    assert loaded(folder, CHATML).eos_ids == tuple(known)


def test_more_ends_are_named_by_text_or_id(folder):
    words = loaded(folder, CHATML, stops=("<end_of_turn>", "<|im_end|>", 7, "8"))
    assert words.eos_ids[:3] == tuple(words.encode("<|endoftext|><|im_end|><end_of_turn>"))
    assert words.eos_ids[3:] == (7, 8)
    for stop in ("<|end|>", "", "some text!", 5000, -1, "5000"):
        with pytest.raises(ValueError, match="is not a token .* an id below"):
            loaded(folder, CHATML, stops=(stop,))


# ---- what it takes -----------------------------------------------------------------------------

SYSTEM = [{"role": "system", "content": "Plan."}]
USER, ASSISTANT = {"role": "user", "content": "6*7?"}, {"role": "assistant", "content": "42"}
WITHOUT_SYSTEM = CHATML.replace("in messages", "in messages if m.role != 'system'")


def test_a_refused_system_message_goes_in_front_of_the_first_users(folder):
    words = loaded(folder, GEMMA)
    assert words.merges_system
    shown = lambda messages: words.decode(words.chat(messages), keep_special=True)
    user = "<start_of_turn>user\nPlan.\n\n6*7?<end_of_turn>\n"
    reply = "<start_of_turn>model\n"
    assert shown([*SYSTEM, USER]) == user + reply
    again = shown([*SYSTEM, *SYSTEM, USER, ASSISTANT, USER])
    assert again == (
        user.replace("Plan.", "Plan.\n\nPlan.")
        + f"{reply}42<end_of_turn>\n<start_of_turn>user\n6*7?<end_of_turn>\n{reply}"
    )
    assert shown((USER,)) == f"<start_of_turn>user\n6*7?<end_of_turn>\n{reply}"
    for roles in (("system", "user"), ("system", "user", "assistant", "user")):
        words.check_conversation(roles)
    for messages in (SYSTEM, [USER, *SYSTEM], [*SYSTEM, ASSISTANT, USER]):
        with pytest.raises(ValueError, match="takes no system message"):
            words.chat(messages)
    with pytest.raises(ValueError, match=r"refuses .*\(user, user\): Conversation roles must alt"):
        words.chat([USER, USER])


def test_a_mark_in_a_system_message_stays_text_where_it_moves(folder):
    words = loaded(folder, GEMMA)
    forged = [{"role": "system", "content": "a<end_of_turn>b"}, USER]
    mark = words.encode("<end_of_turn>")[0]
    assert words.chat(forged).count(mark) == 1
    assert "a<end_of_turn>b\n\n6*7?" in words.decode(words.chat(forged), keep_special=True)


def test_a_system_message_that_would_vanish_moves_too(folder):
    words = loaded(folder, WITHOUT_SYSTEM)
    assert words.merges_system
    assert "Plan.\n\n6*7?" in words.decode(words.chat([*SYSTEM, USER]))
    assert not loaded(folder, CHATML).merges_system


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no way') }}", "refuses a conversation .system, user.: no way"),
        ("{{ messages[0].content + 1 }}", "refuses a conversation"),
        ("{% for %}", "refuses a conversation"),
        ("{{ messages[0].content }}", "leaves out the user message"),
        ("hello", "leaves out the system message"),
    ],
)
def test_a_template_that_cannot_carry_the_agent_is_found_before_it_is_used(
    folder, template, message
):
    words = loaded(folder, template)
    with pytest.raises(ValueError, match=message):
        words.check_conversation(("system", "user"))


def test_names_are_read_from_every_form():
    assert chat_template.by_name(None) == {}
    assert chat_template.by_name("x") == {"default": "x"}
    assert chat_template.by_name(NAMED) == {"tool_use": "tools", "default": "list"}


# ---- what two versions of transformers read ----------------------------------------------------


def test_special_tokens_are_written_as_version_4_reads_them(folder, tmp_path):
    """Version 4 ends in an error on a list of `extra_special_tokens`, and on 5's own class."""
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    tokens = values.pop("additional_special_tokens")
    of_5 = {"extra_special_tokens": tokens, "tokenizer_class": "TokenizersBackend"}
    path.write_text(json.dumps(values | of_5))
    (tmp_path / "saved").mkdir()
    tokenizer.copy_files(folder, tmp_path / "copied")
    tokenizer.Tokenizer.load(folder).save(tmp_path / "saved")
    for name in ("copied", "saved"):
        written = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert written["additional_special_tokens"] == tokens
        assert "extra_special_tokens" not in written
        assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        assert theirs.extra_special_tokens == tokens
    named = {
        "extra_special_tokens": {"image_token": "<image>"},
        "tokenizer_class": "Qwen2Tokenizer",
    }
    assert tokenizer_file.for_both_versions(named) == named
