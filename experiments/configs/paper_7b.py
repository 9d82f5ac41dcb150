"""The paper's run: the planner of Qwen2.5-7B-Instruct, fully fine-tuned on search and mathematics.

Every hyperparameter that arXiv 2510.05592 gives is in common.py: 32 questions of 8 rollouts a step,
3 turns, temperature 0.5, AdamW at 1e-6, KL 0.001, prompts up to 18,432 and responses up to 2,048
tokens. The batch size in rows, the mesh and the precision are ours.

Cost: the update takes 24 GiB of each of the 8 chips of a v5p-16; with argument "v6e8" 20 GiB of a
v6e-8's, with "v5e16" 9 GiB of a v5e-16's (docs/scaling.md). No such run has been timed yet.

Argument "authors" takes what their code does where the paper is silent: optimizer steps of 64
shuffled turns, 8 to 12 a rollout batch, and its advantages and token means.

    python -m experiments.plan --config=experiments/configs/paper_7b.py --model=7b --topology=v5p-16
    python -m experiments.train --config=experiments/configs/paper_7b.py --workdir=runs/paper-7b \\
        --config.model.path=/models/Qwen2.5-7B-Instruct --config.data.train=/data/train.jsonl
"""

from experiments.configs import common

MESHES = {"v6e8": (4, 2), "v5e16": (4, 4)}  # fsdp, tensor
CACHES = {"v6e8": 393_216, "v5e16": 131_072}  # tokens on four chips


def get_config(arg=""):
    c = common.base()
    c.steps = 500
    c.model.dtype = "bfloat16"
    c.model.remat = "full"
    c.mesh.fsdp = -1
    if arg == "authors":
        c.loss.variant = "original"
        c.loss.mini_batch_turns = 64
    elif arg:
        if arg not in MESHES:
            valid = ", ".join(["authors", *MESHES])
            raise ValueError(f"Unknown config argument {arg!r}; valid: {valid}.")
        c.mesh.fsdp, c.mesh.tensor = MESHES[arg]
        c.mesh.sequence = True
        c.engine.tensor, c.engine.cache_tokens = 4, CACHES[arg]
        if arg == "v5e16":  # else the engine's two weight sets do not fit beside the moments
            c.optim.moment_dtype = "bfloat16"
    return c


def sweep(add):
    for lr in (3e-7, 1e-6, 3e-6):
        add(**{"optim.lr": lr})
