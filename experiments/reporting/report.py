"""The report of run folders: did it learn, what did it learn, can it be trusted; all trajectories.

Several runs stand beside each other.
"""

import dataclasses
import pathlib

from experiments.reporting import curves, markup, page, summary
from experiments.reporting import trajectories as records
from experiments.reporting.markup import element, joined
from experiments.running import dotted
from flow_grpo_jax import files
from flow_grpo_jax.bounds import json_text
from flow_grpo_jax.statistics import wilson_interval

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
OF_COUNTS = ("eval/success", "eval/correct", "eval/total")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder that was read.

    metrics: one {name: value} a step, in order.    config: {dotted name: value}.
    ends: `summary.Ends` or None.    damaged: lines that were no JSON object.
    """

    name: str
    metrics: list
    config: dict
    ends: summary.Ends | None
    damaged: int


def write_report(workdir, out=None, *, text_budget=12_000_000):
    """Writes the page of the runs; returns its path.

    workdir: folder with config.json, metrics.jsonl and trajectories/, of which any may be missing
      or end in a truncated line; or a list of such folders.
    out: the file to write; by default report.html in the first of them.
    text_budget: bytes of packed trajectory texts on the page.
    Raises ValueError if one holds neither metrics nor trajectories.
    """
    workdirs = workdir if isinstance(workdir, list | tuple) else [workdir]
    out = pathlib.Path(out) if out else pathlib.Path(workdirs[0]) / "report.html"
    shown = html(workdirs, text_budget=text_budget)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.replace_text(out, shown)
    return out


def html(workdirs, *, text_budget, live=None):
    """Returns the page of run folders; `live` is of `page.make`."""
    runs, listing = read(workdirs, text_budget=text_budget)
    names = [run.name for run in runs] if len(runs) > 1 else []
    return page.make(
        " · ".join(run.name for run in runs),
        kind="runs beside each other" if names else "run report",
        facts=_facts(runs),
        sections=[
            ("Did it learn?", "", _learned(runs)),
            *_habits(runs),
            ("Can I trust it?", "", _trust(runs)),
        ],
        notes=_notes(listing, sum(run.damaged for run in runs)),
        charts=curves.of_runs([(run.name, run.metrics) for run in runs]),
        listing=listing,
        config=[(run.name if names else "", run.config) for run in runs],
        runs=names,
        live=live,
    )


# ---- reading -----------------------------------------------------------------------------------


def read(workdirs, *, text_budget):
    """Returns ([`Run`], `trajectories.Listing` of them all); see `write_report`."""
    folders = [pathlib.Path(folder) for folder in workdirs]
    found = [read_metrics(folder / "metrics.jsonl") for folder in folders]
    parts, orders = [], []
    for index, folder in enumerate(folders):
        own, order = records.parts_of(folder / "trajectories", run=index)
        if not own and not found[index][0]:
            raise ValueError(
                f"{folder} holds no run: found neither steps in metrics.jsonl nor files in "
                "trajectories/. Pass the folder given to experiments.train as --workdir."
            )
        orders.append([len(parts) + place for place in order])
        parts += own
    listing = records.listing(parts, records.interleaved(orders), text_budget=text_budget)
    runs = [
        Run(
            name=name,
            metrics=with_lengths(metrics, [s for s in listing.steps if s["run"] == index]),
            config=read_config(folder / "config.json"),
            ends=summary.ends_of(folder / "trajectories"),
            damaged=damaged,
        )
        for index, (folder, name, (metrics, damaged)) in enumerate(
            zip(folders, _names(folders), found, strict=True)
        )
    ]
    return runs, listing


def _names(folders):
    """Returns names that tell folders apart: the last part of a path, or as many as it takes."""
    paths = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{folders[0]} was given twice; give two different runs.")


def read_metrics(path):
    """Returns ([one {name: value} a step, in order], number of damaged lines).

    An evaluation whose counts contradict each other is left out as such a line.
    """
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
    for values in steps.values():
        if not _is_possible(values):
            damaged += 1
            for name in OF_COUNTS:
                values.pop(name, None)
    return [steps[step] | {"step": step} for step in sorted(steps)], damaged


def _is_possible(values):
    """Whether a step's counts of an evaluation, if it has them, are those of questions."""
    success, correct, total = map(values.get, OF_COUNTS)
    if total is None or (success is None and correct is None):
        return True
    correct = success * total if correct is None else correct
    return isinstance(total, int) and 0 <= correct <= total


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


# ---- did it learn ------------------------------------------------------------------------------


def _learned(runs):
    cards = [_learned_card(index, run, len(runs) > 1) for index, run in enumerate(runs)]
    compared = against(runs)
    cards.append(element("div", id="hero"))
    return joined(
        element("p", compared, class_="lead") if compared else None,
        element("div", *cards, class_="outcome"),
    )


def _learned_card(index, run, several):
    state, sentence, _ = summary.learned(run.metrics, run.ends)
    titles, rows = comparison(run.metrics)
    answer, colon, rest = sentence.partition(": ")
    return element(
        "div",
        element("h3", run.name) if several else None,
        element(
            "p",
            element("b", f"{answer}{'.' if colon else ''}", class_=f"verdict {state}"),
            f" {rest[:1].upper()}{rest[1:]}",
        ),
        _figures(titles, rows),
        _examples(index, run.ends),
        _measures(titles, rows),
        class_="card",
    )


def _figures(titles, rows):
    if not rows or rows[0][0] != "solved":
        return element("p", "This run was not evaluated on held-out questions.", class_="quiet")
    shown = []
    for title, cell in zip(titles, rows[0][1:], strict=False):
        value, _, small = cell.partition("\n")
        shown.append(
            element("div", element("small", title), element("b", value), element("small", small))
        )
    return element("div", *shown, class_="figures")


def _examples(index, ends):
    """Returns questions that are newly solved or lost, as buttons that open them."""
    if not ends or not ends.held_out:
        return None
    lines = []
    step, _ = ends.places[1]
    for title, names in zip(("Newly solved", "Lost"), summary.changed(ends), strict=True):
        buttons = [
            element(
                "button",
                records.text(next(iter(ends.after[name].values()))["question"], 90) or name,
                class_="link",
                data_step=f"{index}.h{step}",
                data_question=name,
            )
            for name in names[: summary.EXAMPLES]
        ]
        more = len(names) - len(buttons)
        if buttons:
            tail = element("span", f"and {more:,} more", class_="quiet") if more else None
            lines += [element("dt", title), element("dd", *buttons, tail)]
    return element("dl", *lines, class_="examples") if lines else None


def _measures(titles, rows):
    if not rows:
        return None
    heads = ["", *titles, "Change" if len(titles) > 1 else ""]
    whole = element("div", markup.table(rows, heads=heads), class_="scroll")
    return element("details", element("summary", "All held-out measures"), whole)


def against(runs):
    """Returns a sentence that compares the last evaluations of two runs; "" if it cannot."""
    if len(runs) != 2 or not all(run.ends and run.ends.held_out for run in runs):
        return ""
    first, second = (run.ends.after for run in runs)
    shared = [name for name in first if name in second]
    if not shared:
        return "The two runs have no held-out question in common."
    change = summary.difference(*({n: each[n] for n in shared} for each in (first, second)))
    return (
        f"{runs[1].name} less {runs[0].name}, at their last evaluations on the same "
        f"{change.questions:,} questions: {summary.points(change.mean)} points "
        f"(95 %: {summary.points(change.low)} to {summary.points(change.high)})."
    )


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


def _cell(step, name):
    value = step.get(name)
    if value is None:
        return "–"
    shown = f"{100 * value:.1f} %" if curves.is_share(name) else f"{value:.4g}"
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
    if curves.is_share(name):
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


# ---- what did it learn, can it be trusted ------------------------------------------------------


def _habits(runs):
    """Returns the section, if there is anything to compare."""
    told = []
    for run in runs:
        if run.ends and run.ends.before:
            same = f"the same {len(run.ends.before):,} held-out questions, before and after"
            small = same if run.ends.held_out else "sampled, on other questions each time"
            heads = [t.removesuffix(" training").removeprefix("After ") for t in run.ends.titles]
            heads = [head.capitalize() for head in heads]
            cards = [page.bars(*one[:2], heads, one[2]) for one in summary.habits(run.ends)]
            told.append((run.name, small, element("div", *cards, class_="grid wide")))
    if not told:
        return []
    if len(runs) == 1:
        (_, small, content) = told[0]
        return [("What did it learn?", small, content)]
    content = [
        joined(element("h3", name, " ", element("small", small)), cards)
        for name, small, cards in told
    ]
    return [("What did it learn?", "", joined(*content))]


def _trust(runs):
    return element("div", *(_trust_cards(run, len(runs) > 1) for run in runs), class_="trust")


def _trust_cards(run, several):
    found = summary.checks(run.metrics, damaged=run.damaged)
    lines = [
        element(
            "li",
            element("b", check.title),
            element("span", check.value),
            element("small", check.why),
            class_=check.state,
        )
        for check in found
    ]
    where = [(name, records.text(value, 200)) for name, value in summary.ran_where(run.config)]
    pairs = [joined(element("dt", name), element("dd", value)) for name, value in where]
    return joined(
        element("h3", run.name, class_="whole") if several else None,
        element("div", element("ul", *lines, class_="checks"), class_="card"),
        element("div", element("h3", "What ran where"), element("dl", *pairs), class_="card where")
        if pairs
        else None,
    )


def _facts(runs):
    shown = []
    for run in runs if len(runs) == 1 else ():
        shown = [(records.text(value, 60), label) for value, label in totals(run.metrics)]
        known = [label for _, label in shown]
        for label, key in FACTS:
            value = run.config.get(key, run.config.get(f"config.{key}"))
            if value not in (None, "") and label not in known:
                shown.append((records.text(value, 60), label))
    if len(runs) > 1:
        shown = [(text, "differs") for text in _differences(runs)]
    return shown


def _differences(runs):
    """Returns fields of the configs that differ, in words."""
    first, second = runs[0].config, runs[1].config
    names = [n for n in dict.fromkeys([*first, *second]) if n.startswith("config.")]
    return [
        f"{n.removeprefix('config.')}: "
        + " / ".join(records.text(run.config.get(n), 40) or "–" for run in runs)
        for n in names
        if len({records.text(run.config.get(n)) for run in runs}) > 1
    ][:12]


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
    damaged += listing.damaged
    if damaged:
        notes.append(
            f"{damaged:,} damaged or unfinished lines of the run's files were left out, as after "
            "a killed process."
        )
    return notes
