"""README.md of a model folder: facts of the base, and front matter that the hub accepts.

Source: "Model Cards" in the Hugging Face hub's documentation.
"""

import json
import re

from models import hub
from models.gguf import folder as gguf_folder

CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")
PROMPTS = "agent_prompts"


def of_base(location, *, name=None):
    """Returns the known front matter for a model made from the one in a folder.

    Args:
      location: path or URL of the base.
      name: its name on the hub, e.g. "Qwen/Qwen2.5-7B-Instruct"; None takes it from the path if
        that is in the hub's cache.

    Returns:
      {"base_model", "license", "license_name", "license_link": str}, without what is not known.
    """
    name = name or hub.name_of(location)
    known = {"base_model": name} if name else {}
    return known | _front(location, LICENCE)


def prompts(location):
    """Returns the name of the prompts that the model in a folder was trained with, or None."""
    return _front(location, (PROMPTS,)).get(PROMPTS)


def _front(location, keys):
    """Returns {key: str} of a folder's front matter, without what it has not."""
    folder = gguf_folder.opened(location)
    if not folder.has(CARD):
        return {}
    parts = folder.read(CARD).decode("utf-8", errors="replace").split("---", 2)
    front = parts[1] if len(parts) == 3 and not parts[0].strip() else ""
    lines = {key: rf"^{key}:[ \t]*(\S.*?)[ \t]*$" for key in keys}
    found = {key: re.search(line, front, re.MULTILINE) for key, line in lines.items()}
    return {key: match[1].strip("'\"") for key, match in found.items() if match}


def render(front, text):
    """Returns the text of README.md.

    Args:
      front: {key: str or list of str}, the front matter.
      text: Markdown.
    """
    # Any JSON value is YAML.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()]
    return "\n".join(["---", *lines, "---", "", text.strip(), ""])
