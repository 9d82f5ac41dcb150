"""Multi-hop questions with a search tool: Qwen2.5-1.5B-Instruct, fully fine-tuned.

Shorter prompts than the paper's (6,144 tokens), no Python tool. Meant for questions in the form of
NQ or HotpotQA; what is searched is the embedded knowledge base until the config names other tools.

Cost: the update fits one v5p chip, a v5e-4 or one H200 (docs/scaling.md). Not timed yet.

    python -m experiments.train --config=experiments/configs/search.py --workdir=runs/search \\
        --config.model.path=/models/Qwen2.5-1.5B-Instruct --config.data.train=/data/nq.jsonl
"""

from experiments.configs import common


def get_config():
    c = common.base()
    c.steps = 300
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.tools.names = ("knowledge_search", "base_generator")
    c.rollout.max_prompt_tokens = 6_144
    c.rollout.max_response_tokens = 512
    c.rollout.max_module_tokens = 512
    c.engine.cache_tokens = 98_304
    c.batch.row_lengths = (8_192,)
    c.batch.response_lengths = (4_096,)
    c.batch.rows = (1,)
    return c


def sweep(add):
    for seed in range(3):
        add(seed=seed)
