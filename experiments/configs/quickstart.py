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

    c.unlock()
    c.warmstart = dict(
        worlds="quickstart",  # of experiments/worlds, divided by commas
        start="",  # folder of a model to go on from, instead of `model` and its tokenizer
        seed=0,
        model=dict(
            vocab_size=2048,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            rope_theta=10_000.0,
            max_position_embeddings=1024,
        ),
        train_questions=600,
        held_out_questions=120,
        tokenizer_samples=4_000,
        steps=5_000,
        rows=16,
        row_length=192,
        copy_samples=60_000,
        prompt_weight=0.1,
        real_share=0.3,
        lr=2e-3,
        final_lr=0.05,
        warmup_steps=100,
        weight_decay=0.01,
        probes=400,
        probe_every=100,
    )
    return common.lock(c)
