"""Qwen2.5-0.5B-Instruct on one small accelerator, such as a Colab TPU v5e-1, an L4 or an A100.

Few rollouts and short prompts, so that a step is a matter of minutes; full fine-tuning in
bfloat16 with float32 masters.

Cost: experiments.plan says what the update needs on your device. Not timed yet.

    python -m experiments.train --config=experiments/configs/colab_0.5b.py --workdir=runs/colab \\
        --config.model.path=/content/Qwen2.5-0.5B-Instruct --config.data.train=/content/train.jsonl
"""

from experiments.configs import common


def get_config():
    c = common.base()
    c.steps = 50
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.rollout.questions = 8
    c.rollout.max_prompt_tokens = 3_072
    c.rollout.max_response_tokens = 512
    c.rollout.max_module_tokens = 512
    c.rollout.in_flight = 64
    c.engine.slots = 16
    c.engine.cache_tokens = 65_536
    c.engine.prefill_rows = 4
    c.batch.row_lengths = (4_096,)
    c.batch.response_lengths = (2_048,)
    c.batch.rows = (1,)
    c.batch.logprob_chunk = 256
    return c


def sweep(add):
    for seed in range(3):
        add(seed=seed)
