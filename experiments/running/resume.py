"""How a run goes on: what must be as it was, what --force may change, what is only said."""

import hashlib
import json
import os

import jax
from absl import logging

from experiments.running import command
from flow_grpo_jax import checkpoint, processes

FIXED = (
    "model.path",
    "model.lora.rank",
    "model.lora.targets",
    "rollout.questions",
    "data.mixture",
    "seed",
)  # --force cannot change them
ASKED = ("id", "question", "answer", "kind", "source", "choices", "numbers")  # of a question
DIGITS = 6  # of the hash of one question


def facts(questions, held_out, frozen, model_folder, sandbox):
    """Returns what a checkpoint says of the run, as JSON-able data.

    frozen: the reference policy, as it was read from model_folder.
    sandbox: of `sessions.sandbox_facts`.
    """
    return {
        "reference": checkpoint.fingerprint(frozen),
        "model_folder": model_folder,
        "sandbox": sandbox,
        "questions": {"training": marks(questions), "held-out": marks(held_out)},
        "machine": machine(),
    }


def marks(questions):
    """Returns DIGITS hex digits for each question, joined; they say which one has changed."""
    texts = (json.dumps([question.get(name) for name in ASKED]) for question in questions)
    return "".join(hashlib.sha256(text.encode()).hexdigest()[:DIGITS] for text in texts)


def machine():
    """Returns what results depend on in their last bits."""
    devices = jax.devices()
    found = {"devices": f"{len(devices)} x {devices[0].device_kind}", "jax": jax.__version__}
    if devices[0].platform == "cpu":  # its programs share sums out among the cores
        able = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
        found["CPU cores"] = len(able(0))
    return found


def restore(checkpoints, state, batches, *, facts, questions, held_out, force):
    """Reads the newest checkpoint and brings `batches` to its position.

    Args:
      state: gives structure and placement.
      facts: of this run, as `facts` gives them.
      force: go on with other questions of the same ids.

    Returns:
      (step, state, metadata) of it; (0, state, None) if there is none.

    Raises:
      ConfigError: this config, model or data cannot go on from it. Nothing was written.
    """
    try:
        restored = checkpoints.restore(state)
    except checkpoint.OtherArrays as error:
        raise command.ConfigError(
            f"{error} The parameters of this config are not those of the run in "
            f"{checkpoints.folder.parent}. --force goes on with other values of most fields, but "
            f"not of {', '.join(FIXED)}: use a new --workdir."
        ) from error
    if restored is None:
        return 0, state, None
    _, _, meta = restored
    if meta["reference"] != facts["reference"]:
        raise command.ConfigError(
            "The weights in model.path are not those this run started from; KL and the frozen "
            "modules would change. Restore the folder or use a new --workdir."
        )
    for kind, now in (("training", questions), ("held-out", held_out)):
        if kind in meta.get("questions", {}):  # earlier versions kept the ids alone
            check_questions(meta["questions"][kind], now, kind=kind, force=force)
    with command.checking_config():
        batches.set_state(meta["data"])
    compare_machines(meta.get("machine", {}), facts["machine"])
    return restored


def check_questions(before, questions, *, kind, force):
    """Refuses questions that are not those of the run, or with `force` warns.

    before: `marks` of the run's questions.
    """
    now = marks(questions)
    if now == before:
        return
    split = lambda text: [text[i : i + DIGITS] for i in range(0, len(text), DIGITS)]
    changed = [i for i, (a, b) in enumerate(zip(split(before), split(now), strict=False)) if a != b]
    said = []
    if len(now) != len(before):
        said.append(f"there were {len(before) // DIGITS}, now there are {len(questions)}")
    if changed:
        first = f"number {changed[0] + 1}, {questions[changed[0]]['id']!r}"
        said.append(f"{len(changed)} of {len(questions)} have changed, first {first}")
    text = f"The {kind} questions are not those of this run: {'; '.join(said)}."
    if not force:
        raise command.ConfigError(
            f"{text} Bring the file back or use a new --workdir; if their ids are the same, "
            "--force goes on with the new ones."
        )
    logging.warning("%s", text)


def compare_machines(before, now):
    """Warns of what keeps a run from going on bit for bit; earlier versions kept nothing."""
    changed = [
        f"{name}: {before[name]} before, {now.get(name, 'none')} now"
        for name in before
        if before[name] != now.get(name)
    ]
    if changed and processes.index() == 0:
        logging.warning(
            "the machine has changed (%s): the run goes on, but not bit for bit as on the old one",
            "; ".join(changed),
        )
