"""README.md of a model folder: facts of the base, and front matter that the hub accepts.

Source: "Model Cards" in the Hugging Face hub's documentation.
"""

import json
import re

from models import folders, hub

CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")


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
    folder = folders.Folder(location)
    if folder.has(CARD):
        parts = folder.read(CARD).decode("utf-8", errors="replace").split("---", 2)
        front = parts[1] if len(parts) == 3 and not parts[0].strip() else ""
        for key in LICENCE:
            found = re.search(rf"^{key}:[ \t]*(\S.*?)[ \t]*$", front, re.MULTILINE)
            if found:
                known[key] = found[1].strip("'\"")
    return known


def render(front, text):
    """Returns the text of README.md.

    Args:
      front: {key: str or list of str}, the front matter.
      text: Markdown.
    """
    # Any JSON value is YAML.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()]
    return "\n".join(["---", *lines, "---", "", text.strip(), ""])
