"""One self-contained HTML page for a run folder: before and after, curves, every trajectory.

The page loads nothing: it contains its styles and scripts, its content security policy admits only
those (by hash), and texts of models and tools reach the document as text nodes.
"""

import base64
import hashlib
import html
import pathlib

from experiments.reporting import trajectories as records
from experiments.running import dotted
from flow_grpo_jax import files
from flow_grpo_jax.bounds import json_text
from flow_grpo_jax.statistics import wilson_interval

ASSETS = pathlib.Path(__file__).parent / "assets"
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

# Facts of the config at the head of the page, where the run has them.
FACTS = (
    ("model", "model.path"),
    ("steps", "steps"),
    ("questions a step", "rollout.questions"),
    ("rollouts a question", "rollout.group"),
    ("turns at most", "rollout.max_turns"),
    ("temperature", "rollout.temperature"),
    ("loss", "loss.variant"),
    ("KL weight", "loss.kl_coef"),
    ("learning rate", "optim.lr"),
    ("seed", "seed"),
    ("sandbox", "sandbox.level"),
    ("engine's cache", "kernels.engine"),
)


def write_report(workdir, out=None, *, text_budget=12_000_000):
    """Writes the page of the run in `workdir`; returns its path.

    workdir: folder with config.json, metrics.jsonl and trajectories/, of which any may be missing
      or end in a truncated line.
    out: the file to write; by default report.html in `workdir`.
    text_budget: bytes of trajectory texts on the page.
    Raises ValueError if `workdir` holds neither metrics nor trajectories.
    """
    workdir = pathlib.Path(workdir)
    out = pathlib.Path(out) if out else workdir / "report.html"
    metrics, damaged = read_metrics(workdir / "metrics.jsonl")
    listing = records.collect(workdir / "trajectories", text_budget=text_budget)
    metrics = with_lengths(metrics, listing.steps)
    if not metrics and not listing.steps:
        raise ValueError(
            f"{workdir} holds no run: found neither steps in metrics.jsonl nor files in "
            "trajectories/. Pass the folder given to experiments.train as --workdir."
        )
    config = read_config(workdir / "config.json")
    shown = page(
        workdir.resolve().name,
        kind="run report",
        table_title="Held-out questions",
        table=_table(*comparison(metrics)),
        facts=_facts(config, totals(metrics)),
        notes=_notes(listing, damaged + listing.damaged),
        charts=charts(metrics),
        listing=listing,
        config=config,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    files.replace_text(out, shown)
    return out


def read_metrics(path):
    """Returns ([one {name: value} a step, in order], number of damaged lines)."""
    steps, damaged = {}, 0
    for record in records.read_lines(path) if path.exists() else ():
        step = None if record is None else record.get("step")
        if isinstance(step, bool) or not isinstance(step, int):
            damaged += 1
            continue
        values = {name: records.number(value) for name, value in record.items()}
        steps.setdefault(step, {}).update(
            {name: value for name, value in values.items() if value is not None}
        )
    return [steps[step] | {"step": step} for step in sorted(steps)], damaged


def with_lengths(metrics, steps):
    """Returns metrics with the response lengths of a `Listing`'s steps."""
    found = {step["step"]: step for step in metrics}
    for step in steps:
        prefix = "eval" if step["heldout"] else "rollout"
        if step["response_tokens"] is not None and step["step"] in found:
            length = {f"{prefix}/response_tokens": step["response_tokens"]}
            found[step["step"]] = found[step["step"]] | length
    return list(found.values())


def read_config(path):
    """Returns {dotted name: value} of the resolved config; empty if there is none."""
    try:
        value = json_text.read_object(path)
    except (OSError, ValueError):
        return {}
    return dict(dotted.flat(value))


def charts(metrics):
    """Returns JSON-ready charts: the named ones, then one for each other metric.

    A chart may have "axis", what its x are called; they are steps by default.
    """
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
            "unit": "share" if _is_share(name) else "number",
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


def comparison(metrics):
    """Returns the held-out table: (column titles, rows of cells); ([], []) without an evaluation.

    Measures after the first three are left out where they are 0 throughout.
    """
    evaluated = [step for step in metrics if any(name.startswith("eval/") for name in step)]
    if not evaluated:
        return [], []
    ends = evaluated if len(evaluated) == 1 else [evaluated[0], evaluated[-1]]
    titles = [
        "Before training" if step["step"] == 0 else f"After step {step['step']}" for step in ends
    ]
    first = ["eval/success", "eval/tool_error_rate", "eval/turns"]
    names = {name for step in ends for name in step if name.startswith("eval/") and step[name]}
    names = [*first, *sorted(names - {*first, "eval/correct", "eval/total"})]
    rows = []
    for name in names:
        if any(name in step for step in ends):
            cells = [_cell(step, name) for step in ends]
            rows.append([_label(name), *cells, _change(ends, name)])
    return titles, rows


def _label(name):
    words = name.removeprefix("eval/").replace("_", " ")
    renamed = {
        "success": "solved",
        "tool error rate": "tool errors",
        "parse failure rate": "unreadable outputs",
    }
    return renamed.get(words, words.replace("success/", "solved, "))


def _is_share(name):
    shares = ("success", "rate", "share", "truncated", "fraction", "verified", "shortened_prompts")
    return name.startswith("eval/success") or name.endswith(shares)


def _cell(step, name):
    value = step.get(name)
    if value is None:
        return "–"
    shown = f"{100 * value:.1f} %" if _is_share(name) else f"{value:.4g}"
    total = step.get("eval/total", 0)
    if name != "eval/success" or total <= 0:
        return shown
    correct = step.get("eval/correct", round(value * total))
    low, high = wilson_interval(correct, total)
    return f"{shown}\n{correct:.0f}/{total:.0f} ({100 * low:.0f}–{100 * high:.0f} %)"


def _change(ends, name):
    values = [step.get(name) for step in ends]
    if len(values) < 2 or None in values:
        return ""
    difference = values[1] - values[0]
    if _is_share(name):
        return f"{100 * difference:+.1f} points"
    return f"{difference:+.3g}"


def totals(metrics):
    """Returns short facts about the whole run: [(value, label)]."""
    trained = [step for step in metrics if step["step"] > 0]
    facts = [(f"{trained[-1]['step']:,}", "steps")] if trained else []
    seconds = sum(step.get("time/step", 0.0) for step in metrics)
    if seconds:
        facts.append((_duration(seconds), "in steps"))
    tokens = sum(step.get("tokens/generated", 0.0) for step in metrics)
    if tokens:
        facts.append((_short(tokens), "tokens generated"))
    return facts


def _duration(seconds):
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _short(value):
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def page(name, *, kind, table_title, table, facts, notes, charts, listing, config):
    """Returns the page.

    name: its heading.    kind: what it is, in two words.
    table, facts, notes: HTML, everything of others in it through `escape`.
    charts: as `charts` returns them.    listing: `trajectories.Listing`.
    config: {dotted name: value}.
    """
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    script = "\n".join(
        (ASSETS / part).read_text(encoding="utf-8")
        for part in ("elements.js", "charts.js", "trajectories.js")
    )
    blocks = {"charts": records.dump(charts), "steps": records.dump(listing.steps)}
    blocks |= {f"texts-{index}": text for index, text in listing.texts.items()}
    parts = {
        "POLICY": (
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        "NAME": escape(name),
        "KIND": escape(kind),
        "FACTS": facts,
        "TABLE_TITLE": escape(table_title),
        "TABLE": table,
        "NOTES": notes,
        "CONFIG": _config(config),
        "STYLE": style,
        "DATA": "\n".join(
            f'<script type="application/json" id="data-{key}">{text}</script>'
            for key, text in blocks.items()
        ),
        "SCRIPT": script,
    }
    template = (ASSETS / "report.html").read_text(encoding="utf-8")
    pieces = template.split("@@")  # text, name, text, name, ..., text
    pieces[1::2] = [parts[key] for key in pieces[1::2]]
    return "".join(pieces)


def escape(value):
    """Returns a text as HTML in which nothing hides."""
    return html.escape(records.visible(value))


def _hash(content):
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _facts(config, facts):
    shown = [(records.text(value, 60), label) for value, label in facts]
    known = [label for _, label in shown]
    for label, key in FACTS:
        value = config.get(key, config.get(f"config.{key}"))
        if value not in (None, "") and label not in known:
            shown.append((records.text(value, 60), label))
    return "".join(f"<li><b>{escape(value)}</b> {escape(label)}</li>" for value, label in shown)


def _table(titles, rows):
    if not rows:
        return '<p class="quiet">This run was not evaluated on held-out questions.</p>'
    heads = ["", *titles, "Change" if len(titles) > 1 else ""]
    lines = ["<table><tr>", *(f"<th>{escape(head)}</th>" for head in heads), "</tr>"]
    for row in rows:
        cells = [cell.split("\n", 1) for cell in map(escape, row)]
        lines += ["<tr>", *(_cell_html(*cell) for cell in cells), "</tr>"]
    return "".join([*lines, "</table>"])


def _cell_html(value, small=""):
    return f"<td>{value}{f'<small>{small}</small>' if small else ''}</td>"


def _notes(listing, damaged):
    notes = []
    asked = sum(step["questions"] for step in listing.steps)
    kept = sum(step["texts"] for step in listing.steps)
    if kept < asked:
        full = sum(step["texts"] == step["questions"] for step in listing.steps)
        notes.append(
            f"To stay small, this page holds the full texts of {kept:,} of {asked:,} groups: "
            f"{full:,} of {len(listing.steps):,} steps are complete, chosen evenly from first to "
            "last. The rewards of the other steps are listed; their texts are in the run's "
            "trajectories/ folder."
        )
    if damaged:
        notes.append(
            f"{damaged:,} damaged or unfinished lines of the run's files were left out, as after "
            "a killed process."
        )
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _config(config):
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(records.text(value, 400))}</td></tr>"
        for key, value in config.items()
    )
    return f"<table>{rows}</table>" if rows else '<p class="quiet">No config.json.</p>'
