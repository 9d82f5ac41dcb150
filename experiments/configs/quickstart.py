"""The whole system on 2 CPU cores: a nano planner learns to use its tools in the live agent.

python -m experiments.train --config=experiments/configs/quickstart.py --workdir=runs/quickstart
"""

from experiments.configs import common


def get_config():
    c = common.base()
    c.steps = 60
    c.model.path = "experiments/data/quickstart/model"
    c.data.train = "experiments/data/quickstart/train.jsonl"
    c.data.held_out = "experiments/data/quickstart/held_out.jsonl"
    for search in ("knowledge_search", "wikipedia_search", "google_search"):
        c.tools[search].top_k = 1  # a prompt has room for one passage
    c.tools.python_coder.traceback = False  # as the shipped model has learnt it, and short

    c.rollout.prompts = "compact"
    c.rollout.questions = 12
    c.rollout.temperature = 1.0
    c.rollout.max_prompt_tokens = 224
    c.rollout.max_response_tokens = 32
    c.rollout.max_module_tokens = 32

    c.engine.slots = 32
    c.engine.cache_tokens = 0
    c.engine.page_size = 16
    c.engine.prefill_tokens = 32
    c.engine.overlap = False
    c.engine.release = False
    c.batch.row_lengths = (256,)
    c.batch.response_lengths = (128,)
    c.batch.rows = (16,)

    c.optim.lr = 3e-4
    c.eval.every = 10
    c.checkpoint.every = 10

    # The shipped model, from nothing.
    c.warmstart.worlds = "quickstart"
    c.warmstart.prompt_weight = 0.1
    c.warmstart.copy_samples = 60_000
    c.warmstart.real_share = 0.3
    c.warmstart.steps = 5_000
    c.warmstart.lr = 2e-3
    c.warmstart.final_lr = 0.05
    c.warmstart.warmup_steps = 100
    c.warmstart.probes = 400
    c.warmstart.probe_every = 100
    return c
