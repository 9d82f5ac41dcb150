"""The quickstart's model at a server of OpenEnv's template: does one work here?

Needs the extra openenv and the server, which rewards 0.1 for each character of a message:

    openenv init echo_env --output-dir=runs && (cd runs && python -m echo_env.server.app)
    python -m experiments.train --config=experiments/configs/echo.py --workdir=runs/echo

The shipped model was shown no such tool and earns nothing; give model.path a model that follows
instructions, with rollout.prompts="instruct". The template's server allows one session.
"""

from experiments.configs import lake


def get_config():
    c = lake.get_config()
    c.data.environment.id = "openenv:http://127.0.0.1:8000"
    c.data.environment.reward_high = 100.0
    c.data.environment.options = {}
    c.rollout.max_turns = 3
    c.rollout.in_flight = 1  # sessions that the server allows
    return c
