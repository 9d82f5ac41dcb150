"""Environments of OpenEnv: a server that holds one session for each trajectory."""

import json

from agents.environments import protocol, stepping
from tools.protocol import Parameter, Tool, ToolError

TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
EXAMPLES = {"str": '"text"', "int": "1", "float": "1.0", "bool": "True"}
APART = {"done", "reward", "metadata"}  # fields of an observation that are no text for the model
OF_TOOLS = {"Action", "CallToolAction", "ListToolsAction"}  # titles of actions that call MCP tools
REFUSED = "(code: VALIDATION_ERROR)"  # ends the error of an action that has not the right form
FULL = "(code: CAPACITY_REACHED)"  # ends the error of a session too many


def make(target: str, settings: protocol.Settings) -> protocol.Environment:
    """Makes the environment of a running server.

    target: its URL, such as "http://127.0.0.1:8000".
    settings: `options` go to every `reset`, beside the seed.

    Raises:
      ValueError: there is no OpenEnv, no such server, or its actions cannot be written as a call.
    """
    try:
        import httpx
        import openenv
        import websockets
    except ImportError as error:
        raise ValueError('OpenEnv is missing: pip install -e ".[openenv]".') from error
    url = target.rstrip("/")
    try:
        answer = httpx.get(f"{url}/schema", timeout=settings.seconds).raise_for_status()
        schema = answer.json()["action"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{url} does not answer as a server of OpenEnv: {error!r}") from error
    tool = _tool(url, schema, settings)

    def open_world():
        client = openenv.GenericEnvClient(base_url=url, message_timeout_s=settings.seconds).sync()
        try:
            client.connect()
        except BaseException:
            client.close()  # its thread
            raise
        return _World(client, settings)

    try:
        open_world().close()
    except (OSError, RuntimeError, TimeoutError, websockets.WebSocketException) as error:
        raise ValueError(f"{url} opens no session: {error!r}") from error
    return stepping.environment("openenv", tools=(tool,), open_world=open_world, settings=settings)


def _tool(url, schema, settings):
    """Returns the Tool that takes an action of a JSON schema."""
    if schema.get("title") in OF_TOOLS:
        raise ValueError(
            f"The environment at {url} offers MCP tools instead of actions of a form of its own."
        )
    properties = schema.get("properties", {})
    names = schema.get("required") or [name for name in properties if name != "metadata"]
    parameters = []
    for name in names:
        about = properties.get(name, {})
        if about.get("type") not in TYPES or not name.isidentifier():
            raise ValueError(
                f"An action of the environment at {url} needs {name!r} of type "
                f"{about.get('type')}; only {', '.join(TYPES)} can be written by the model."
            )
        text = " ".join(str(about.get("description", name)).split())
        parameters.append(Parameter(name, TYPES[about["type"]], text))
    example = ", ".join(f"{each.name}={EXAMPLES[each.type]}" for each in parameters)
    return Tool(
        name="act",
        description="Takes one action and shows what follows.",
        parameters=tuple(parameters),
        limits="Actions cannot be taken back.",
        demo=f"act({example})",
        run=None,
        seconds=settings.seconds,
    )


def _full(why, error):
    """Returns the error of a session that a server did not take."""
    return RuntimeError(
        f"The server {why} no further session. Let it allow as many as rollout.in_flight "
        f"(max_concurrent_envs of OpenEnv's template), or set that to what it allows: {error}"
    )


class _World:
    """A session of the server."""

    def __init__(self, client, settings):
        self._client, self._settings = client, settings

    def reset(self, seed):
        import websockets

        try:
            result = self._client.reset(seed=seed, **self._settings.options)
        except RuntimeError as error:
            if not str(error).endswith(FULL):
                raise
            raise _full("took", error) from error
        except websockets.ConnectionClosedOK as error:
            # A full server says so, then closes as it does after other errors; the latter may be
            # all that is seen.
            raise _full("closed the connection; if it is full, it took", error) from error
        if result.done:
            raise RuntimeError(f"The environment is over when it begins with seed {seed}.")
        return " ".join(filter(None, (self._settings.rules, self._told(result.observation))))

    def step(self, tool, arguments):
        try:
            result = self._client.step(dict(arguments))
        except RuntimeError as error:
            if str(error).endswith(REFUSED):
                raise ToolError("The environment does not take an action of this form.") from error
            raise
        return stepping.Step(
            self._told(result.observation), float(result.reward or 0.0), bool(result.done)
        )

    def close(self):
        self._client.close()

    def _told(self, observation):
        seen = {name: value for name, value in observation.items() if name not in APART}
        texts = [value for value in seen.values() if isinstance(value, str)]
        if len(seen) == len(texts) == 1:
            return texts[0]
        return self._settings.cut(json.dumps(seen, ensure_ascii=False))
