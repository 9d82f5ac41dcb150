"""Model folders of others: numbers, headers and tokenizers over a bound are refused by file."""

import json
import pathlib
import random
import re
import shutil
import time

import numpy as np
import pytest
import safetensors.numpy

from models import folders, huggingface, safetensors_file, tokenizer, tokenizer_file

MODEL = pathlib.Path(__file__).parents[2] / "experiments/data/quickstart/model"
SECONDS = 5.0  # of processor time; without bounds most of these never end


@pytest.fixture
def folder(tmp_path):
    """The shipped model without its weights."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return pathlib.Path(shutil.copytree(MODEL, tmp_path / "model", ignore=ignore))


def edit(folder, name, change):
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


# ---- config.json -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", 2.0),
        ("num_hidden_layers", True),
        ("vocab_size", 2**40),
        ("num_key_value_heads", 0),
        ("hidden_size", -128),
        ("hidden_size", "128"),
        ("max_position_embeddings", 10**18),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_theta", [1e6]),
        ("rope_scaling", "yarn"),
        ("rope_scaling", {"type": "yarn", "factor": 1e300}),
        ("rope_parameters", {"rope_type": "yarn", "original_max_position_embeddings": "x"}),
        ("tie_word_embeddings", 1),
        ("layer_types", [["full_attention"]]),
    ],
)
def test_numbers_that_no_model_has_are_refused_before_anything_is_built(folder, name, value):
    edit(folder, "config.json", lambda values: values.update({name: value}))
    with pytest.raises(ValueError, match=r"model/config\.json is no model's: \w+="):
        huggingface.load(folder)


def test_what_does_not_fit_is_listed_in_part(folder):
    edit(folder, "config.json", lambda values: values.update(num_hidden_layers=1_000))
    safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)missing: .*\n  and 11,?\d+ more$"):
        huggingface.load(folder)


@pytest.mark.parametrize("index", [{"weight_map": ["x"]}, {"weight_map": {"x": 1}}, {}])
def test_an_index_that_names_no_files_is_damaged(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model/model\.safetensors\.index\.json is damaged"):
        huggingface.load(folder)


# ---- safetensors -------------------------------------------------------------------------------


def entry(start, stop, *, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 8), "b": entry(0, 8)}, "overlap or leave gaps"),
        ({"a": entry(0, 8), "b": entry(16, 24)}, "overlap or leave gaps"),
        ({"a": entry(0, 8, shape=[-1, -2])}, "a .* contradicts itself"),
        ({"a": entry(0, 8, shape=[1] * 50 + [2])}, "a .* contradicts itself"),
        ({"a": entry(8, 0, dtype="?")}, "a .* contradicts itself"),
        ({"a": entry(0, "8")}, "a .* contradicts itself"),
        ({"a": {"dtype": "F32"}}, "a .* contradicts itself"),
        ({"a": 1}, "a 1 contradicts itself"),
        ({"a": [[[]]] * 3}, "contradicts itself"),
        ([1], "the header is damaged: it holds a list"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, message):
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    with pytest.raises(ValueError, match=rf"/x: .*{message}"):
        safetensors_file.File(folders.Folder(tmp_path), "x")


# ---- tokenizers --------------------------------------------------------------------------------


def pattern(values, regex):
    values["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": regex}


def replacing(values, times, content):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    values["normalizer"] = {"type": "Sequence", "normalizers": [step] * times}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: replacing(v, 1, "b" * 65), "normalizer may replace a character by 65"),
        (lambda v: replacing(v, 30, "aa"), "normalizer may replace a character by 1073741824"),
        (
            lambda v: v.update(normalizer={"type": "Prepend", "prepend": "b" * 65}),
            "normalizer may replace a character by 65",
        ),
        (
            lambda v: v["model"].update(end_of_word_suffix="b" * 65),
            "end_of_word_suffix has more than 64 characters",
        ),
        (lambda v: pattern(v, "a" * 20_001), "pre_tokenizer has a pattern of 20,001 characters"),
        (lambda v: pattern(v, "("), "cannot be used: .*unmatched parenthesis"),
        (lambda v: v["model"]["vocab"].update(zz=2**31), "has the token id 2147483648; ids go"),
        (
            lambda v: v.update(added_tokens=v["added_tokens"][:1] * 32_769),
            "tokenizer.json has 32,769 added tokens; the most are 32,768",
        ),
        (lambda v: v.update(model=[]), "cannot be used"),
        (lambda v: v.update(decoder=json.loads("[" * 100 + "]" * 100)), "nested too deeply"),
    ],
)
def test_tokenizers_over_a_bound_are_refused(folder, change, message):
    edit(folder, "tokenizer.json", change)
    with pytest.raises(ValueError, match=rf"/model.*{message}"):
        tokenizer.Tokenizer.load(folder)


def test_growth_is_that_of_all_replacements(folder):
    edit(folder, "tokenizer.json", lambda values: replacing(values, 6, "aa"))
    tokenizer_file.check(folder / "tokenizer.json")


def test_a_pattern_that_gives_up_is_an_error_of_the_text(folder):
    edit(folder, "tokenizer.json", lambda values: pattern(values, "(a+)+$"))
    words = tokenizer.Tokenizer.load(folder)
    assert words.decode(words.encode("aaab")) == "aaab"
    for encode in (words.encode, lambda text: words._encode_plain(text, None)):
        with pytest.raises(ValueError, match="cannot encode a text: .*retry-limit-in-match"):
            encode("a" * 40 + "b")


@pytest.mark.parametrize("ends", [-1, "x", 2**40, [1, None], {"a": 1}, 1.5, True])
def test_ids_that_are_none_are_refused(folder, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(ValueError, match=r"generation_config\.json has the token id"):
        tokenizer.Tokenizer.load(folder)


def test_a_template_that_does_not_end_ends_the_load(folder):
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    edit(folder, "tokenizer_config.json", lambda values: values.update(chat_template=loop))
    with pytest.raises(ValueError, match="template of .*/model is not usable: it takes more than"):
        tokenizer.Tokenizer.load(folder)


# ---- anything ----------------------------------------------------------------------------------

NUMBERS = ("-1", "1000000", "99999999999999999999", "1e400", "null", '"x"', "[]", "{}", "0.5")


def mutated(content, draw):
    """Returns a file's bytes after one accident or attack."""
    head = min(len(content), draw.choice((300, 5_000, len(content))))
    at = draw.randrange(head)
    flipped = bytes([content[at] ^ 1 << draw.randrange(8)])
    changes = {
        "cut": lambda: content[:at],
        "bit": lambda: content[:at] + flipped + content[at + 1 :],
        "nest": lambda: content[:at] + b"[" * draw.choice((99, 10**5)) + content[at:],
        "digits": lambda: content[:at] + b"9" * 5_000 + content[at:],
        "twice": lambda: content[:at] + content[at // 2 :],
        "byte": lambda: content[:at] + draw.choice((b"\0", b"\xff", b"{", b'"')) + content[at:],
    }
    numbers = list(re.finditer(rb"(?<=[:\[,])\s*-?\d[\d.e-]*", content[:head]))
    if numbers:
        found = draw.choice(numbers)
        number = draw.choice(NUMBERS).encode()
        changes["number"] = lambda: content[: found.start()] + number + content[found.end() :]
        changes["other number"] = changes["number"]
    return changes[draw.choice(sorted(changes))]()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damage_of_any_kind_is_one_error_that_names_the_file(folder, name):
    content = (folder / name).read_bytes()
    refused = 0
    for seed in range(25):
        (folder / name).write_bytes(mutated(content, random.Random(seed)))
        start = time.process_time()
        try:
            huggingface.model_config(folder)
            words = tokenizer.Tokenizer.load(folder)
            words.check_conversation(("system", "user"))
            words.decode(words.chat([{"role": "user", "content": "1234 " + "a" * 40}]))
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error), seed
            refused += 1
        assert time.process_time() - start < SECONDS, seed
    assert refused > 5
