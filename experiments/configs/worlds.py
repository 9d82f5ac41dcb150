"""Three more worlds to learn in, each by itself, or all in one run with the quickstart's.

    C=experiments/configs/worlds.py:game24 W=runs/worlds/game24
    python -m experiments.warmstart --config=$C --workdir=$W/start
    python -m experiments.train --config=$C --workdir=$W/run

The same with chains and tables, or with all for the mixture, whose weights are `data.mixture`.
docs/worlds.md describes the worlds.
"""

from experiments.configs import common, quickstart

# Steps of the warm start; turns of a demonstration, of which bad moves take some; samples of which
# half are copying; different tokens of every other copy: rows of a table, dates and lists repeat
# their tokens, which takes practice.
STARTS = {
    "quickstart": (300, 3, 0, 0),
    "game24": (300, 3, 0, 0),
    "chains": (2_000, 7, 16_000, 12),
    "tables": (2_000, 5, 20_000, 12),
}
# Steps of the training, their learning rate and questions: what is rarely solved collapses at a
# higher rate.
TRAININGS = {
    "quickstart": (40, 3e-4, 12),
    "game24": (20, 3e-4, 8),
    "chains": (60, 2e-4, 12),
    "tables": (80, 1e-4, 12),
}
# Turns, and tokens of a prompt, of the planner's reply and of another module's.
SIZES = {
    "quickstart": (3, 224, 32, 32),
    "game24": (3, 576, 48, 160),
    "chains": (6, 400, 48, 64),
    "tables": (4, 528, 80, 128),
}


def get_config(arg="all"):
    if arg not in (*SIZES, "all"):
        raise ValueError(f"Unknown config argument {arg!r}; valid: {', '.join(SIZES)}, all.")
    worlds = tuple(SIZES) if arg == "all" else (arg,)
    start = f"runs/worlds/{arg}/start"
    turns, prompt, planned, written = map(max, zip(*(SIZES[name] for name in worlds), strict=True))
    shown_steps, shown_turns, copies, distinct = zip(
        *(STARTS[name] for name in worlds), strict=True
    )
    steps, rates, questions = zip(*(TRAININGS[name] for name in worlds), strict=True)

    c = quickstart.get_config()
    c.steps = max(steps)
    c.optim.lr = min(rates)
    c.model.path = f"{start}/model"
    c.data.train = f"{start}/train.jsonl"
    c.data.held_out = f"{start}/held_out.jsonl"
    if "chains" in worlds:
        c.tools.knowledge_search.index = f"{start}/articles.db"
    c.rollout.questions = max(questions)
    c.rollout.max_turns = turns
    c.rollout.max_prompt_tokens = prompt
    c.rollout.max_response_tokens = planned
    c.rollout.max_module_tokens = written
    row = -(-(prompt + planned) // 64) * 64
    c.batch.row_lengths = (row,)
    c.batch.response_lengths = (256,)
    c.batch.rows = (4,)

    c.unlock()
    if arg == "all":
        c.data.mixture = dict.fromkeys(worlds, 1.0)
    c.warmstart.update(
        worlds=",".join(worlds),
        start=quickstart.get_config().model.path,
        train_questions=300,
        held_out_questions=60,
        steps=sum(shown_steps),
        rows=4,
        row_length=row,
        copy_samples=sum(copies),
        copy_distinct=max(distinct),
        real_share=0.3,
        max_turns=max(shown_turns),
        lr=1e-3,
        warmup_steps=20,
        probes=80,
        probe_every=60,
    )
    return common.lock(c)
