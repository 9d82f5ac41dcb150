"""Every field of a config is known and has the type of its default, however it was set."""

import pytest

from experiments.configs import common, quickstart
from experiments.running import command, fields


def changed(change):
    c = common.base()
    change(c)
    return c


def set_unlocked(c, section, name, value):
    with c.unlocked():
        c[section][name] = value


def test_the_defaults_and_the_quickstart_with_its_warm_start_are_fine():
    fields.check(common.base())
    fields.check(quickstart.get_config())
    fields.check(changed(lambda c: c.backends.judge.extra.update(top_k=1)))
    fields.check(changed(lambda c: c.rollout.update(temperature=1)))  # a whole number is a number
    fields.check(changed(lambda c: c.batch.update(rows=[2, 4])))  # becomes a tuple


def test_a_misspelt_field_is_refused_where_it_is_written():
    c = common.base()
    with pytest.raises(AttributeError, match="max_turn"):
        c.rollout.max_turn = 9
    with pytest.raises(KeyError, match="klcoef"):
        c.loss.update(klcoef=0.0)
    assert "max_turn" not in c.rollout and "klcoef" not in c.loss


@pytest.mark.parametrize(("name", "value"), [("group", 4.5), ("group", "4"), ("prompts", 1)])
def test_a_value_of_another_type_is_refused_where_it_is_written(name, value):
    with pytest.raises(TypeError, match=name):
        common.base().rollout[name] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: set_unlocked(c, "rollout", "max_turn", 9),
            "There is no field rollout.max_turn.",
        ),
        (lambda c: setattr(c.rollout, "group", True), "rollout.group=True must be a whole number"),
        (lambda c: setattr(c.rollout, "group", None), "rollout.group=None must be a whole number"),
        (lambda c: setattr(c.model, "path", None), "model.path=None must be a text"),
        (lambda c: setattr(c.optim, "lr", None), "optim.lr=None must be a number"),
        (lambda c: setattr(c.batch, "rows", (1, 0.5)), "each item a whole number"),
        (lambda c: setattr(c.batch, "rows", ("1",)), "each item a whole number"),
        (
            lambda c: setattr(c.tools, "mcp", (1,)),
            "tools.mcp=(1,) must be a tuple, each item a text",
        ),
        (lambda c: setattr(c, "eval", {"every": 1}), "The section 'eval' lacks questions, temp"),
        (lambda c: setattr(c, "rollout", None), "rollout=None must be a section with fields"),
    ],
)
def test_what_a_lock_lets_pass_is_refused_before_anything_starts(change, message):
    with pytest.raises(command.ConfigError) as refused:
        fields.check(changed(change))
    assert message in str(refused.value)
