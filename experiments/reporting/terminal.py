"""The report of run folders as text for a terminal."""

import textwrap

from experiments.reporting import report, summary
from experiments.reporting.markup import visible

BLOCKS = "▁▂▃▄▅▆▇█"
CURVES = {"held-out": "eval/success", "sampled reward": "reward/mean"}
WIDTH, POINTS, LABEL = 100, 60, 32
STATES = {summary.GOOD: "✓", summary.NOTE: "!", summary.BAD: "✕"}


def text(workdirs):
    """Returns the three questions of each run, its curves, and one question before and after.

    Raises ValueError as `report.write_report` does.
    """
    runs, listing = report.read(workdirs, text_budget=0)
    lines = []
    for run in runs:
        lines += [*_run(run, damaged=run.damaged + listing.damaged), ""]
    if against := report.against(runs):
        lines += _wrapped(against, "")
    return "\n".join(lines).rstrip() + "\n"


def _run(run, *, damaged):
    facts = " · ".join(f"{value} {label}" for value, label in report.totals(run.metrics))
    state, sentence, _ = summary.learned(run.metrics, run.ends)
    lines = [f"{_line(run.name)}   {facts}".rstrip(), "", "Did it learn?"]
    lines += _wrapped(f"{STATES[state]} {sentence}")
    titles, rows = report.comparison(run.metrics)
    if rows and rows[0][0] == "solved":
        for title, cell in zip(titles, rows[0][1:], strict=False):
            lines.append(f"  {title:<{LABEL}}{cell.replace(chr(10), '   ')}")
    for label, metric in CURVES.items():
        values = [step[metric] for step in run.metrics if metric in step]
        if len(values) > 1:
            lines.append(f"  {label:<{LABEL}}{curve(values)} {values[0]:.3f} → {values[-1]:.3f}")
    if run.ends and run.ends.before:
        same = "" if run.ends.held_out else "   (sampled, on other questions each time)"
        lines += ["", f"What did it learn?{same}"]
        heads = "".join(f"{title:>18}" for title in run.ends.titles)
        for title, _, shares in summary.habits(run.ends):
            lines.append(f"  {title:<{LABEL}}{heads}")
            for label, before, after in shares:
                label = textwrap.shorten(_line(label), LABEL - 3, placeholder="…")
                cells = f"{100 * before:>16.1f} %{100 * after:>16.1f} %"
                lines.append(f"    {label:<{LABEL - 2}}{cells}")
    lines += ["", "Can I trust it?"]
    for check in summary.checks(run.metrics, damaged=damaged):
        lines += _wrapped(f"{STATES[check.state]} {check.title:<{LABEL - 2}}{check.value}")
    where = ", ".join(f"{name} {value}" for name, value in summary.ran_where(run.config))
    lines += _wrapped(f"  ran with {where}") if where else []
    return lines + _example(run.ends)


def _example(ends):
    """Returns a question that is newly solved, else a lost one, before and after."""
    if not ends or not ends.held_out:
        return []
    named = [name for names in summary.changed(ends) for name in names]
    if not named:
        return []
    pair = [next(iter(each[named[0]].values())) for each in (ends.before, ends.after)]
    lines = ["", "One question, before and after", *_wrapped(pair[1]["question"])]
    for title, trajectory in zip(ends.titles, pair, strict=True):
        lines.append(f"  {title}")
        for number, turn in enumerate(trajectory["turns"], start=1):
            tool = _line(turn["tool"]) or "no tool"
            wrong = " (error)" if turn["tool_error"] else ""
            lines += _wrapped(f"{number} {tool}: {turn['command']}", "    ")
            lines += _wrapped(f"→{wrong} {turn['result']}", "      ")
        reward = trajectory["reward"]
        answer = _line(trajectory["answer"]) or "no answer"
        lines += _wrapped(f"answer {answer}; reward {reward}; gold {trajectory['gold']}", "    ")
    return lines


def curve(values):
    """Returns numbers as a line of blocks, at most POINTS of them, each a mean of neighbours."""
    count = min(len(values), POINTS)
    cuts = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in means)


def _line(value):
    """Returns a text of a model or tool as one line in which nothing steers the terminal."""
    return visible(" ".join(value.split()))


def _wrapped(value, indent="  "):
    """Returns lines of a text, cut after the third."""
    first = value[: len(value) - len(value.lstrip())]
    return textwrap.wrap(
        first + _columns(value.lstrip()),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        max_lines=3,
        placeholder=" …",
        replace_whitespace=False,
        drop_whitespace=True,
    )


def _columns(value):
    """Returns a text as `_line` does, with its runs of blanks."""
    return visible(value.replace("\n", " ").replace("\t", " "))
