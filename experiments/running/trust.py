"""What the maker of a run folder may not decide alone: commands, addresses, keys, other files.

A run folder is data, whoever made it. A value of its config.json by which opening the folder could
do more than read it counts only with the user's word:

  --trust                        for this command
  --config=FILE                  instead of the stored config, where the command takes one
  a training by this user        its config is remembered in ~/.config/flow_grpo_jax, by its digest,
                                 so one's own runs need no word, wherever their folders lie now

So do links that lead out of the folder: what is read could be any file, and so could what is
written. Values that are the defaults of `configs/common.py` need no word, nor do models by their
name on the hub and what this package ships.
"""

import fnmatch
import hashlib
import json
import os
import pathlib

from absl import logging

from experiments.configs import common
from experiments.running import backends, command, dotted, places
from models import hub

HELP = (  # of the flag
    "Do what the run folder says even if somebody else made it: commands, addresses, keys, files "
    "elsewhere, links."
)
PARTS = ("config.json", "metrics.jsonl", "trajectories", "checkpoints", "tensorboard")  # of a run
PARTS += ("tracking", "traces", "profiles")
SHOWN_LINKS, SHOWN_CHARACTERS = 5, 500  # in a message
PATHS = {  # fields with a path: what is done with what lies there
    "model.path": "a model that is not in the folder is read",
    "data.train": "questions that are not in the folder are read",
    "data.held_out": "questions that are not in the folder are read",
    "tools.*.index": "a file that is not in the folder is read",
    "tools.record": "a folder elsewhere is read and written",
    "backends.*.cache": "a file elsewhere is read and written",
}
MOST = {  # numbers up to which programs of the model may take what they want
    "tools.python_coder.seconds": 60.0,
    "tools.python_coder.memory_bytes": 2**32,
    "tools.python_coder.max_output_bytes": 2**20,
}
VALUES = {  # other fields
    "compile_cache": "the compiled programs in it are run",
    "tools.mcp": "a command is started, or an address asked",
    "tools.*url": "an address is asked, with texts of the model",
    "tools.*key_variable": "what this environment variable holds is sent to a service",
    "tools.web_search.private_hosts": "addresses of your own network are read",
    "backends.*.url": "an address is asked, with all texts of the question",
    "backends.*.api_key_variable": "what this environment variable holds is sent to the address",
}
TOOLS = {  # reach out as they are
    "google_search": "a service is asked with a key of yours and texts of the model",
    "web_search": "pages are read whose addresses the model writes",
    "wikipedia_search": "Wikipedia is asked with texts of the model",
}


def check(workdir, config, *, uses, instead):
    """Refuses values of a stored config that need the user's word.

    Args:
      config: the stored one.
      uses: which sections of it count here, by their first names, such as "tools".
      instead: what else than --trust helps; a sentence, or "".

    Raises:
      ConfigError: lists them.
    """
    defaults = dict(dotted.flat(common.base().to_dict()))
    found = [
        f"  {name}={_shown(value)}: {why}"
        for name, value in dotted.flat(config.to_dict())
        if value and value != defaults.get(name)
        if name.split(".")[0] in uses and _in_use(name, config)
        if (why := _why(name, value, config, workdir))
    ]
    if found:
        raise command.ConfigError(
            "\n".join([f"{workdir}/config.json asks for more than its maker may decide:", *found])
            + f"\nIf you trust who made the folder, add --trust. {instead}".rstrip()
        )


def check_links(workdir, *, trusted):
    """Refuses a folder with links that lead out of it, or with pipes and devices.

    Raises:
      ConfigError: lists them, unless the folder is trusted; or a folder in it cannot be listed.
    """
    if trusted or not any(os.path.lexists(os.path.join(workdir, name)) for name in PARTS):
        return
    found, root = [], os.path.realpath(workdir)
    for folder, folders, names in os.walk(workdir, onerror=_cannot_list):
        for path in (os.path.join(folder, name) for name in (*folders, *names)):
            real = os.path.realpath(path)
            if os.path.islink(path) and os.path.commonpath((root, real)) != root:
                found.append(f"  {_shown(path)} is a link to {_shown(real)}")
            elif os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
                found.append(f"  {_shown(path)} is neither a file nor a folder")
    if found:
        more = [f"  and {len(found) - SHOWN_LINKS} more"] if found[SHOWN_LINKS:] else []
        raise command.ConfigError(
            "\n".join([f"{workdir} leads elsewhere:", *found[:SHOWN_LINKS], *more])
            + "\nWhat is read or written there could be any file of yours. Replace the links by "
            "what they lead to; or, if you trust who made the folder, add --trust."
        )


def _cannot_list(error):
    """Refuses a folder in which links could hide: what is in it may still be opened by name."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise command.ConfigError(
            f"{_shown(error.filename)} cannot be listed ({error.strerror}), and links in it could "
            "lead anywhere. Give yourself the right to read it, chmod u+rx; or, if you trust who "
            "made the folder, add --trust."
        ) from error


def remember(values):
    """Notes that this user has given a config, as nested values, by a command or from Python."""
    try:
        folder = _given()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / _digest(values)).touch()
    except (OSError, RuntimeError) as error:  # no home, or one that cannot be written
        logging.info("the config is not remembered as this user's: %s", error)


def was_given(values):
    """Returns whether this user has once given the config with exactly these values."""
    try:
        return (_given() / _digest(values)).exists()
    except (OSError, RuntimeError):
        return False


def _given():
    home = os.environ.get("XDG_CONFIG_HOME") or pathlib.Path("~/.config").expanduser()
    return pathlib.Path(home) / "flow_grpo_jax" / "given"


def _digest(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _in_use(name, config):
    """Whether the tool or the server that a field belongs to is used."""
    parts = name.split(".")
    if parts[0] == "backends":
        return config.backends[parts[1]].kind not in (*backends.ENGINE, "none")
    return parts[0] != "tools" or len(parts) < 3 or parts[1] in config.tools.names


def _why(name, value, config, workdir):
    """Returns why a value needs the user's word; "" if it does not."""
    if name == "tools.names":
        asking = {tool: why for tool, why in TOOLS.items() if tool in value}
        if config.tools.wikipedia_search.index:
            asking.pop("wikipedia_search", None)
        return "; ".join(asking.values())
    if name == "tools.python_coder.sandbox":
        return "programs of the model run where the sandbox holds little" * (value == "minimal")
    if name in MOST:
        fits = value <= MOST[name]  # nan does not
        return "" if fits else f"programs of the model may take more than {MOST[name]:,}"
    if why := _matching(PATHS, name):
        named = name == "model.path" and _is_name(value)
        return "" if named or not isinstance(value, str) or _lies_in(value, workdir) else why
    return _matching(VALUES, name)


def _matching(table, name):
    return next((why for pattern, why in table.items() if fnmatch.fnmatchcase(name, pattern)), "")


def _is_name(path):
    """Whether a model is named as on the hub: `hub.locate` looks only in the hub's cache then."""
    return bool(hub.NAME.fullmatch(path)) and not pathlib.Path(places.resolve(path)).exists()


def _lies_in(path, workdir):
    if not path:
        return True
    if "\0" in path:
        return False
    real = pathlib.Path(places.resolve(path)).resolve()
    homes = (places.SHIPPED, pathlib.Path(workdir))
    return "://" not in path and any(real.is_relative_to(home.resolve()) for home in homes)


def _shown(value):
    """Returns a value as text that cannot steer a terminal."""
    text = ascii(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
