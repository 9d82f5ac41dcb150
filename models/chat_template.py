"""Chat templates: which one of a folder holds, and what one does with a conversation.

Source: `PreTrainedTokenizerBase` in transformers, for names, files and their order.
"""

import dataclasses

import jinja2

from flow_grpo_jax.bounds import files, json_text

DEFAULT = "default"
FILE, NAMED, OLD_FILE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
NAMED_DEFAULT = f"{NAMED}/{DEFAULT}.jinja"
FILES = (FILE, NAMED_DEFAULT, OLD_FILE)

# What a template may raise: an expression in it can fail in any of these ways.
ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError)
ERRORS += (MemoryError, RecursionError, SyntaxError, TypeError, ValueError)
MAX_BYTES = 2**20  # of a template's file
# Texts of messages that no template holds and that none has a reason to change.
SYSTEM, USER, ASSISTANT = "probesystem", "probeuser", "probeassistant"


class Refused(ValueError):
    """A template refuses the messages."""


def read(folder, config):
    """Returns a folder's template by the name "default", or None if it has no template.

    Files come before tokenizer_config.json, and additional_chat_templates/default.jinja before
    chat_template.jinja; chat_template.json, which processors once wrote, is last.

    Args:
      folder: pathlib.Path.
      config: the parsed tokenizer_config.json.

    Raises:
      ValueError: templates have names, and none is "default"; or one is not a text, or too large.
    """
    for name in (NAMED_DEFAULT, FILE):
        if (folder / name).is_file():
            return _text(folder / name)
    templates = by_name(config.get("chat_template"))
    if not templates and (folder / OLD_FILE).is_file():
        templates = by_name(json_text.read_object(folder / OLD_FILE).get("chat_template"))
    names = [*templates, *(path.stem for path in sorted((folder / NAMED).glob("*.jinja")))]
    if names and DEFAULT not in templates:
        raise ValueError(
            f"The chat templates in {folder} are called {', '.join(names)}, and none is called "
            f"{DEFAULT}. Write the one to use to {FILE} there."
        )
    return templates.get(DEFAULT)


def _text(path):
    try:
        return files.read_bytes(path, most=MAX_BYTES).decode("utf-8")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def by_name(value):
    """Returns {name: template} of a `chat_template`: a text, a list of {name, template}, a dict."""
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    templates = value if isinstance(value, dict) else {DEFAULT: value}
    if not all(isinstance(text, str) for pair in templates.items() for text in pair):
        raise ValueError(
            "chat_template in the tokenizer's files must be a text, or a list of objects with a "
            f"name and a template, not {value!r:.200}."
        )
    return templates


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """What a template does with messages.

    merges_system: it refuses or leaves out a system message, but takes the text in a user message.
    end: text that it writes after an assistant message; None if it writes no such message.
    lead: blanks that it writes between the header of a reply and the reply.
    """

    merges_system: bool
    end: str | None
    lead: str


def examine(render):
    """Returns the Behaviour of a template.

    render: (messages, whether the header of a reply follows) -> text; raises Refused for messages
      that the template refuses.
    """

    def tried(*messages, header=False):
        listed = [{"role": role, "content": text} for role, text in messages]
        try:
            return render(listed, header)
        except Refused:
            return ""

    system, user, assistant = ("system", SYSTEM), ("user", USER), ("assistant", ASSISTANT)
    merges = SYSTEM not in tried(system, user, header=True)
    merges = merges and SYSTEM in tried(("user", f"{SYSTEM}\n\n{USER}"), header=True)
    asked = [user] if ASSISTANT in tried(user, assistant) else [system, user]
    before, found, end = tried(*asked, assistant).rpartition(ASSISTANT)
    lead = before.removeprefix(tried(*asked, header=True))
    return Behaviour(merges, end if found else None, lead if lead.isspace() else "")


def merged(messages):
    """Returns the messages with the texts of system messages at the front in the first user's.

    Raises:
      ValueError: there is a system message elsewhere, or no user's message after it.
    """
    first = next((i for i, each in enumerate(messages) if each["role"] != "system"), len(messages))
    fronts, rest = messages[:first], messages[first:]
    misplaced = any(message["role"] == "system" for message in rest)
    if misplaced or (fronts and (not rest or rest[0]["role"] != "user")):
        raise ValueError(
            "The model's chat template takes no system message, so its text can only go in front "
            "of the first user's message; send it there, or leave it out."
        )
    if not fronts:
        return messages
    content = "\n\n".join(message["content"] for message in (*fronts, rest[0]))
    return [rest[0] | {"content": content}, *rest[1:]]
