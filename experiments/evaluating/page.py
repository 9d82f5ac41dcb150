"""The page of an evaluation: table, plots, and every trajectory turn by turn."""

from experiments.evaluating import analyses, table
from experiments.evaluating.ledger import Key
from experiments.reporting import report
from experiments.reporting import trajectories as records
from experiments.running import dotted

TEXT_BUDGET = 12_000_000  # bytes of trajectory texts


def make(folder, values, benchmarks, arms, trials, ledger):
    """Returns the HTML of a results dict.

    folder: its name is the heading.
    """
    parts = [
        _part(benchmark, arm, turns, trials, ledger)
        for benchmark in benchmarks
        for arm in arms
        for turns in arm.budgets
    ]
    listing = records.listing(parts, records.spread(len(parts)), text_budget=TEXT_BUDGET)
    return report.page(
        folder.resolve().name,
        kind="evaluation",
        table_title="Results",
        table=_table(values),
        facts=_facts(values),
        notes=_notes(listing),
        charts={"main": analyses.of_budgets([("", values)]), "other": []},
        listing=listing,
        config=dict(dotted.flat({"weights": values["weights"], "config": values["config"]})),
    )


def _part(benchmark, arm, turns, trials, ledger):
    told = {
        "step": turns,
        "heldout": True,
        "name": f"{benchmark.name} · {arm.name}" + (f" · {turns} turns" if turns else ""),
    }

    def lines():
        for question in benchmark.questions:
            for trial in range(trials):
                place = benchmark.name, question["id"], arm.mode, arm.protocol, turns, trial
                line = ledger.read(Key(*place))["trajectory"]
                scores = benchmark.score(question, line["answer"])
                name, value = next(iter(scores.items()))
                yield line | {"reward": value, "reward_source": name}

    return told, lines


def _facts(values):
    weights = values["weights"].get("trained", values["weights"].get("untrained"))
    facts = [
        (weights["source"], "planner"),
        (weights.get("fingerprint", "unknown"), "fingerprint"),
        (values["seed"], "seed"),
        (values["trials"], "trials"),
        (values["config_hash"], "config"),
    ]
    if weights.get("step") is not None:
        facts.insert(1, (weights["step"], "step"))
    pairs = [(report.escape(records.text(str(v), 60)), report.escape(n)) for v, n in facts]
    return "".join(f"<li><b>{value}</b> {name}</li>" for value, name in pairs)


def _table(values):
    titles, rows = table.cells(values)
    cell = lambda tag, text: f"<{tag}>{report.escape(text)}</{tag}>"
    lines = ["<tr>" + "".join(cell("th", title) for title in titles) + "</tr>"]
    lines += ["<tr>" + "".join(cell("td", text) for text in row) + "</tr>" for row in rows]
    notes = [
        f'<p class="note"><b>{report.escape(title)}.</b> '
        + "<br>".join(report.escape(line) for line in part)
        + "</p>"
        for title, part in table.sections(values)
    ]
    return f'<div class="scroll config"><table>{"".join(lines)}</table></div>' + "".join(notes)


def _notes(listing):
    asked = sum(step["questions"] for step in listing.steps)
    kept = sum(step["texts"] for step in listing.steps)
    if kept == asked:
        return ""
    note = (
        f"To stay small, this page holds the full texts of {kept:,} of {asked:,} questions. All "
        "trajectories are in ledger.jsonl."
    )
    return f'<p class="note">{report.escape(note)}</p>'
