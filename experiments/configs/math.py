"""Mathematics with a Python tool: Qwen2.5-Math or Qwen2.5-1.5B-Instruct, fully fine-tuned.

Long responses and short results: 4,096 prompt and 2,048 response tokens, a Python tool and the
model itself as a tool. Answers of kind "math" are compared as expressions (extra `math`).

Cost: the update fits one v5p chip, a v5e-4 or one H200 (docs/scaling.md). Not timed yet.

    python -m experiments.train --config=experiments/configs/math.py --workdir=runs/math \\
        --config.model.path=/models/Qwen2.5-1.5B-Instruct --config.data.train=/data/deepmath.jsonl
"""

from experiments.configs import common


def get_config():
    c = common.base()
    c.steps = 300
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.tools.names = ("python_coder", "base_generator")
    c.tools.python_coder.seconds = 10.0
    c.rollout.max_prompt_tokens = 4_096
    c.rollout.max_response_tokens = 2_048
    c.rollout.max_module_tokens = 2_048
    c.engine.cache_tokens = 98_304
    c.batch.row_lengths = (8_192,)
    c.batch.response_lengths = (6_144,)
    c.batch.rows = (1,)
    return c


def sweep(add):
    for seed in range(3):
        add(seed=seed)
