"""Trajectories of a step as rows of a table: a few of them, their texts cut."""

import json

CHARACTERS = 2_000  # of a cell
COLUMNS = ("question_id", "rollout", "question", "gold", "answer", "reward", "advantage")
COLUMNS += ("status", "turns", "tools", "transcript")
KINDS = {"step": "trajectories", "heldout": "heldout_trajectories"}  # of files: name of the table


def of_step(folder, step, *, most, hide):
    """Returns {name of a table: rows as COLUMNS} of the trajectories that a step has.

    Args:
      most: rows of a table, spread evenly over the file.
      hide: of `private.hider`, for every text.
    """
    found = {}
    for kind, name in KINDS.items():
        path = folder / "trajectories" / f"{kind}_{step:06d}.jsonl"
        if most and path.exists():
            texts = path.read_text(encoding="utf-8").splitlines()
            count = min(most, len(texts))
            chosen = [texts[i * len(texts) // count] for i in range(count)]
            found[name] = [_row(json.loads(text), hide) for text in chosen]
    return found


def _row(line, hide):
    turns = line["turns"]
    parts = [f"{turn['planner_text']}\n[{turn['tool']}] {turn['command']}" for turn in turns]
    parts = [f"{part}\n{turn['result']}" for part, turn in zip(parts, turns, strict=True)]
    gold = line["gold"]
    cells = {
        "gold": " | ".join(map(str, gold)) if isinstance(gold, list) else str(gold),
        "turns": len(turns),
        "tools": ", ".join(str(turn["tool"]) for turn in turns),
        "transcript": "\n\n".join(parts),
    }
    values = [cells.get(name, line.get(name)) for name in COLUMNS]
    return [hide(value)[:CHARACTERS] if isinstance(value, str) else value for value in values]
