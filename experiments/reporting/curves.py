"""The curves of runs: which metrics a chart shows, and its points."""

from experiments.reporting import trajectories as records
from flow_grpo_jax.statistics import wilson_interval

MAX_POINTS = 1500

# (title, unit, what it tells, {metric: label}); a name that ends in * stands for every tool.
CHARTS = [
    (
        "Held-out success",
        "share",
        "Questions never trained on; 95 % interval.",
        {"eval/success": "success"},
    ),
    (
        "Held-out success by source",
        "share",
        "The same questions, each source by itself.",
        {"eval/success/*": ""},
    ),
    ("Reward", "share", "Mean outcome of the sampled trajectories.", {"reward/mean": "mean"}),
    (
        "Tool errors",
        "share",
        "Share of turns whose command gave no result.",
        {"rollout/tool_error_rate": "training", "eval/tool_error_rate": "held-out"},
    ),
    (
        "Unreadable outputs",
        "share",
        "Share of turns with a module text that its strict parser refused.",
        {"rollout/parse_failure_rate": "training", "eval/parse_failure_rate": "held-out"},
    ),
    (
        "Turns",
        "number",
        "Planner turns of a trajectory.",
        {"rollout/turns": "training", "eval/turns": "held-out"},
    ),
    (
        "Response length",
        "number",
        "Tokens that the planner wrote in a turn.",
        {"rollout/response_tokens": "training", "eval/response_tokens": "held-out"},
    ),
    ("Tools chosen", "share", "Share of the turns that went to each tool.", {"tool/*/share": ""}),
    (
        "Groups without signal",
        "share",
        "Questions, or points of branches, where all scored the same: no gradient.",
        {"group/zero_variance": "zero variance"},
    ),
    ("Entropy", "number", "Nats per planner token.", {"policy/entropy": "entropy"}),
    (
        "KL to the reference",
        "number",
        "k3 estimate against the initial policy.",
        {"loss/kl": "KL"},
    ),
    (
        "Log-prob gap",
        "log",
        "Sampler against trainer, nats, before the update; should stay near rounding.",
        {"policy/logprob_gap_max": "max", "policy/logprob_gap_mean": "mean"},
    ),
    (
        "KL of sampler and trainer",
        "log",
        "k3 estimate of KL(sampler ‖ trainer), nats per token, before the update.",
        {"policy/logprob_gap_k3": "k3"},
    ),
    (
        "Clipped tokens",
        "share",
        "Share of tokens at the clip range.",
        {"policy/clip_fraction": "clipped"},
    ),
    ("Gradient norm", "number", "Before clipping.", {"optim/grad_norm": "norm"}),
    (
        "Truncated rollouts",
        "share",
        "A planner response or prompt met its limit.",
        {"rollout/truncated": "training", "eval/truncated": "held-out"},
    ),
    (
        "Broken rollouts",
        "number",
        "Infrastructure failures are excluded from training and counted.",
        {"rollout/infra_errors": "failures", "rollout/timeouts": "timeouts"},
    ),
    (
        "Generation speed",
        "number",
        "Generated tokens per second of rollout.",
        {"throughput/generated_tokens_per_s": "tokens/s"},
    ),
    (
        "Time of a step",
        "number",
        "Seconds.",
        {"time/step": "step", "time/rollout": "rollout", "time/update": "update"},
    ),
]


def of_runs(runs):
    """Returns JSON-ready charts of runs: the named ones, then one for each other metric.

    A chart may have "axis", what its x are called; they are steps by default. Series of another run
    than the first have "run", its index.

    runs: [(name, [metrics of a step])]; names stand in the labels if there are several.
    """
    merged = {"main": [], "other": []}
    for index, (name, metrics) in enumerate(runs):
        for part, charts in of_metrics(metrics).items():
            known = {chart["title"]: chart for chart in merged[part]}
            for chart in charts:
                for series in chart["series"]:
                    if len(runs) > 1:
                        series |= {"label": f"{name}: {series['label']}", "run": index}
                if chart["title"] in known:
                    known[chart["title"]]["series"] += chart["series"]
                else:
                    merged[part].append(chart)
    return merged


def of_metrics(metrics):
    """Returns the charts of one run, {"main": [...], "other": [...]}."""
    names = list(dict.fromkeys(name for step in metrics for name in step if name != "step"))
    used, shown = {"eval/correct", "eval/total"}, []
    for title, unit, note, wanted in CHARTS:
        series = []
        for pattern, label in wanted.items():
            head, star, tail = pattern.partition("*")
            for name in names:
                if name == pattern or star and name.startswith(head) and name.endswith(tail):
                    used.add(name)
                    inner = name[len(head) : len(name) - len(tail)] if star else ""
                    series.append(_series(metrics, name, label or inner))
        if series:
            shown.append({"title": title, "unit": unit, "note": note, "series": series})
    other = [
        {
            "title": name,
            "unit": "share" if is_share(name) else "number",
            "note": "",
            "series": [_series(metrics, name, "held-out" if name.startswith("eval/") else "value")],
        }
        for name in sorted(set(names) - used)
    ]
    return {"main": shown, "other": other}


def _series(metrics, name, label):
    rows = [step for step in metrics if name in step]
    stride = -(-len(rows) // MAX_POINTS)
    rows = [row for i, row in enumerate(rows) if i % stride == 0 or i == len(rows) - 1]
    series = {"label": label, "x": [row["step"] for row in rows], "y": [row[name] for row in rows]}
    if name == "eval/success" and all(row.get("eval/total", 0) > 0 for row in rows):
        bounds = [
            wilson_interval(
                row.get("eval/correct", row[name] * row["eval/total"]), row["eval/total"]
            )
            for row in rows
        ]
        series["low"] = [records.number(low) for low, _ in bounds]
        series["high"] = [records.number(high) for _, high in bounds]
    return series | {"points": name.startswith("eval/")}


def is_share(name):
    """Whether a metric is a share of something, by its name."""
    shares = ("success", "rate", "share", "truncated", "fraction", "verified", "shortened_prompts")
    return name.startswith("eval/success") or name.endswith(shares)
