"""A real pre-trained model learns the quickstart's world: SmolLM2-135M-Instruct.

Cost: 45 minutes of warm start and 47 of Flow-GRPO on 2 cores, or 8 minutes in all on one H100, and
3 GB (docs/smollm2.md has what came of it). `smollm2.py:full` trains all parameters instead of an
adapter, in 7 GB; its second warm start also shows the verifier and the generator, which would
forget their forms otherwise.

    C=experiments/configs/smollm2.py W=runs/smollm2
    python -m experiments.warmstart --config=$C --workdir=$W/forms \\
        --config.warmstart.start=SmolLM2-135M-Instruct.Q4_1.gguf
    python -m experiments.warmstart --config=$C --workdir=$W/start \\
        --config.warmstart.start=$W/forms/model --config.warmstart.modules="('planner',)" \\
        --config.warmstart.temperature=1.0 --config.warmstart.seed=1 --config.warmstart.steps=60 \\
        --config.warmstart.demonstrations=2000 --config.warmstart.max_turns=6
    python -m experiments.train --config=experiments/configs/smollm2.py --workdir=$W/run \\
        --config.model.path=$W/start/model

The first warm start teaches all modules their forms. The second shows the planner alone which tools
it may try for what, in trajectories long enough to reach the computations at their end.
"""

from experiments.configs import quickstart


def get_config(arg="lora"):
    c = quickstart.get_config()
    c.steps = 20
    c.model.path = ""
    c.model.remat = "dots"
    c.engine.decode_steps = 4  # half of the replies are shorter than eight tokens
    c.rollout.questions = 8
    c.checkpoint.every = 5
    c.eval.questions = 60

    c.batch.row_lengths = (512,)  # longer than a turn, so that the turns of a question share more
    c.batch.response_lengths = (256,)
    c.batch.rows = (1,)

    c.warmstart.prompt_weight = 0.0
    c.warmstart.copy_samples = 0
    c.warmstart.real_share = 1.0
    c.warmstart.temperature = 0.7
    c.warmstart.demonstrations = 6_000
    c.warmstart.steps = 160
    c.warmstart.final_lr = 0.1
    c.warmstart.warmup_steps = 5
    c.warmstart.probes = 96
    c.warmstart.probe_every = 40
    if arg == "lora":
        c.model.lora.rank = 16
        c.optim.lr, c.warmstart.lr = 2e-4, 1e-3
        c.optim.weight_decay = 0.0
    elif arg == "full":
        c.optim.lr, c.warmstart.lr = 2e-5, 1e-4
        c.warmstart.steps, c.warmstart.probe_every = 60, 30  # learns faster than an adapter
    else:
        raise ValueError(f"Unknown config argument {arg!r}; valid: lora, full")
    return c


def sweep(add):
    for lr in (0.0, 1e-4, 4e-4):  # without learning: the control
        add(**{"optim.lr": lr})
