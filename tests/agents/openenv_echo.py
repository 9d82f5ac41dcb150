"""The echo environment of OpenEnv's template as a server: openenv_echo.py FOLDER PORT SESSIONS.

Needs openenv; FOLDER gets the template's files with their names filled in.
"""

import pathlib
import sys

import openenv
import uvicorn

NAMES = {"__ENV_CLASS_NAME__": "Echo", "__ENV_TITLE_NAME__": "Echo", "__ENV_NAME__": "echo"}
FILES = ("models.py", "server/__ENV_NAME___environment.py")


def filled_in(text):
    for mark, name in NAMES.items():
        text = text.replace(mark, name)
    return text


def main(folder, port, sessions):
    template = pathlib.Path(openenv.__file__).parent / "cli" / "templates" / "openenv_env"
    package = pathlib.Path(folder) / "echo_env"
    (package / "server").mkdir(parents=True)
    for name in FILES:
        text = filled_in((template / name).read_text())
        (package / filled_in(name)).write_text(text)
    sys.path.insert(0, folder)
    from echo_env.models import EchoAction, EchoObservation
    from echo_env.server.echo_environment import EchoEnvironment
    from openenv.core.env_server.http_server import create_fastapi_app

    how = dict(max_concurrent_envs=int(sessions))
    app = create_fastapi_app(EchoEnvironment, EchoAction, EchoObservation, **how)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
