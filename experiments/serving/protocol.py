"""Turns a request body of OpenAI's API into work for the engine, or into its error.

Nothing is ignored in silence: a field that would change the answer and is not supported is an
error. Knows neither HTTP nor threads.
"""

import dataclasses
import difflib
import functools

from experiments.serving import answers
from experiments.serving.errors import MOST_SHOWN, as_json, invalid, shown
from flow_grpo_jax.bounds import json_text
from models.engine import types

COMPLETION_TOKENS = 16  # of a completion that does not say max_tokens
MOST_STOPS, LONGEST_STOP = 16, 256
MOST_MARKS = 500_000  # brackets, braces and quotes of a body

# Accepted and without effect here.
WITHOUT_EFFECT = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "user",
)
# Fields of OpenAI's API and of vLLM's that are not supported, and their values that ask for
# nothing: those are accepted. null asks for nothing in every field.
NEUTRAL = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "cache_salt": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "detokenize": (True,),
    "documents": ([],),
    "early_stopping": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (False, True),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "max_completion_tokens": (),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (False, True),
    "stop_token_ids": ([],),
    "store": (False,),
    "structural_tag": (),
    "structured_outputs": ({},),
    "suffix": ("",),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "web_search_options": (),
}
NEUTRAL_IN_STREAM_OPTIONS = {"continuous_usage_stats": (False,)}
MESSAGE_FIELDS = ("role", "content", "name", "refusal")  # the last two have no effect
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class Ask:
    """The work that one HTTP request asks for.

    shape: class that makes the answers.
    prompts: ((token ids, Sampling), ...).
    choices: answers to each prompt.
    seed: None, or an integer from which all draws follow.
    stream, include_usage: whether to stream, and to end with a chunk of token counts.
    logprobs: whether to report log-probs.
    schema: None, or the JSON schema that answers must follow.
    """

    shape: type
    prompts: tuple
    choices: int
    seed: int | None
    stream: bool
    include_usage: bool
    logprobs: bool
    schema: dict | None = None


class Fields:
    """The fields of a request body, each taken once; null means absent."""

    def __init__(self, body):
        if not isinstance(body, dict):
            raise invalid(f"The body is a JSON {type(body).__name__}; it must be an object.")
        self._values = {name: value for name, value in body.items() if value is not None}
        self._taken = []

    def _pop(self, name, default):
        self._taken.append(name)
        return self._values.pop(name, default)

    def drop(self, name, nothing):
        """Takes a field as absent if it has the value `nothing`."""
        if name in self._values and _equal(self._values[name], nothing):
            del self._values[name]

    def take(self, name, default=None, *, kind=None):
        """Returns the value of a field; ApiError if it is not of this kind."""
        value = self._pop(name, default)
        if value is not default and kind is not None and type(value) is not kind:
            raise invalid(f"{name} must be a {_JSON[kind]}, not {shown(value)}.", param=name)
        return value

    def number(self, name, default, low, high):
        """Returns a float in [low, high]."""
        value = self._pop(name, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise invalid(
                f"{name} must be a number from {low} to {high}, not {shown(value)}.",
                param=name,
            )
        return float(value)

    def integer(self, name, default, low, high=2**31 - 1):
        """Returns an int in [low, high], or the default."""
        value = self._pop(name, default)
        if value is not default and (type(value) is not int or not low <= value <= high):
            raise invalid(
                f"{name} must be an integer from {low} to {high}, not {shown(value)}.",
                param=name,
            )
        return value

    def finish(self, neutral, without_effect=()):
        """Refuses fields that were not taken and ask for something.

        Args:
          neutral: {field that is not supported: its values that ask for nothing}.
          without_effect: fields that may have any value.
        """
        for name, value in self._values.items():
            nothings = neutral.get(name, ())
            if name in without_effect or any(_equal(value, nothing) for nothing in nothings):
                continue
            if name in neutral:
                only = f", or send {' or '.join(map(as_json, nothings))}" if nothings else ""
                raise invalid(
                    f"{name} is not supported here, and its value {as_json(value)} asks for "
                    f"something; leave it out{only}.",
                    param=name,
                )
            known = [*self._taken, *neutral, *without_effect]
            name = name[:MOST_SHOWN]
            meant = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {meant[0]}? If not, leave it out" if meant else "leave it out"
            raise invalid(
                f"Unknown field {shown(name)} with the value {as_json(value)}; {hint}.",
                param=name,
            )


class Parser:
    """Reads request bodies for one model.

    Args:
      tokenizer: `models.tokenizer.Tokenizer`.
      max_length: most tokens of prompt and answer.
      vocab_size: rows of the model's vocabulary.
      top_logprobs: most alternatives per token.
      most_answers: most answers of one request.
    """

    def __init__(self, tokenizer, *, max_length, vocab_size, top_logprobs, most_answers):
        self._tokenizer = tokenizer
        self._most_characters = max_length * tokenizer.longest_token
        self._max_length, self._vocab_size = max_length, vocab_size
        self._top_logprobs, self._most_answers = top_logprobs, most_answers

    def chat(self, body):
        """Returns the Ask of /v1/chat/completions."""
        fields = Fields(body)
        messages = self._messages(fields.take("messages", kind=list))
        wanted = fields.take("logprobs", False, kind=bool)
        top = fields.integer("top_logprobs", 0, 0, self._top_logprobs)
        if top and not wanted:
            raise invalid("top_logprobs needs logprobs: true.", param="top_logprobs")
        limit = fields.integer("max_tokens", None, 1)
        limit = fields.integer("max_completion_tokens", limit, 1)
        schema = _schema(fields.take("response_format", kind=dict))
        prompts, limits = [functools.partial(self._conversation, messages)], (limit, None)
        return self._ask(answers.Chat, fields, prompts, limits, top, logprobs=wanted, schema=schema)

    def completion(self, body):
        """Returns the Ask of /v1/completions."""
        fields = Fields(body)
        prompts = self._prompts(fields.take("prompt"))
        fields.drop("logprobs", False)
        top = fields.integer("logprobs", None, 0, self._top_logprobs)
        limits = fields.integer("max_tokens", None, 1), COMPLETION_TOKENS
        return self._ask(answers.Text, fields, prompts, limits, top or 0, logprobs=top is not None)

    def _ask(self, shape, fields, prompts, limits, top, *, logprobs, schema=None):
        """Returns an Ask. Each of `prompts` is called for its token ids when all else is right."""
        choices = fields.integer("n", 1, 1)
        fields.drop("best_of", choices)
        if choices * len(prompts) > self._most_answers:
            raise invalid(
                f"{len(prompts)} prompts with n={choices} are {choices * len(prompts)} answers; "
                f"one request may ask for {self._most_answers}.",
                param="n",
            )
        stream = fields.take("stream", False, kind=bool)
        options = Fields(fields.take("stream_options", {}, kind=dict))
        include_usage = options.take("include_usage", False, kind=bool)
        options.take("include_obfuscation", kind=bool)
        options.finish(NEUTRAL_IN_STREAM_OPTIONS)
        if include_usage and not stream:
            raise invalid("stream_options needs stream: true.", param="stream_options")
        ignore_eos = fields.take("ignore_eos", False, kind=bool)
        sampling = dict(
            temperature=fields.number("temperature", 1.0, 0, 2),
            top_p=fields.number("top_p", 1.0, 0, 1),
            top_k=max(fields.integer("top_k", 0, -1), 0),  # -1 is vLLM's word for all
            min_p=fields.number("min_p", 0.0, 0, 1),
            stop_strings=_stops(fields.take("stop")),
            stop_ids=() if ignore_eos else self._tokenizer.eos_ids,
            top_logprobs=top,
        )
        seed = fields.integer("seed", None, -(2**63), 2**63 - 1)
        fields.take("model")
        fields.finish(NEUTRAL, WITHOUT_EFFECT)
        prompts = [tokens() for tokens in prompts]
        try:
            most = [self._limit(prompt, *limits) for prompt in prompts]
            samplings = [types.Sampling(tokens, **sampling) for tokens in most]
        except ValueError as error:
            raise invalid(str(error)) from error
        prompts = tuple(zip(map(tuple, prompts), samplings, strict=True))
        return Ask(shape, prompts, choices, seed, stream, include_usage, logprobs, schema)

    def _limit(self, prompt, limit, default):
        """Returns the most tokens to draw after a prompt; by default all that fit."""
        room = self._max_length - len(prompt)
        if not prompt:
            raise invalid("The prompt has no token.", param="prompt")
        if room < 0:
            raise self._too_long(f"more than {self._max_length} tokens")
        if room < (limit or 1):
            asked = f" and {limit} tokens of answer" if limit else ""
            raise self._too_long(f"{len(prompt)} tokens", asked)
        return limit or min(default or room, room)

    def _too_long(self, size, asked=""):
        return invalid(
            f"The prompt has {size}; with it{asked} the request exceeds the {self._max_length} "
            "tokens that this server takes. Shorten it.",
            code="context_length_exceeded",
        )

    def _check_characters(self, texts):
        """Refuses at once what would take long to tokenize and cannot fit."""
        if sum(map(len, texts)) > self._most_characters:
            raise self._too_long(f"more than {self._most_characters} characters")

    def _messages(self, messages):
        if not messages:
            raise invalid("messages must hold at least one message.", param="messages")
        if len(messages) > self._max_length:
            raise self._too_long(f"{len(messages)} messages")
        return [self._message(index, message) for index, message in enumerate(messages)]

    def _message(self, index, message):
        where = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise invalid(
                f"{where} must be an object with a role of {', '.join(ROLES)}.", param="messages"
            )
        more = [name for name, value in message.items() if value and name not in MESSAGE_FIELDS]
        if more:
            raise invalid(f"{where}: {shown(more[0])} is not supported.", param="messages")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part if isinstance(part, dict) else {} for part in content]
            if any(part.get("type") != "text" for part in parts):
                raise invalid(f"{where}: only parts of type text are supported.", param="messages")
            texts = [_text(part.get("text"), f"{where}: the text of a part") for part in parts]
            content = "".join(texts)
        return {"role": ROLES[role], "content": _text(content, f"{where}: content")}

    def _conversation(self, messages):
        self._check_characters([message["content"] for message in messages])
        try:
            return self._tokenizer.chat(messages, most=self._max_length)
        except ValueError as error:  # of the chat template
            raise invalid(str(error), param="messages") from error

    def _prompts(self, prompt):
        """Returns what gives each prompt's ids; in a text, special tokens are recognised."""
        several = isinstance(prompt, list) and not all(type(item) is int for item in prompt)
        prompts = prompt if several else [prompt]
        return [functools.partial(self._tokens, item) for item in prompts]

    def _tokens(self, prompt):
        if isinstance(prompt, list) and all(type(item) is int for item in prompt):
            if len(prompt) > self._max_length:
                raise self._too_long(f"{len(prompt)} tokens")
            wrong = [item for item in prompt if not 0 <= item < self._vocab_size]
            if wrong:
                raise invalid(
                    f"Token id {shown(wrong[0])} is outside the vocabulary of {self._vocab_size}.",
                    param="prompt",
                )
            return prompt
        self._check_characters([_text(prompt, "prompt")])
        return self._tokenizer.encode(prompt, most=self._max_length)


def _stops(stop):
    stops = [] if stop is None else stop if isinstance(stop, list) else [stop]
    stops = [_text(text, "stop") for text in stops[: MOST_STOPS + 1]]
    if len(stops) > MOST_STOPS or not all(0 < len(text) <= LONGEST_STOP for text in stops):
        raise invalid(
            f"stop takes up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters.", param="stop"
        )
    return tuple(stops)


def _schema(response_format):
    """Returns the JSON schema of a response_format, or None."""
    if response_format is None:
        return None
    kind, name = response_format.get("type"), "response_format"
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise invalid(f"{name}.type must be text, json_object or json_schema.", param=name)
    schema = response_format.get("json_schema")
    schema = schema.get("schema") if isinstance(schema, dict) else None
    if not isinstance(schema, dict):
        raise invalid(f"{name}.json_schema.schema must be an object.", param=name)
    return schema


_JSON = {bool: "boolean", dict: "JSON object", list: "list", str: "string"}


def _equal(value, other):
    """Whether two JSON values are equal; 1 and true are not."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _text(value, name):
    if not isinstance(value, str):
        raise invalid(f"{name} must be a string, not {shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(f"{name} is no valid Unicode: it holds half a surrogate pair.") from None
    return value


def from_json(body):
    """Returns the value of a request body."""
    if sum(map(body.count, b'[{"')) > MOST_MARKS:  # reading it would stop all other work
        raise invalid(f"The body has more than {MOST_MARKS} brackets, braces and quotes.")
    try:
        return json_text.parse(body)
    except ValueError as error:
        raise invalid(f"The body is no valid JSON: {error}.") from error
