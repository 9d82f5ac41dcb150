"""Grammars: what their masks allow is what the schema allows, and the engine obeys them."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
import tokenizers

from models import qwen2
from models.engine.engine import Engine
from models.engine.types import Request, Sampling

grammar = pytest.importorskip("models.engine.grammar", reason="needs the extra grammar")

MODEL = pathlib.Path(__file__).parents[2] / "experiments/data/quickstart/model"
ROWS, EOS = 2048, 2047
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


@pytest.mark.slow
def test_the_engine_obeys_and_leaves_neighbours_alone(text):
    """Random draws at a high temperature: nothing but the masks can make them valid JSON."""
    config = qwen2.Config(
        vocab_size=ROWS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.3,
    )
    engine = Engine(
        {"policy": qwen2.Qwen2(jax.random.key(0), config)},
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
            found |= dict(engine.step())
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
