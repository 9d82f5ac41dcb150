"""What a run must find as it was when it goes on, and what it says of the rest."""

import jax.numpy as jnp
import pytest

from experiments.running import command, resume
from flow_grpo_jax import checkpoint, data

QUESTIONS = [
    {"id": str(i), "question": f"Is it {i}?", "answer": ("yes",), "kind": "qa", "source": "test"}
    for i in range(5)
]
STATE = {"params": jnp.ones(3)}


def batches(questions, *, batch=2):
    return data.QuestionBatches(questions, batch=batch, seed=0)


@pytest.fixture
def run(tmp_path):
    """(Checkpoints with a step 4, facts of the run)"""
    facts = resume.facts(QUESTIONS, QUESTIONS[:1], STATE, "m", {})
    checkpoints = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.save(4, STATE, {"data": batches(QUESTIONS).get_state(), **facts})
    return checkpoints, facts


def go_on(run, *, state=STATE, questions=QUESTIONS, held_out=QUESTIONS[:1], force=False, **how):
    checkpoints, facts = run
    facts = facts | how.pop("facts", {})
    given = dict(facts=facts, questions=questions, held_out=held_out, force=force)
    return resume.restore(checkpoints, state, batches(questions, **how), **given)


def changed(index, **fields):
    questions = list(QUESTIONS)
    questions[index] = questions[index] | fields
    return questions


def test_a_run_goes_on(run, tmp_path, caplog):
    step, state, meta = go_on(run)
    assert step == 4 and meta["reference"] == run[1]["reference"] and caplog.text == ""
    empty = checkpoint.Checkpoints(tmp_path / "empty", keep=1), run[1]
    assert go_on(empty) == (0, STATE, None)


@pytest.mark.parametrize(
    "fields", [{"question": "Is it 7?"}, {"answer": ("no",)}, {"kind": "math"}, {"choices": ["a"]}]
)
def test_questions_that_changed_under_the_same_ids_are_named(run, fields, caplog):
    with pytest.raises(command.ConfigError) as caught:
        go_on(run, questions=changed(3, **fields))
    text = "The training questions are not those of this run: 1 of 5 have changed, first number 4, "
    assert f"{text}'3'." in str(caught.value)
    assert go_on(run, questions=changed(3, **fields), force=True)[0] == 4
    assert "1 of 5 have changed" in caplog.text
    assert go_on(run, questions=changed(3, note="not asked"))[0] == 4


def test_held_out_questions_and_numbers_count_too(run):
    with pytest.raises(command.ConfigError, match="held-out questions .* there were 1, now .* 2"):
        go_on(run, held_out=QUESTIONS[:2])
    with pytest.raises(command.ConfigError, match="there were 5, now there are 4; 3 of 4 have"):
        go_on(run, questions=QUESTIONS[:1] + QUESTIONS[2:])


def test_force_does_not_change_the_order_of_the_data(run):
    with pytest.raises(command.ConfigError, match="batch=2, this run has 3"):
        go_on(run, batch=3, force=True)
    with pytest.raises(command.ConfigError, match="saved data position has questions"):
        go_on(run, questions=changed(0, id="other"), force=True)


def test_runs_of_earlier_versions_go_on(tmp_path, caplog):
    facts = resume.facts(QUESTIONS, [], STATE, "m", {})
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    meta = {"data": batches(QUESTIONS).get_state(), "reference": facts["reference"]}
    checkpoints.save(1, STATE, meta)
    assert go_on((checkpoints, facts), questions=changed(0, answer=("no",)))[0] == 1
    assert caplog.text == ""


def test_another_structure_and_other_weights_are_refused_with_what_can_be_forced(run):
    for force in (False, True):
        with pytest.raises(command.ConfigError, match=r"it lacks a;.*not of .* model.lora.rank"):
            go_on(run, state={"a": jnp.ones(3)}, force=force)
        with pytest.raises(command.ConfigError, match="not those this run started from"):
            go_on(run, facts={"reference": "other"}, force=force)


def test_another_machine_is_said(run, monkeypatch, caplog):
    monkeypatch.setattr(resume.os, "sched_getaffinity", lambda process: range(97), raising=False)
    now = resume.machine()
    assert now["CPU cores"] == 97
    assert go_on(run, facts={"machine": now})[0] == 4
    assert "before, 97 now): the run goes on, but not bit for bit" in caplog.text
