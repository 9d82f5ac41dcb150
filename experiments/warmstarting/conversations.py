"""Conversations to learn from: rows of messages, and their replies as token ids.

A row is {"messages": [{"role", "content"}, …], "module"}: roles are system, user and assistant,
`module` is optional and names who wrote the replies (`effects.ROLES`). What is learnt are the
assistant's messages, each as the reply to the messages before it, with the ids that a rollout would
see: the prompt by the chat template, then the reply and the token that ends it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from absl import logging

from agents import effects
from flow_grpo_jax import files as written
from flow_grpo_jax.datasets import files
from flow_grpo_jax.datasets.fields import BadField, broken_text, shown

ROLES = ("system", "user", "assistant")  # of messages
REPLIES = ("last", "all")  # of a conversation
CHOICES = ("refuse", "drop")
SHOWN = 3  # problems that an error names


@dataclasses.dataclass(frozen=True)
class Example:
    """A reply and what it answers.

    place: where it stands, as an error names it.
    module: of `effects.ROLES`, or "".
    messages: ({"role", "content"}, …) before the reply.
    """

    place: str
    module: str
    messages: tuple[dict, ...]
    reply: str


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An Example as token ids; the reply's include the token that ends it."""

    example: Example
    prompt_tokens: tuple[int, ...]
    reply_tokens: tuple[int, ...]

    @property
    def tokens(self):
        return self.prompt_tokens, self.reply_tokens


@dataclasses.dataclass(frozen=True)
class Limits:
    """Most tokens.

    prompt: of a prompt.    reply: module -> tokens of a reply, "" for conversations of none.
    row, row_replies: of a whole example and of its reply, in the largest row.
    """

    prompt: int
    reply: Mapping[str, int]
    row: int
    row_replies: int

    def exceeded(self, encoded):
        """Returns which limit an Encoded is over, "" if none."""
        prompt, reply = len(encoded.prompt_tokens), len(encoded.reply_tokens)
        if prompt > self.prompt:
            return f"its prompt has {prompt} tokens; rollouts allow {self.prompt}"
        if reply > self.reply[encoded.example.module]:
            allowed = self.reply[encoded.example.module]
            return f"its reply has {reply} tokens; rollouts allow {allowed}"
        if reply > self.row_replies:
            return f"its reply has {reply} tokens; batch.response_lengths end at {self.row_replies}"
        if prompt + reply > self.row:
            return f"it has {prompt + reply} tokens; batch.row_lengths end at {self.row}"
        return ""


def read(path, *, modules, replies, bad_rows):
    """Reads the Examples of a file: .jsonl, .json, .parquet or a TFDS folder.

    Args:
      modules: those to learn; empty for all conversations, with a module or without.
      replies: "last" or "all" of the assistant's messages of a conversation.
      bad_rows: "refuse" or "drop" what is no conversation.

    Raises:
      ValueError: the file cannot be read, rows are no conversations, or none is left.
    """
    found, problems, others = [], [], 0
    for place, row in files.rows(pathlib.Path(path)):
        try:
            if isinstance(row, BadField):
                raise row
            examples = _examples(row, f"{path}, {place}", replies)
            if modules and not examples[0].module:
                raise BadField(
                    f"has no 'module', and warmstart.modules names {', '.join(modules)}; add it, "
                    "or leave warmstart.modules empty to learn every conversation"
                )
        except BadField as problem:
            problems.append(f"{path}, {place} {problem}")
            continue
        wanted = not modules or examples[0].module in modules
        found += examples if wanted else []
        others += not wanted
    settle(problems, how=bad_rows, field="bad_rows")
    if others:
        logging.info("%s: %d conversations are of other modules", path, others)
    if not found:
        wanted = f" of {', '.join(modules)}" if modules else ""
        raise ValueError(f"{path} has no conversation{wanted} to learn from.")
    return found


def encode(examples, vocabulary, *, limits, too_long, bad_rows):
    """Returns the Encoded of Examples.

    Args:
      vocabulary: Tokenizer.
      limits: `Limits`.
      too_long, bad_rows: "refuse" or "drop" what is over a limit, or what the chat template does
        not take.

    Raises:
      ValueError: one was to be refused, or none is left.
    """
    found, bad, long = [], [], []
    for example in examples:
        try:
            prompt = tuple(vocabulary.chat(example.messages))
            encoded = Encoded(example, prompt, tuple(vocabulary.reply(example.reply)))
        except ValueError as error:
            bad.append(f"{example.place} cannot be encoded: {error}")
            continue
        why = limits.exceeded(encoded)
        long += [f"{example.place} is too long: {why}"] if why else []
        found += [] if why else [encoded]
    settle(bad, how=bad_rows, field="bad_rows")
    settle(long, how=too_long, field="too_long")
    if not found:
        raise ValueError(f"None of {len(examples)} replies is left to learn.")
    return found


def settle(problems, *, how, field):
    """Raises ValueError for problems of examples, or logs them where they may be dropped."""
    if not problems:
        return
    more = f" And {len(problems) - SHOWN} more." if problems[SHOWN:] else ""
    text = "; ".join(problems[:SHOWN]).rstrip(".") + f".{more}"
    if how == "refuse":
        raise ValueError(
            f"{text} Mend the file, or leave such rows out with --config.warmstart.{field}=drop."
        )
    logging.warning("left out %d rows: %s", len(problems), text)


def write(path, examples):
    """Writes Examples, or what has their module, messages and reply, as a .jsonl file."""
    lines = []
    for example in examples:
        reply = {"role": "assistant", "content": example.reply}
        row = {"module": example.module, "messages": [*example.messages, reply]}
        lines.append(json.dumps(row) + "\n")
    path = pathlib.Path(path)
    with written.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    written.replace_text(path, "".join(lines))


def _examples(row, place, replies):
    """Returns the Examples of a row, at least one; raises BadField."""
    if not isinstance(row, Mapping):
        raise BadField(f"is {shown(row)}; expected an object with 'messages'")
    messages, module = row.get("messages"), row.get("module")
    module = "" if module is None else module  # a column of Parquet has null where it is missing
    if not isinstance(messages, list) or not messages:
        names = ", ".join(map(str, row)) or "none"
        raise BadField(
            f"has 'messages' {shown(messages)}; expected a list of messages (its fields: {names})"
        )
    if module not in ("", *effects.ROLES):
        raise BadField(f"has 'module' {shown(module)}; valid: {', '.join(effects.ROLES)}")
    for message in messages:
        _check_message(message)
    messages = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not places:
        raise BadField("has no message of the assistant, so no reply to learn")
    if places[0] == 0:
        raise BadField("begins with a message of the assistant, which answers nothing")
    if places[-1] != len(messages) - 1:
        raise BadField(
            f"ends with a message of the {messages[-1]['role']}; the last must be the assistant's"
        )
    wanted = places if replies == "all" else places[-1:]
    return [Example(place, module, messages[:i], messages[i]["content"]) for i in wanted]


def _check_message(message):
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, Mapping) else message
        raise BadField(f"has a message of role {shown(role)}; valid: {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str):
        raise BadField(f"has a message with 'content' {shown(content)}; expected a text")
    if broken := broken_text(content):
        raise BadField(f"has a message that is no Unicode text: {shown(broken[1])}")
    if message["role"] == "assistant" and not content.strip():
        raise BadField("has an empty message of the assistant")
