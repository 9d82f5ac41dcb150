"""Writes what an evaluation found into its folder, all of it from the ledger.

results.json, results.csv, results.md    the table and where it is from
scores.jsonl         every question of every row: its score in each trial
messages.jsonl       every trajectory as OpenAI's chat messages
atif.jsonl           every trajectory in ATIF 1.4
report.html          table, plots, and every trajectory turn by turn

Dimensions:
  Q questions    K trials of a question
"""

import hashlib
import json
import pathlib

from experiments.evaluating import (
    beside,
    exports,
    identity,
    page,
    plan,
    reading,
    results,
    run,
    table,
)
from experiments.running import places, versions
from flow_grpo_jax import files


def write(
    folder,
    *,
    about,
    benchmarks,
    arms,
    trials,
    ledger,
    config,
    names,
    columns,
    against,
    count_unsupported,
):
    """Writes all files; returns the results dict.

    about: of `identity`.
    names, columns: of `beside`: what is decided beside the official scores.
    against: folder of another evaluation, or None.
    count_unsupported: whether unsupported questions are in the denominators, as not solved.
    """
    folder, rows, scores, lines = pathlib.Path(folder), [], {}, []
    for benchmark in benchmarks:
        counted = benchmark.counted(unsupported=count_unsupported)
        ids = [question["id"] for question in benchmark.questions]
        ids += [question.id for question in counted[len(ids) :]]
        how = dict(names=names, columns=columns)
        for arm in arms:
            for turns in arm.budgets:
                found = results.outcomes(benchmark, counted, arm, turns, trials, ledger, **how)
                rows.append(results.row(benchmark, counted, arm, turns, found))
                place = benchmark.name, arm.mode, arm.protocol, turns
                official = results.scores_of(found, benchmark.official)
                scores[place] = dict(zip(ids, official, strict=True))
                lines += _score_lines(place, ids, found)
    pairs = results.within(scores)
    if against:
        pairs += _against(against, scores)
    values = {
        "version": 1,
        "trials": trials,
        "count_unsupported": count_unsupported,
        "rows": rows,
        "means": results.means(rows),
        "differences": results.differences(scores, pairs),
        "against": str(against) if against else None,
        "setup": plan.differences(
            config,
            benchmarks,
            arms,
            trials,
            weights={mode: identity.described(one) for mode, one in about["weights"].items()},
            judged=any("judge" in beside.of(benchmark, names) for benchmark in benchmarks),
        ),
        **{name: value for name, value in about.items() if name != "version"},
        **identity.of_config(config),
        "recorded": recorded(config),
        "unsupported": {b.name: [[u.id, u.why] for u in b.unsupported] for b in benchmarks},
        "files": {benchmark.name: benchmark.path.name for benchmark in benchmarks},
        "times": _times(benchmarks, arms, trials, ledger),
    }
    files.replace_text(folder / "scores.jsonl", "".join(lines))
    files.replace_text(folder / "results.json", json.dumps(values, indent=1) + "\n")
    files.replace_text(folder / "results.csv", table.comma_separated(values))
    files.replace_text(folder / "results.md", table.markdown(values))
    _export(folder, benchmarks, arms, trials, ledger, about)
    shown = page.make(folder, values, benchmarks, arms, trials, ledger)
    files.replace_text(folder / "report.html", shown)
    return values


def _score_lines(place, ids, outcomes_QK):
    names = dict(zip(("benchmark", "mode", "protocol", "max_turns"), place, strict=True))
    for id, group in zip(ids, outcomes_QK, strict=True):
        line = names | {
            "id": id,
            "scores": [outcome.scores for outcome in group],
            "beside": [outcome.beside for outcome in group],
            "status": [outcome.status for outcome in group],
        }
        yield json.dumps(line) + "\n"


def _against(folder, scores):
    _, before = reading.read(folder)
    name = pathlib.Path(folder).resolve().name
    return [
        (f"{place[1]} less that of {name}", place, before[place], place)
        for place in scores
        if place in before
    ]


def _export(folder, benchmarks, arms, trials, ledger, about):
    tools = exports.described(about["tools"])
    version = about["versions"][versions.DISTRIBUTION]
    as_messages, as_atif = [], []
    for benchmark, question, arm, _, found in run.keys(benchmarks, arms, trials):
        weights = about["weights"].get("trained" if arm.mode == "trained" else "untrained")
        weights = weights or about["weights"]["trained"]  # a server has one model
        for key in found:
            line = ledger.read(key)
            scores = benchmark.score(question, line["trajectory"]["answer"])
            how = dict(model=identity.model_name(weights), version=version, scores=scores)
            as_messages.append(json.dumps(exports.messages(line, tools)) + "\n")
            as_atif.append(json.dumps(exports.atif(line, tools, **how)) + "\n")
    files.replace_text(folder / "messages.jsonl", "".join(as_messages))
    files.replace_text(folder / "atif.jsonl", "".join(as_atif))


def recorded(config):
    """Returns what identifies the recorded answers of tools; None where nothing is recorded."""
    if not config.tools.record:
        return None
    digest, count = hashlib.sha256(), 0
    root = pathlib.Path(places.resolve(config.tools.record))
    for path in sorted(path for path in root.rglob("*.json") if path.is_file()):
        digest.update(f"{path.relative_to(root)} ".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
        count += 1
    return {"folder": config.tools.record, "answers": count, "hash": digest.hexdigest()[:16]}


def _times(benchmarks, arms, trials, ledger):
    """Returns seconds of trajectories, which overlap, and when the last one ended."""
    seconds, ended = 0.0, ""
    for *_, found in run.keys(benchmarks, arms, trials):
        line = ledger.read(found[-1])
        seconds += line["trajectory"]["seconds"]
        ended = max(ended, line["ended"])
    return {"trajectory_seconds": round(seconds, 3), "last_ended": ended}
