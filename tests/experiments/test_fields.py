"""Every field of a config is known and has the type of its default, however it was set."""

import importlib.util
import math
import pathlib

import pytest

from experiments.configs import common, paper_7b, quickstart, ranges
from experiments.running import command, dotted, fields

FOLDER = pathlib.Path(common.__file__).parent


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


def shipped():
    """Yields every config of experiments/configs, with each of its arguments."""
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem not in ("__init__", "common", "ranges"):
            spec = importlib.util.spec_from_file_location("config", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield module.get_config()
    yield from map(paper_7b.get_config, ("authors", *paper_7b.MESHES))


def test_every_shipped_config_passes():
    for config in shipped():
        fields.check(config)


def numbers(config):
    for name, value in dotted.flat(config.to_dict()):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield name


def test_every_number_has_a_range_and_every_range_a_number():
    with_extra = common.base()
    with_extra.backends.judge.extra.top_k = 1
    with_extra.trace.steps = with_extra.profile.steps = (1,)
    names = {n for c in (*shipped(), with_extra) for n in numbers(c)}
    assert not [name for name in names if ranges.of(name) is None]
    used = {id(ranges.of(name)) for name in names}
    assert not [pattern for pattern, r in ranges.RANGES.items() if id(r) not in used]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", -1, "must be 0 or more; 0 only evaluates the held-out questions."),
        ("rollout.temperature", 1e-5, "must be 0 or 0.0001 or more; the paper samples at 0.5."),
        ("rollout.empty_steps", -1, "must be 0 or more"),
        ("checkpoint.keep", 0, "must be 1 or more; 1 keeps only the newest."),
        ("checkpoint.every", 0, "must be 1 or more; a number above steps saves only at the end."),
        ("rollout.group", 1, "must be 2 or more; advantages compare a question's rollouts: use 8"),
        ("loss.kl_coef", -1e-3, "must be 0 or more; 0 leaves the term out."),
        ("loss.kl_coef", math.nan, "must be finite; 0 leaves the term out."),
        ("optim.lr", math.inf, "must be finite"),
        ("loss.clip_low", 0.0, "must be above 0 and at most 1; 0.2 is usual"),
        ("loss.dual_clip", 1.0, "must be 0 or above 1; 3 is usual, 0 turns it off."),
        ("mesh.fsdp", 0, "must be -1 or 1 or more; -1 takes all remaining devices."),
        ("mesh.tensor", -2, "must be -1 or 1 or more"),
        ("seed", -1, "must be 0 or more and at most 4,294,967,295"),
        ("rollout.min_valid_share", 1.1, "must be 0 or more and at most 1"),
        ("optim.b2", 1.0, "must be 0 or more and below 1; 0.9 and 0.999 are usual."),
        ("batch.rows", (1, 0), "must be 1 or more"),
        ("tools.python_coder.seconds", 0.0, "must be above 0"),
        ("backends.judge.limits.concurrency", 0, "must be 1 or more"),
        ("backends.judge.seconds", -1.0, "must be above 0"),
        ("backends.judge.seconds", 1e12, "must be above 0 and at most 1,000,000; "),
        ("rollout.group", 2**63, "must be at most 16,777,216; advantages compare"),
        ("engine.slots", 10**20, "must be at most 16,777,216; the default is a good start."),
        ("engine.cache_tokens", 2**31, "must be at most 2,147,483,647; 0 sizes the cache for the"),
        ("tools.workers", 2**63, "must be at most 2,147,483,647; 16 calls run at once by default."),
        ("batch.rows", (1, 2**40), "must be at most 16,777,216; experiments.plan says what fits"),
        ("warmstart.batch", 10**400, "must be at most 2,147,483,647"),
    ],
)
def test_a_number_outside_its_range_is_refused_with_what_to_use(name, value, message):
    c = common.base()
    c.update_from_flattened_dict({name: value})
    with pytest.raises(command.ConfigError) as caught:
        fields.check(c)
    assert f"{name}={value} {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss.dual_clip", 0.0), ("loss.kl_coef", 0.0), ("optim.lr", 0.0), ("eval.every", 0)]
    + [("mesh.fsdp", -1), ("mesh.fsdp", 1), ("rollout.infra_retries", 0), ("seed", 2**32 - 1)]
    + [("checkpoint.keep", 1), ("rollout.group", 2), ("tools.web_search.per_second", 0.0)]
    + [("steps", 0), ("steps", 10**400), ("eval.temperature", 0.0), ("rollout.temperature", 1e-4)],
)
def test_the_ends_of_a_range_are_fine(name, value):
    c = common.base()
    c.update_from_flattened_dict({name: value})
    fields.check(c)


def test_what_a_server_is_sent_may_be_any_finite_number():
    c = common.base()
    c.backends.judge.extra.update(top_k=-1, bias=-2.5)
    fields.check(c)
    c.backends.judge.extra.bias = -math.inf
    with pytest.raises(command.ConfigError, match="judge.extra.bias=-inf must be finite; JSON"):
        fields.check(c)


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
