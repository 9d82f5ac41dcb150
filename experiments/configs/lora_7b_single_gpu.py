"""The planner of Qwen2.5-7B-Instruct as a LoRA adapter on one GPU of 80 GB or more.

The base is kept once, in bfloat16; it is the reference and the three frozen modules too, and the
planner is the base with the adapter. The learning rate is ten times that of full fine-tuning, as is
usual for LoRA.

Cost: about 25 GiB for the update at rows of 20,480 tokens, less at these (docs/scaling.md); the
engine comes on top. Not timed yet.

    python -m experiments.train --config=experiments/configs/lora_7b_single_gpu.py \\
        --workdir=runs/lora-7b --config.model.path=/models/Qwen2.5-7B-Instruct \\
        --config.data.train=/data/train.jsonl
    python -m experiments.export --workdir=runs/lora-7b --out=runs/planner-7b  # merged
    python -m experiments.export --workdir=runs/lora-7b --out=runs/planner-7b-lora --adapter \\
        --base_model=Qwen/Qwen2.5-7B-Instruct  # for PEFT, and for vLLM with --enable-lora
"""

from experiments.configs import common


def get_config():
    c = common.base()
    c.steps = 300
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.optim.lr = 1e-5
    c.optim.weight_decay = 0.0
    c.rollout.max_prompt_tokens = 8_192
    c.rollout.max_response_tokens = 1_024
    c.rollout.max_module_tokens = 1_024
    c.rollout.questions = 16
    c.engine.slots = 32
    c.batch.row_lengths = (4_096, 9_216)
    c.batch.response_lengths = (2_048, 4_608)
    c.batch.rows = (2, 1)
    return c


def sweep(add):
    for rank in (8, 32, 128):
        add(**{"model.lora.rank": rank, "model.lora.alpha": 2.0 * rank})
