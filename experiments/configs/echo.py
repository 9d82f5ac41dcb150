"""The quickstart's model at a server of OpenEnv's template: does one work here?

Needs the extra openenv and the server, which rewards 0.1 for each character of a message:

    openenv init echo_env --output-dir=runs && (cd runs && uvicorn echo_env.server.app:app) &
    python -m experiments.train --config=experiments/configs/echo.py --workdir=runs/echo

The shipped model was shown no such tool and earns nothing; give model.path a model that follows
instructions, with rollout.prompts="instruct". The template's server allows one session.
"""

from experiments.configs import quickstart


def get_config():
    c = quickstart.get_config()
    c.steps = 3
    c.data.train = c.data.held_out = ""
    c.data.environment.id = "openenv:http://127.0.0.1:8000"
    c.data.environment.train = 16
    c.data.environment.held_out = 4
    c.data.environment.reward_high = 100.0
    c.tools.names = ()
    c.rollout.questions = 4
    c.rollout.group = 4
    c.rollout.in_flight = 1  # sessions that the server allows
    c.rollout.max_prompt_tokens = 448
    c.batch.row_lengths, c.batch.rows = (512,), (4,)
    return c
