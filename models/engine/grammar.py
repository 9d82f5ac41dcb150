"""Output of a form: JSON of a schema, or what a regular expression matches.

    grammars = Grammars(tokenizer_json, vocab_size=model.config.vocab_size, eos_ids=eos_ids)
    engine.submit(Request(tokens, sampling, constraint=grammars.json_schema({"type": "object"})))

Done by the llguidance library (extra `grammar`). A trainer must apply the same masks to
the log-probs of such a response.

Dimensions:
  W words of a mask of allowed tokens
"""

import json

import llguidance
import numpy as np

# Between the parts of JSON: a blank, or a new line with its indent. A weak model never
# returns from whitespace without an end.
DEFAULTS = {"whitespace_pattern": r"\x20|\n(\x20{0,16}|\t{0,8})"}
# Patterns and formats of a schema that may join them for one value. Time and memory grow fourfold
# with each more, and no limit of llguidance counts that: 14 took 9 s and 0.7 GB.
MOST_JOINED = 10
TEXTUAL, SEVERAL = ("pattern", "format"), ("allOf", "anyOf", "oneOf")
NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
NOTES |= {"$schema", "$id", "$comment", "$defs", "definitions"}  # fields that demand nothing


class Grammars:
    """Makes constraints for one vocabulary. Threads may share it.

    Args:
      tokenizer_json: text of a tokenizer.json.
      vocab_size: rows of the model's vocabulary; those that the tokenizer lacks are never allowed.
      eos_ids: ids that end a response, allowed where the grammar may end.
    """

    def __init__(self, tokenizer_json, *, vocab_size, eos_ids):
        self._tokenizer = llguidance.LLTokenizer(
            tokenizer_json, n_vocab=vocab_size, eos_token=list(eos_ids)
        )
        self._words = -(-vocab_size // 32)
        self._expressions = {}  # regular expression -> Constraint that nothing has used

    def json_schema(self, schema):
        """Returns the Constraint of a JSON schema (dict).

        Raises:
          ValueError: the schema is wrong, too large, or uses what llguidance does not support.
        """
        if (joined := _joined_patterns(schema)) > MOST_JOINED:
            raise ValueError(
                f"The JSON schema has {joined} different patterns and formats. With a value that "
                "must meet several schemas (allOf; $ref, anyOf or oneOf beside other fields) the "
                f"most are {MOST_JOINED}."
            )
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps(schema), defaults=DEFAULTS
        )
        return self._constraint("JSON schema", grammar)

    def expression(self, pattern):
        """Returns the Constraint of a regular expression, which the whole response matches.

        It is compiled once and kept: meant for the few forms that a program has.

        Args:
          pattern: without look-around and back references.

        Raises:
          ValueError: the pattern is wrong, too large, or uses what llguidance does not support.
        """
        if pattern not in self._expressions:
            grammar = llguidance.LLMatcher.grammar_from_regex(pattern)
            self._expressions[pattern] = self._constraint("regular expression", grammar)
        return self._expressions[pattern].copy()

    def _constraint(self, what, grammar):
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().split("\n<state>")[0]
            raise ValueError(f"The {what} cannot be followed: {reason}.")
        return Constraint(matcher, self._words)


class Constraint:
    """What one response may be; see `types.Request`. It is used up by that response.

    It never raises while the engine runs: a grammar that fails on the way ends the response, and
    `error` tells.
    """

    def __init__(self, matcher, words):
        self._matcher = matcher
        self._allowed_W = np.zeros(words, np.uint32)

    def allowed(self):
        """Returns uint32 words: bit v % 32 of word v // 32 is set if token v may come next.

        Where the grammar has ended or failed, only the ids that end a response are. The array is
        overwritten by the next call.
        """
        self._matcher.unsafe_compute_mask_ptr(self._allowed_W.ctypes.data, self._allowed_W.nbytes)
        return self._allowed_W

    def accept(self, token):
        """Moves on by a drawn token."""
        self._matcher.consume_token(token)

    def copy(self):
        """Returns one for another response, in the same state."""
        return Constraint(self._matcher.deep_copy(), len(self._allowed_W))

    @property
    def error(self):
        """Why the grammar failed on the way, such as a limit of the parser; "" if it did not."""
        return self._matcher.get_error().split("\n<state>")[0]


def _joined_patterns(schema):
    """Returns how many patterns and formats a schema has if it may join some; else 0."""
    patterns, joins, left = set(), False, [schema]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        if not isinstance(node, dict):
            continue
        left += node.values()
        patterns |= {(name, node[name]) for name in TEXTUAL if isinstance(node.get(name), str)}
        several = isinstance(node.get("$ref"), str)  # not a property of that name
        several |= any(isinstance(node.get(name), list) for name in SEVERAL)
        joins |= several and len(node.keys() - NOTES) > 1
        joins |= isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1
    return len(patterns) if joins else 0
