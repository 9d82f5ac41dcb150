"""The quickstart's model on a frozen lake of Gymnasium: does an environment work here?

Needs the extra gymnasium. The shipped model was shown no such tool and earns nothing: give
model.path a model that follows instructions, with rollout.prompts="instruct", or show it the tool
as docs/extend.md does ("A world"); it then rose from 0.22 to 0.75 in 8 steps.

    python -m experiments.train --config=experiments/configs/lake.py --workdir=runs/lake
"""

from experiments.configs import quickstart


def get_config():
    c = quickstart.get_config()
    c.steps = 3
    c.data.train = c.data.held_out = ""
    c.data.environment.id = "gymnasium:FrozenLake-v1"
    c.data.environment.train = 16
    c.data.environment.held_out = 4
    c.data.environment.options.is_slippery = False
    c.tools.names = ()
    c.rollout.questions = 4
    c.rollout.group = 4
    c.rollout.max_turns = 8
    c.rollout.max_prompt_tokens = 960
    c.batch.row_lengths, c.batch.rows = (1_024,), (4,)
    return c
