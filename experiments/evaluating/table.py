"""The table of an evaluation, for a terminal and as Markdown, beside the paper's figures."""

import csv
import io
import re

from experiments.evaluating import questions

TITLES = (
    "benchmark",
    "planner",
    "turns ≤",
    "score",
    "95 %",
    "k/N",
    "others",
    "used",
    "tool errors",
    "no answer",
    "truncated",
    "infra",
    "late",
    "left out",
    "paper*",
)


NAMED = 10  # unsupported questions of a benchmark that are named
NAMED_CHARACTERS = 100


def cells(results):
    """Returns (titles, rows of texts) of a results dict."""
    shown = [_cells(row) for row in results["rows"]]
    shown += [_mean_cells(row) for row in results["means"]]
    return TITLES, shown


def terminal(results):
    """Returns the table and what belongs under it, as aligned text."""
    titles, rows = cells(results)
    lines = _aligned([titles, *rows])
    lines.insert(1, "-" * len(lines[0]))
    for title, part in sections(results):
        lines += ["", f"{title}:", *(f"  {line}" for line in part)]
    return "\n".join(map(questions.ascii_controls, lines)) + "\n"


def markdown(results):
    """Returns the same as Markdown."""
    titles, rows = cells(results)
    text = ["# Evaluation", "", *_markdown_table(titles, rows), ""]
    for title, part in sections(results):
        text += [f"## {title}", "", *(f"- {_escaped(line)}" for line in part), ""]
    return "\n".join(text)


def comma_separated(results):
    """Returns one line of CSV for each row and score."""
    out = io.StringIO()
    names = ("benchmark", "mode", "protocol", "max_turns", "questions", "trials")
    counts = ("turns", "tool_error_rate", "response_tokens", "infra_errors", "timeouts")
    counts += ("infra_retries", "no_answer", "truncated", "unsupported", "paper")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "score", "value", "error", "low", "high", *counts])
    for row in results["rows"]:
        scores = [*row["scores"].items(), *((f"pass@{k}", v) for k, v in row["pass_at"].items())]
        scores += [(one["name"], one) for one in row["beside"]]
        for name, one in scores:
            numbers = [one[field] for field in ("value", "error", "low", "high")]
            values = [*(row[n] for n in names), name, *numbers, *(row[n] for n in counts)]
            writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def sections(results):
    """Yields (title, lines) of what stands under the table."""
    if compared := [_difference(one) for one in results["differences"]]:
        yield "Paired differences, same questions and random numbers, points", compared
    if levels := [line for row in results["rows"] for line in _levels(row)]:
        yield "By level", levels
    if named := [line for name in results["unsupported"] for line in _left_out(name, results)]:
        counted = "counted as not solved" if results["count_unsupported"] else "not asked"
        yield f"Left out, {counted}", named
    yield "* The paper's figures are theirs, not measured here", results["setup"]
    yield "How to read it", _notes(results)


def _notes(results):
    trials = results["trials"]
    notes = [
        "score: the official scorer's, "
        + ("avg@1" if trials == 1 else f"avg@{trials}, errors clustered by question")
        + "; the denominator is every question, and what has no answer is not solved.",
        "no answer, truncated: trajectories without an answer that could be read; those in which a "
        "planner's response or a prompt met its limit.",
        "infra, late: trajectories that infrastructure or the deadline ended. They are in the "
        'denominator; "of outputs" is the score without them. The same command asks the former '
        "again.",
        "left out: questions with attachments or images"
        + (", counted as not solved." if results["count_unsupported"] else "."),
    ]
    if any(row["beside"] for row in results["rows"]):
        notes.append("agree: share of verdicts on which it and the official scorer agree.")
    return notes


def _left_out(name, results):
    """Yields lines on the unsupported questions of a benchmark, the first of them by name."""
    found = results["unsupported"][name]
    for id, why in found[:NAMED]:
        yield f"{name} {id[:NAMED_CHARACTERS]}: {why[:NAMED_CHARACTERS]}"
    if len(found) > NAMED:
        yield f"{name}: {len(found) - NAMED} more, in results.json"


def _cells(row):
    official = row["official"]
    score = row["scores"][official]
    others = [f"{name} {_percent(one['value'])}" for name, one in row["scores"].items()]
    others = others[1:]
    if row["infra_errors"] or row["timeouts"]:
        others.append(f"of outputs {_percent(row['of_outputs'])}")
    others += [f"pass@{k} {_bounded(one)}" for k, one in row["pass_at"].items()][1:]
    for beside in row["beside"]:
        text = f"{beside['name']} {_percent(beside['value'])}"
        if beside["agreement"] is not None:
            text += f" agree {_percent(beside['agreement'])}"
        if beside["no_verdict"]:
            text += f" no verdict {beside['no_verdict']}"
        others.append(text)
    return (
        row["benchmark"],
        _planner(row),
        str(row["max_turns"] or "–"),
        f"{_percent(score['value'])} {official}",
        f"{_percent(score['low'])}–{_percent(score['high'])}",
        f"{row['solved']}/{row['questions'] * row['trials']}",
        ", ".join(others),
        f"{row['turns']:.2f}" if row["max_turns"] else "–",
        _percent(row["tool_error_rate"]) if row["max_turns"] else "–",
        str(row["no_answer"]),
        str(row["truncated"]),
        str(row["infra_errors"]),
        str(row["timeouts"]),
        str(row["unsupported"]),
        _paper(row),
    )


def _mean_cells(row):
    bounds = f"{_percent(row['low'])}–{_percent(row['high'])}"
    first = ("mean", _planner(row), str(row["max_turns"] or "–"), _percent(row["value"]), bounds)
    return (*first, *([""] * (len(TITLES) - len(first) - 1)), _paper(row))


def _planner(row):
    return row["mode"] if row["protocol"] == "honest" else f"{row['mode']}, authors'"


def _paper(row):
    return "" if row["paper"] is None else f"{100 * row['paper']:.1f}"


def _difference(one):
    _, _, protocol, turns = one["second"]
    authors = ", authors'" if protocol == "authors" else ""
    error = "" if one["error"] is None else f" ± {100 * one['error']:.1f}"
    text = (
        f"{one['benchmark']}, turns ≤ {turns or '–'}, {one['compared']}{authors}: "
        f"{100 * one['mean']:+.1f}{error} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f}), "
        f"better {one['better']}, worse {one['worse']} of {one['questions']}"
    )
    return text + (f"; {one['unpaired']} without a partner" if one["unpaired"] else "")


def _levels(row):
    for level, one in row["levels"].items():
        yield (
            f"{row['benchmark']} {level}, {_planner(row)}, turns ≤ {row['max_turns'] or '–'}: "
            f"{_bounded(one)} of {one['questions']}"
        )


def _bounded(estimate):
    bounds = f"{_percent(estimate['low'])}–{_percent(estimate['high'])}"
    return f"{_percent(estimate['value'])} ({bounds})"


def _percent(value):
    return f"{100 * value:.1f}"


def _aligned(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]


def _markdown_table(titles, rows):
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield "| " + " | ".join(map(_escaped, row)) + " |"


def _escaped(text):
    """Returns one line that Markdown shows as it is: no link, image, tag or heading."""
    text = re.sub(r"[\\|*`[\]]|^[#>+-]", r"\\\g<0>", questions.ascii_controls(text))
    return text.replace("<", "&lt;")
