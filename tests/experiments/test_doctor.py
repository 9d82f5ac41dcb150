"""The doctor: rows of independent checks, exit codes, no keys; what counts as broken."""

import dataclasses
import json
import types

import jax.numpy as jnp
import pytest

from experiments import doctor
from experiments.configs import quickstart
from experiments.diagnosis import kernels, machine, models, rows, sampler, surroundings
from experiments.running import places, sessions
from models import decoder, huggingface
from models.tokenizer import train_byte_bpe
from tests.models import configs
from tools.sandbox import selftest

SECRET = "sk-do-not-show-me"
SLOW = ("speed", "sampler against trainer", "attention of rows", "attention of the engine")


class Flags(types.SimpleNamespace):
    def __getitem__(self, name):
        return types.SimpleNamespace(present=False)


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function: runs the command in this process; (exit code, standard output)."""
    verbosity = doctor.logging.get_verbosity()

    def run(*, skip=SLOW, **given):
        checks = {name: check for name, check in doctor.CHECKS.items() if name not in skip}
        monkeypatch.setattr(doctor, "CHECKS", checks)
        monkeypatch.setattr(doctor.flags, "FLAGS", Flags(**{"json": True, "model": ""} | given))
        try:
            doctor.main()
        except SystemExit as end:
            return end.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    yield run
    doctor.logging.set_verbosity(verbosity)


def test_a_machine_on_which_all_is_well(run, monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", SECRET)
    monkeypatch.setenv("JAX_SERVICE_KEY", SECRET)
    code, out = run()
    report = json.loads(out)
    found = {(n, row["what"]): row for n, each in report["checks"].items() for row in each}
    assert SECRET not in out
    assert found["keys", "SERPER_API_KEY"]["state"] == "ok"
    assert found["keys", "BRAVE_API_KEY"]["state"] in ("ok", "absent")
    assert found["devices", "jax"]["facts"]["platform"] == "cpu"
    assert found["versions", "packages"]["facts"]["numpy"]
    assert found["extras", "serve"]["state"] == "ok"
    assert found["search", "index file"]["state"] == "ok"
    assert found["models", "shipped weights"]["found"].endswith("fit config.json; F32")
    assert set(selftest.LAYERS) <= {what for check, what in found if check == "sandbox"}
    assert all(row["state"] in rows.STATES for row in found.values())
    assert (code, report["ok"]) == (0, True)


@pytest.mark.parametrize("as_json", [True, False])
def test_what_is_broken_says_so_and_the_rest_goes_on(run, monkeypatch, as_json):
    def weak(box):
        layers = dict.fromkeys(selftest.LAYERS, selftest.VERIFIED) | {"landlock": "missing: old"}
        return {"level": "minimal", "layers": layers}

    def no_index(*_):
        raise OSError("no such module: fts5")

    failing = lambda *_: "o of whole rows are off by 1.0e+00 of their size; 0.03 is allowed"
    monkeypatch.setattr(selftest, "examine", weak)
    monkeypatch.setattr("tools.text_index.build", no_index)
    monkeypatch.setattr("models.attention.kernels.failure", failing)
    monkeypatch.setattr(machine, "limits", lambda: (jnp.dtype(jnp.float32), 1e12, 1e12))
    skip = ("speed", "sampler against trainer", "attention of the engine", "models", "versions")
    code, out = run(skip=skip, json=as_json, model="/no/such/folder")
    assert code == 1
    assert "landlock (missing: old): a program could" in " ".join(out.split())
    if not as_json:
        assert "broken  landlock               missing: old" in out
        assert out.rstrip().splitlines()[-1].startswith("broken: sandbox: level; sandbox: landlock")
        return
    report = json.loads(out)
    broken = {
        check: [row["what"] for row in each if row["state"] == "broken"]
        for check, each in report["checks"].items()
    }
    assert {name: what for name, what in broken.items() if what} == {
        "sandbox": ["level", "landlock"],
        "search": ["check"],
        "attention of rows": ["0.5b blockwise"],
        "model /no/such/folder": ["config"],
    }
    assert report["checks"]["search"][0]["found"] == "OSError: no such module: fts5"
    assert not report["ok"] and report["checks"]["devices"][0]["state"] == "ok"


def test_a_check_that_raises_keeps_the_rows_before_it():
    def half():
        yield rows.Row("a", rows.OK, "fine")
        raise RuntimeError("device lost")

    absent = rows.later("no_such_module.check")
    found = rows.run({"x": half, "y": absent, "z": lambda: [rows.Row("b", rows.OK, "")]})
    assert [row.state for row in found["x"]] == ["ok", "broken"]
    assert found["x"][1].found == "RuntimeError: device lost"
    assert "no_such_module is missing" in found["y"][0].found and found["y"][0].todo
    assert rows.is_broken(found) and not rows.is_broken({"z": found["z"]})


def test_lines_of_a_row_stand_under_each_other():
    text = rows.lines(rows.Row("kernel", rows.NOTE, "first\n  second", "do that"))
    assert text == [
        "  note    kernel                 first",
        "                                 second",
        "                                 -> do that",
    ]
    long = rows.lines(rows.Row("kernel", rows.NOTE, "word " * 60))
    assert len(long) > 3 and max(map(len, long)) <= rows.WIDTH


def test_requirements_that_are_not_met(monkeypatch):
    needs = {
        machine.DISTRIBUTION: ["here>=2", 'there[fast]; extra == "big"', 'old; python_version<"3"'],
        "there": ["base", 'quick>=3; extra == "fast"'],
    }
    versions = {"here": "1.9", "there": "1.0", "quick": "2.5"}
    monkeypatch.setattr(machine, "_version", lambda name: versions.get(name, ""))
    monkeypatch.setattr(machine.importlib.metadata, "requires", needs.get)
    problems = lambda extra: [
        machine._problem(r) for r in machine._requirements(machine.DISTRIBUTION, extra)
    ]
    assert problems("") == ["here is 1.9, not >=2"]
    assert problems("big") == ["quick is 2.5, not >=3"]
    versions["quick"] = "3.0"
    assert problems("big") == [""]


def test_a_checkout_that_is_not_installed_and_a_jax_without_devices(monkeypatch):
    def absent(name):
        raise machine.importlib.metadata.PackageNotFoundError(name)

    def none():
        raise AssertionError

    monkeypatch.setattr(machine.importlib.metadata, "metadata", absent)
    monkeypatch.setattr(machine.importlib.metadata, "requires", absent)
    monkeypatch.setattr(machine.jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\nsecond line")
    checks = (machine.versions, machine.extras, machine.devices, surroundings.keys)
    found = rows.run({check.__name__: check for check in checks})
    assert [row.what for row in found["versions"] if row.todo] == ["packages"]
    assert found["extras"] == [] and [row.state for row in found["devices"]] == ["broken"]
    assert "JAX_PLATFORMS: cuda" in found["devices"][0].found
    [key] = [row for row in found["keys"] if row.what == "OPENAI_API_KEY"]
    assert key.state == "note" and "a header cannot carry" in key.found
    assert SECRET not in str(found)


def test_devices_are_known_by_their_kind():
    memory = lambda kind: machine.chip(kind) and round(machine.chip(kind).memory / 2**30)
    assert [memory(kind) for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA H200")] == [79, 139]
    assert [memory(kind) for kind in ("TPU v5 lite", "TPU v5p", "TPU v6 lite")] == [16, 96, 31]
    assert memory("cpu") is None
    assert [machine.per_second(x, "B") for x in (3.21e12, 8e9)] == ["3.21 TB/s", "8 GB/s"]


def test_a_folder_whose_parts_are_of_two_models(tmp_path):
    """A tokenizer with more ids than the model, and weights of another width."""
    model = sessions.abstract_model(configs.small())
    zeros = machine.jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model)
    huggingface.save(tmp_path, zeros)
    train_byte_bpe(["some text"], vocab_size=400, chat_template=None, folder=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    found = {row.what: row for row in models.folder(str(tmp_path))}
    assert [row.state for row in found.values()] == ["ok", "broken", "ok"]
    assert "ids, the model 64: they are not of one model" in found["tokenizer"].found
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    found = {row.what: row for row in models.folder(str(tmp_path))}
    assert found["weights"].state == "broken" and "expected [64, 64]" in found["weights"].found
    (tmp_path / "config.json").write_text("{")
    assert [row.state for row in models.folder(str(tmp_path))] == ["broken"]


def test_names_in_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    path = places.resolve(quickstart.get_config().model.path)
    monkeypatch.setattr(models, "folder", lambda *_: ())
    assert [row.state for row in models.found()] == ["absent"]
    whole = tmp_path / "models--Qwen--Nano" / "snapshots"
    whole.mkdir(parents=True)
    (whole / "abc").symlink_to(path)
    (tmp_path / "models--Qwen--Half" / "snapshots").mkdir(parents=True)
    found = {row.what: row for row in models.found()}
    assert (found["Qwen/Nano"].state, found["Qwen/Nano"].found) == ("ok", "1.05M parameters")
    half = found["Qwen/Half"]
    assert half.state == "note" and "hf download Qwen/Half" in half.found


# ---- kernels and sampler -------------------------------------------------------------------------


def test_the_first_kernel_that_passes_is_used():
    failures = {"flash": "wrong", "cudnn": "", "blockwise": ""}
    work = lambda name: ({"cudnn": 8e9, "blockwise": 2e9}[name], 1.0)
    found = list(kernels._in_order("7b", failures, work, "forward at", "FLOP", 1e10))
    assert [row.state for row in found] == ["note", "ok", "ok"]
    assert found[1].found == "passes; forward at 8 GFLOP/s, 80% of the limit; used"
    assert found[2].found == "passes; forward at 2 GFLOP/s, 20% of the limit"


@pytest.mark.slow
def test_the_sampler_is_compared_with_the_trainer(monkeypatch):
    monkeypatch.setattr(sampler, "DIMS", configs.small(initializer_range=0.3))
    params, dtype = decoder.Decoder(machine.jax.random.key(0), sampler.DIMS), jnp.dtype(jnp.float32)
    layout, requests, together, alone = sampler.draw(params, dtype)
    honest = list(sampler.compare(params, dtype, layout, requests, together, alone))
    assert [row.state for row in honest] == ["ok"] * 3
    assert honest[0].found.startswith("log-probs of 96 tokens differ by ")
    shifted = [dataclasses.replace(each, logprobs=each.logprobs + 1e-3) for each in together]
    wrong = list(sampler.compare(params, dtype, layout, requests, shifted, alone))
    assert [row.state for row in wrong] == ["broken", "note", "ok"]
    assert wrong[0].facts["max"] == pytest.approx(1e-3, rel=0.1)


@pytest.mark.slow
def test_kernels_are_timed(monkeypatch):
    monkeypatch.setattr(machine, "limits", lambda: (jnp.dtype(jnp.float32), 1e12, 1e12))
    monkeypatch.setattr("models.attention.kernels.failure", lambda *_: "")
    monkeypatch.setattr(kernels, "ROWS", {kernels.CPU: (1, 128)})
    monkeypatch.setattr(kernels, "SEQUENCES", {kernels.CPU: (2, 128)})
    [row], [page] = kernels.rows(), kernels.pages()
    assert (row.what, page.what) == ("0.5b blockwise", "0.5b loop")
    assert row.facts["used"] and page.facts["used"]
    assert row.facts["share"] > 0 and page.facts["share"] > 0
