"""The quickstart cut down to three steps: does everything run? Under 90 s on 2 CPU cores.

python -m experiments.train --config=experiments/configs/smoke.py --workdir=runs/smoke
"""

from experiments.configs import quickstart


def get_config():
    c = quickstart.get_config()
    c.steps = 3
    c.rollout.questions = 4
    c.rollout.group = 4
    c.eval.every = 0
    c.eval.questions = 12
    c.engine.slots = 16
    c.checkpoint.every = 1
    return c
