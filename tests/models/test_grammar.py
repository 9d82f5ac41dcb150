"""Grammars: what their masks allow is what the form allows, and the engine obeys them."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
import tokenizers

from agents import forms, memory, parsing, prompts
from models import decoder, huggingface, sharding
from models.engine import ahead
from models.engine.types import Request, Sampling
from models.tokenizer import Tokenizer
from tests.models import engines
from tools.protocol import Parameter, Tool

grammar = pytest.importorskip("models.engine.grammar", reason="needs the extra grammar")

MODEL = pathlib.Path(__file__).parents[2] / "experiments/data/quickstart/model"
ROWS, EOS = 2048, 2047
TINY = decoder.Config(
    vocab_size=ROWS,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    initializer_range=0.3,
)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ann", "Bo"]},
        "age": {"type": "integer", "minimum": -99, "maximum": 199},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def text():
    return tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def grammars(vocab_size=ROWS):
    return grammar.Grammars(
        (MODEL / "tokenizer.json").read_text(), vocab_size=vocab_size, eos_ids=(EOS,)
    )


def allowed_ids(constraint, vocab_size=ROWS):
    words = constraint.allowed()
    assert words.dtype == np.uint32 and words.shape == (-(-vocab_size // 32),)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def follows(text, constraint, ids):
    """Whether each of the tokens was allowed when it came."""
    for index in ids:
        if index not in allowed_ids(constraint):
            return False
        constraint.accept(index)
    return True


@pytest.mark.parametrize(
    "answer, valid",
    [
        ('{"name":"Ann","age":3}', True),
        ('{"name": "Bo", "age": -17}', True),
        ('{"name":"Cy","age":3}', False),
        ('{\n  "name": "Ann",\n  "age": 3\n}', True),
        ('{"name":"Ann"}', False),
        ('{"name":"Ann","age":3.5}', False),
        ('{"name":"Ann","age":3,"x":1}', False),
        ('Sure! {"name":"Ann","age":3}', False),
        ('{"name":' + " " * 40 + '"Ann","age":3}', False),
    ],
)
def test_the_masks_let_through_what_the_schema_allows(text, answer, valid):
    ids = text.encode(answer, add_special_tokens=False).ids
    assert follows(text, grammars().json_schema(PERSON), [*ids, EOS]) == valid


def test_after_the_end_only_the_end_token_is_allowed(text):
    constraint = grammars().json_schema({"enum": ["a"]})
    assert EOS not in allowed_ids(constraint)
    assert follows(text, constraint, text.encode('"a"', add_special_tokens=False).ids)
    assert allowed_ids(constraint) == {EOS}
    constraint.accept(EOS)
    assert allowed_ids(constraint) == {EOS} and not constraint.error


def test_rows_without_a_token_are_never_allowed():
    ids = allowed_ids(grammars(ROWS + 100).json_schema({"type": "string"}), ROWS + 100)
    assert ids and max(ids) < EOS


def test_copies_go_separate_ways(text):
    first = grammars().json_schema({"enum": ["a", "b"]})
    quote, a, b = (text.token_to_id(t) for t in '"ab')
    first.accept(quote)
    second = first.copy()
    first.accept(a)
    assert b in allowed_ids(second) and b not in allowed_ids(first)


def test_a_grammar_that_failed_ends_the_response_and_says_why(text):
    constraint = grammars().json_schema({"enum": ["a"]})
    constraint.accept(text.token_to_id("z"))
    assert allowed_ids(constraint) == {EOS}
    assert "doesn't satisfy the grammar" in constraint.error and "\n" not in constraint.error


@pytest.mark.parametrize(
    "schema, message",
    [
        ({"type": "person"}, "Invalid type: person"),
        ({"not": {"type": "string"}}, "Unimplemented keys"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "cannot be followed"),
    ],
)
def test_an_unusable_schema_is_refused(schema, message):
    with pytest.raises(ValueError, match=message):
        grammars().json_schema(schema)


def letters(count):
    """A form in which patterns that are joined cost most."""
    return {"type": "string", "pattern": f".*[a-z]{{{count}}}.*"}


def nested(field):
    schema = {"type": "string"}
    for count in range(1, 13):
        schema = letters(count) | {field: [schema]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [letters(count) for count in range(1, 13)]},
        {"allOf": [{"type": "object", "properties": {"a": letters(c)}} for c in range(1, 13)]},
        nested("allOf"),
        nested("anyOf"),
        nested("oneOf"),
        {"$ref": "#/$defs/1"}
        | {"$defs": {f"{c}": letters(c) | {"$ref": f"#/$defs/{c + 1}"} for c in range(1, 13)}},
    ],
)
def test_patterns_that_are_joined_are_counted_before_they_are_compiled(schema, monkeypatch):
    compile_ = lambda *_, **__: pytest.fail("it takes more than a second, then minutes")
    monkeypatch.setattr(grammar.llguidance.LLMatcher, "grammar_from_json_schema", compile_)
    compiled = grammars()
    with pytest.raises(ValueError, match="has 12 different patterns .* most are 10"):
        compiled.json_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"{count}": letters(count) for count in range(1, 13)}},
        {"anyOf": [letters(count) for count in range(1, 13)], "title": "one of them"},
        {"allOf": [letters(1), *({"$ref": "#/$defs/b"} for _ in range(12))]}
        | {"$defs": {"b": letters(2)}},
        {"type": "object", "properties": {"allOf": letters(1), "$ref": letters(2)}},
    ],
)
def test_patterns_of_other_values_and_repeated_ones_may_be_many(schema):
    assert allowed_ids(grammars().json_schema(schema)) != {EOS}


@pytest.mark.parametrize(
    "answer, valid",
    [("yes, 12", True), ("no, 7", True), ("yes", False), ("no, 1234", False), ("so: no, 7", False)],
)
def test_the_masks_let_through_what_an_expression_matches(text, answer, valid):
    compiled = grammars()
    ids = text.encode(answer, add_special_tokens=False).ids
    for _ in range(2):  # the second one is a copy of what the first did not use up
        assert follows(text, compiled.expression("(?:yes|no), [0-9]{1,3}"), [*ids, EOS]) == valid


def test_an_unusable_expression_is_refused():
    for pattern in ("(", "a(?=b)"):
        with pytest.raises(ValueError, match="regular expression cannot be followed"):
            grammars().expression(pattern)


def test_programs_made_ahead_take_masks_too():
    model = jax.eval_shape(lambda key: decoder.Decoder(key, TINY), jax.random.key(0))
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    shapes = dict(slots=4, max_length=64, cache_tokens=256, page_size=16, prefill_tokens=16)
    shapes |= dict(prefill_rows=2, decode_steps=2, dtype=np.float32, separate=False)
    for constraints in (True, False):
        programs = ahead.lowered(model, mesh=mesh, constraints=constraints, **shapes)
        for name, rows in {"prefill": 2, "decode": 4}.items():
            masks = [x for x in jax.tree.leaves(programs[name].args_info) if x.dtype == np.uint32]
            assert ((rows, ROWS // 32) in [x.shape for x in masks]) == constraints


@pytest.mark.slow
def test_the_engine_obeys_and_leaves_neighbours_alone(text):
    """Random draws at a high temperature: nothing but the masks can make them valid JSON."""
    engine = engines.build(
        {"policy": decoder.Decoder(jax.random.key(0), TINY)},
        slots=4,
        max_length=128,
        page_size=16,
        prefill_tokens=16,
        prefill_rows=2,
        decode_steps=2,
        constraints=True,
    )
    prompt = tuple(text.encode("Who is it?", add_special_tokens=False).ids)
    sampling = Sampling(max_tokens=100, temperature=2.0, stop_ids=(EOS,))
    free = Request(prompt, sampling, address=(0,))

    def run(requests):
        ids = [engine.submit(request) for request in requests]
        found = {}
        while engine.pending:
            found |= dict(engine.advance())
        return [found[id] for id in ids]

    [alone] = run([free])
    compiled = grammars()
    bound = [
        Request(prompt, sampling, address=(n,), constraint=compiled.json_schema(PERSON))
        for n in range(6)
    ]
    mixed = run(list(itertools.chain(bound[:3], [free], bound[3:])))
    assert mixed[3].tokens.tolist() == alone.tokens.tolist()
    answers = {text.decode(c.tokens) for n, c in enumerate(mixed) if n != 3}
    assert len(answers) > 1
    for answer in answers:
        person = json.loads(answer)
        assert person["name"] in ("Ann", "Bo") and type(person["age"]) is int
    assert all(c.stop_reason == "stop" for n, c in enumerate(mixed) if n != 3)
    assert all(np.isfinite(c.logprobs).all() for c in mixed)


@pytest.mark.slow
def test_frozen_modules_write_what_their_parsers_accept():
    """At a temperature at which the shipped model forgets the forms that it was trained on."""
    words, model = Tokenizer.load(MODEL), huggingface.load(MODEL, dtype=np.float32)
    tool = Tool("knowledge_search", "", (Parameter("query", "str", ""),), "", "", str, 1.0)
    asked = "What is the capital of Spain?", "capital", memory.Memory()
    roles = [
        (
            prompts.executor(prompts.COMPACT, tool, "Spain", "capital"),
            forms.command(tool),
            lambda reply: parsing.calls(reply, tool),
        ),
        (
            prompts.verifier(prompts.COMPACT, {tool.name: tool}, *asked),
            forms.VERDICT,
            parsing.verdict,
        ),
    ]
    engine = engines.build(
        {"frozen": model},
        slots=8,
        max_length=800,
        page_size=16,
        prefill_tokens=32,
        decode_steps=1,
        constraints=True,
    )
    compiled = grammar.Grammars(
        words.json, vocab_size=model.config.vocab_size, eos_ids=words.eos_ids
    )

    def replies(*, bound):
        """[(reply, its parser)] of four draws of each role."""
        asked = {}
        for number, (messages, form, parse) in enumerate(roles):
            for draw in range(4):
                request = Request(
                    tuple(words.chat(messages)),
                    Sampling(max_tokens=700, temperature=2.0, stop_ids=words.eos_ids),
                    weights="frozen",
                    address=(number, draw),
                    constraint=compiled.expression(form) if bound else None,
                )
                asked[engine.submit(request)] = parse
        found = {}
        while engine.pending:
            found |= dict(engine.advance())
        return [(words.decode(found[id].tokens), parse) for id, parse in asked.items()]

    def parses(reply, parse):
        try:
            parse(reply)
        except parsing.ParseError:
            return False
        return True

    held = replies(bound=True)
    assert all(parses(*pair) for pair in held)
    assert [reply for reply, _ in held] == [reply for reply, _ in replies(bound=True)]
    assert sum(parses(*pair) for pair in replies(bound=False)) <= 4
