"""The page of an evaluation: table, plots, and every trajectory turn by turn."""

from experiments.evaluating import analyses, identity, table
from experiments.evaluating.ledger import Key
from experiments.reporting import markup
from experiments.reporting import page as report_page
from experiments.reporting import trajectories as records
from experiments.reporting.markup import Markup, element, joined
from experiments.running import dotted

TEXT_BUDGET = 12_000_000  # bytes of packed trajectory texts


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
    named = [("", values)]
    bars = [*analyses.ablation(named), *analyses.tool_shares([], named)]
    cards = element("div", *map(report_page.grouped_bars, bars), class_="grid wide")
    listing = records.listing(parts, records.spread(len(parts)), text_budget=TEXT_BUDGET)
    return report_page.make(
        folder.resolve().name,
        kind="evaluation",
        facts=_facts(values),
        sections=[("Results", "", _table(values)), ("Planners and tools", "", cards)],
        notes=_notes(listing),
        charts={"main": analyses.of_budgets(named), "other": []},
        listing=listing,
        config=[("", dict(dotted.flat({n: values[n] for n in ("weights", "versions", "config")})))],
    )


def _part(benchmark, arm, turns, trials, ledger):
    told = {
        "step": turns,
        "run": 0,
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
        (identity.model_name(weights), "planner"),
        (weights.get("fingerprint", "unknown"), "fingerprint"),
        (values["seed"], "seed"),
        (values["trials"], "trials"),
        (values["config_hash"], "config"),
    ]
    return [(records.text(str(value), 60), name) for value, name in facts]


def _table(values):
    titles, rows = table.cells(values)
    notes = [
        element(
            "p",
            element("b", f"{title}."),
            " ",
            *(joined(line, Markup("<br>")) for line in part),
            class_="note",
        )
        for title, part in table.sections(values)
    ]
    whole = element("div", markup.table(rows, heads=titles), class_="scroll config results")
    return element("div", whole, *notes, element("div", id="hero"), class_="card")


def _notes(listing):
    asked = sum(step["questions"] for step in listing.steps)
    kept = sum(step["texts"] for step in listing.steps)
    if kept == asked:
        return []
    return [
        f"To stay small, this page holds the full texts of {kept:,} of {asked:,} questions. All "
        "trajectories are in ledger.jsonl."
    ]
