"""Request bodies: what is taken, what asks for nothing, and what is refused with what sentence."""

import pathlib

import pytest

from experiments.serving import errors, protocol
from models import tokenizer

MODEL = pathlib.Path(__file__).parents[2] / "experiments/data/quickstart/model"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}


@pytest.fixture(scope="module")
def parser():
    return protocol.Parser(
        tokenizer.Tokenizer.load(MODEL),
        max_length=1000,
        vocab_size=2048,
        top_logprobs=3,
        most_answers=8,
    )


def asked(parser, **more):
    """The Ask of a chat with further fields, and that of a completion."""
    return parser.chat(CHAT | more), parser.completion(TEXT | more)


# As clients of OpenAI and of vLLM send them when they ask for nothing.
NOTHING = {
    "add_generation_prompt": True,
    "add_special_tokens": False,
    "allowed_token_ids": None,
    "bad_words": [],
    "best_of": 1,
    "chat_template": None,
    "chat_template_kwargs": {},
    "continue_final_message": False,
    "detokenize": True,
    "documents": None,
    "echo": False,
    "frequency_penalty": 0.0,
    "function_call": "none",
    "functions": [],
    "guided_choice": None,
    "guided_decoding_backend": None,
    "guided_grammar": None,
    "guided_json": None,
    "guided_regex": None,
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "length_penalty": 1.0,
    "logit_bias": {},
    "logprobs": False,
    "max_completion_tokens": None,
    "max_tokens": None,
    "metadata": {"a": "b"},
    "min_p": 0,
    "min_tokens": 0,
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0,
    "priority": 0,
    "prompt_logprobs": None,
    "repetition_penalty": 1.0,
    "response_format": {"type": "text"},
    "seed": None,
    "service_tier": "auto",
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "stop": [],
    "stop_token_ids": [],
    "store": False,
    "stream": False,
    "stream_options": {"include_usage": False, "continuous_usage_stats": False},
    "structured_outputs": None,
    "suffix": "",
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_k": -1,
    "top_logprobs": 0,
    "top_p": 1,
    "truncate_prompt_tokens": None,
    "use_beam_search": False,
    "user": "me",
}


def test_values_that_ask_for_nothing_change_nothing(parser):
    assert asked(parser, **NOTHING) == asked(parser)
    assert asked(parser, **dict.fromkeys(NOTHING)) == asked(parser)
    for name, value in NOTHING.items():
        assert asked(parser, **{name: value}) == asked(parser), name


@pytest.mark.parametrize("neutral", [protocol.NEUTRAL])
def test_every_value_of_the_table_is_taken(parser, neutral):
    for name, values in neutral.items():
        for value in values:
            assert asked(parser, **{name: value}) == asked(parser), name


def test_what_has_a_meaning_here_keeps_it(parser):
    for ask in asked(parser, top_k=5, stop="x", n=2, best_of=2, seed=3, min_p=0.5, top_p=0.5):
        [(_, sampling)] = ask.prompts
        assert (sampling.top_k, sampling.stop_strings, sampling.min_p) == (5, ("x",), 0.5)
        assert (ask.choices, ask.seed, sampling.stop_ids) == (2, 3, (2047,))
    assert parser.completion(TEXT | {"logprobs": 0}).logprobs
    assert not parser.completion(TEXT | {"logprobs": False}).logprobs


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("repetition_penalty", 1.1, "or send 1"),
        ("repetition_penalty", True, "or send 1"),
        ("min_tokens", 5, "or send 0"),
        ("min_tokens", False, "or send 0"),
        ("skip_special_tokens", False, "or send true"),
        ("skip_special_tokens", 1, "or send true"),
        ("chat_template_kwargs", {"enable_thinking": False}, "or send {}"),
        ("logit_bias", {"5": 1}, "or send {}"),
        ("guided_json", {}, "leave it out"),
        ("prompt_logprobs", 0, "leave it out"),
        ("tools", [{"type": "function"}], r"or send \[\]"),
        ("tool_choice", "required", 'or send "auto" or "none"'),
        ("stop_token_ids", [5], r"or send \[\]"),
        ("best_of", 3, "or send 1"),
        ("use_beam_search", True, "or send false"),
    ],
)
def test_what_is_not_supported_says_the_field_the_value_and_what_is_taken(
    parser, field, value, accepted
):
    for parse, body in ((parser.chat, CHAT), (parser.completion, TEXT)):
        with pytest.raises(errors.ApiError, match=accepted) as caught:
            parse(body | {field: value})
        error = caught.value.body["error"]
        assert caught.value.status == 400 and error["param"] == field
        assert f"{field} is not supported here, and its value" in error["message"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_token", 5, "Unknown field 'max_token' with the value 5; did you mean max_tokens?"),
        ("repetition_penality", 1.0, "did you mean repetition_penalty?"),
        ("zzz", {}, "Unknown field 'zzz' with the value {}; leave it out."),
    ],
)
def test_unknown_fields_have_a_sentence_of_their_own(parser, field, value, message):
    for parse, body in ((parser.chat, CHAT), (parser.completion, TEXT)):
        with pytest.raises(errors.ApiError) as caught:
            parse(body | {field: value})
        assert message in str(caught.value) and caught.value.body["error"]["param"] == field


@pytest.mark.parametrize("value", [-2, 1.5, True, "all"])
def test_top_k_has_one_negative_value(parser, value):
    with pytest.raises(errors.ApiError, match="top_k must be an integer from -1"):
        parser.chat(CHAT | {"top_k": value})


def test_options_of_a_stream_need_one(parser):
    with pytest.raises(errors.ApiError, match="stream_options needs stream"):
        parser.chat(CHAT | {"stream_options": {"include_usage": True}})
    streaming = CHAT | {"stream": True}
    assert parser.chat(streaming | {"stream_options": {"include_usage": True}}).include_usage
    for name, message in (("continuous_usage_stats", "or send false"), ("x", "Unknown field 'x'")):
        with pytest.raises(errors.ApiError, match=message):
            parser.chat(streaming | {"stream_options": {name: True}})
