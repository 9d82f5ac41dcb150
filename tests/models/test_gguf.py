"""GGUF files, written by the package `gguf`, against transformers' reading of them.

Dimensions:
  B rows    T tokens in a row    V vocabulary
"""

import concurrent.futures
import dataclasses
import json
import os
import random
import shutil
import struct

import jax
import numpy as np
import pytest
import tokenizers
import transformers

from experiments.diagnosis import models
from models import decoder, hub, huggingface, model_card, splits, tokenizer
from models.gguf import folder as gguf_folder
from models.gguf import header, tensors, vocabulary
from tests.models import conftest

gguf = pytest.importorskip("gguf")
Type = gguf.GGMLQuantizationType

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "The capital of France",
    "12 345 6789",
    "it's\n\n x = 1\r\n",
    "café ½ ٣ 東京 🙂",
    "<|im_end|>a",
]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(cut):
    """A tokenizer of the library with merges, cut as llama.cpp calls it."""
    steps, normalizer, whole_words = vocabulary.CUTS[cut]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    parts = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    parts |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    parts |= {"normalizer": normalizer, "decoder": splits.byte_level()}
    made = tokenizers.Tokenizer.from_str(json.dumps(parts))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=alphabet,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    made.train_from_iterator([text * 3 for text in TEXTS] * 20, trainer)
    parts = json.loads(made.to_str())
    parts["model"]["ignore_merges"] = whole_words
    return tokenizers.Tokenizer.from_str(json.dumps(parts))


def tokenizer_values(made, cut):
    """{name: value} of a GGUF file for a tokenizer of the library."""
    names = [made.id_to_token(index) for index in range(made.get_vocab_size())]
    merges = json.loads(made.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [3 if name in SPECIAL else 1 for name in names],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def model_values(config, arch):
    values = {
        "context_length": 128,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": 1e6,
    }
    if arch == "qwen3":
        values |= {"attention.key_length": 16, "attention.value_length": 16}
    if arch == "llama":
        values |= {"rope.dimension_count": 8, "vocab_size": config.vocab_size}
    return {f"{arch}.{key}": value for key, value in values.items()}


def reordered(weight, heads):
    """Rows in llama.cpp's order, as its converter makes it."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def model_tensors(model, arch, kind):
    """[(name, array, type)] of a transformers model."""
    theirs = {theirs: own for own, theirs in tensors.NAMES.items()}
    found, config = [], model.config
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = value.numpy()
        body, _, ending = name.rpartition(".")
        if "layers" in body:
            _, _, layer, body = body.split(".", 3)
        own = theirs[body]
        if arch == "llama" and own in ("attn_q", "attn_k"):
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            value = reordered(value, heads[own])
        own = f"blk.{layer}.{own}" if "layers" in name else own
        found.append((f"{own}.{ending}", value, kind if value.ndim > 1 else Type.F32))
    return found


def write(path, arch, values, listed, **settings):
    """Writes a GGUF file: values of its header, [(name, array, type)] of its tensors."""
    writer = gguf.GGUFWriter(path, arch, **settings)
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool}
            add.get(type(value), writer.add_uint32)(key, value)
    for name, array, kind in listed:
        data = gguf.quants.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclasses.dataclass(frozen=True)
class Made:
    """A GGUF file and what it was made of."""

    path: object
    arch: str
    values: dict
    listed: list
    tokenizer: tokenizers.Tokenizer
    model: object

    def again(self, path, *, without=(), more=(), **changes):
        """Writes the file with changes; returns its path."""
        values = {key: v for key, v in (self.values | changes).items() if v is not None}
        listed = [each for each in self.listed if each[0] not in without]
        path.parent.mkdir(exist_ok=True)
        write(path, self.arch, values, [*listed, *more])
        return path


FORMS = {  # architecture -> cut of its tokenizer, type of its matrices
    "llama": ("smollm", Type.Q4_1),
    "qwen2": ("qwen2", Type.Q8_0),
    "qwen3": ("llama-bpe", Type.F32),
}
SHAPES = {"llama": "llama", "qwen2": "untied", "qwen3": "qwen3"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(architecture) -> Made, once."""
    import torch

    done = {}

    def make(arch):
        if arch not in done:
            cut, kind = FORMS[arch]
            words = byte_tokenizer(cut)
            sizes = conftest.COMMON | conftest.SHAPES[SHAPES[arch]]
            sizes = {"model_type": "qwen2"} | sizes | {"num_hidden_layers": 2}
            sizes |= {"intermediate_size": 64, "vocab_size": words.get_vocab_size()}
            config = transformers.AutoConfig.for_model(**sizes)
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config).eval()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    center = 1.0 if "norm" in name else 0.0
                    parameter.copy_(center + 0.3 * torch.randn(parameter.shape))
            values = model_values(config, arch) | tokenizer_values(words, cut)
            values |= {"general.name": "tiny", "general.license": "apache-2.0"}
            listed = model_tensors(model, arch, kind)
            path = tmp_path_factory.mktemp(arch) / "tiny.gguf"
            write(path, arch, values, listed)
            done[arch] = Made(path, arch, values, listed, words, model)
        return done[arch]

    return make


def our_logits(model, token_BT):
    with jax.default_matmul_precision("highest"):
        until_BT = np.full_like(token_BT, token_BT.shape[1])
        forward = jax.jit(lambda m, t, u: m.logits(m.hidden(t, u)))
        return np.asarray(forward(model, token_BT, until_BT))


# ---------------------------------------------------------------- models


@pytest.mark.slow
@pytest.mark.parametrize("arch", FORMS)
def test_logits_and_texts_equal_transformers(made, tmp_path, arch):
    """Also after an export, which is of the same family."""
    import torch

    file = made(arch)
    theirs = file.model
    if arch != "qwen3":  # of which transformers does not read the size of a head
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            file.path.parent, gguf_file=file.path.name, dtype=torch.float32
        )
    token_BT = np.random.default_rng(0).integers(0, 256, (2, 24)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(token_BT)).logits.numpy()
    model = huggingface.load(file.path)
    gap = lambda found: np.abs(found - expected).max() / np.abs(expected).max()
    assert gap(our_logits(model, token_BT)) < 1e-4
    assert model.config.rms_norm_eps == pytest.approx(1e-2) and model.config.model_type == arch
    words = tokenizer.Tokenizer.load(file.path)
    huggingface.save(tmp_path, model, base_folder=file.path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.model_type == arch
    with torch.no_grad():
        assert gap(again(torch.tensor(token_BT)).logits.numpy()) < 1e-4
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), {}
    for text in TEXTS:
        ours = file.tokenizer.encode(text, add_special_tokens=False).ids
        assert words.encode(text) == theirs.encode(text, add_special_tokens=False) == ours, text
        messages = [{"role": "user", "content": text.replace("<|im_end|>", "")}]
        chat = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert words.chat(messages) == chat
    assert words.eos_ids == (2,) and words.pad_id == 0
    assert (model_card.of_base(file.path)) == {"license": "apache-2.0"}


def test_rows_are_put_back_and_every_type_is_read_in_parts(tmp_path):
    rng, listed = np.random.default_rng(0), []
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    for kind in tensors.TYPES:
        _, nbytes = gguf.GGML_QUANT_SIZES[Type[kind]]
        block = rng.integers(0, 100, (24, 3 * nbytes)).astype(np.uint8)  # no scale is inf or nan
        columns = 3 * gguf.GGML_QUANT_SIZES[Type[kind]][0]
        if kind in tensors.STORED:
            block = rng.normal(size=(24, columns)).astype(tensors.STORED[kind]).view(np.uint8)
        writer.add_tensor(kind, block, raw_dtype=Type[kind])
        listed.append((kind, gguf.quants.dequantize(block, Type[kind])))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = str(tmp_path / "all.gguf")
    heads = dict.fromkeys(("Q4_K", "F16"), 3)
    with (
        concurrent.futures.ThreadPoolExecutor(2) as pool,
        tensors.File(path, header.read(path), heads=heads) as file,
    ):
        for name, whole in listed:
            if name in heads:  # the inverse of the converter's order
                whole = whole.reshape(3, 4, 2, -1).swapaxes(1, 2).reshape(whole.shape)
            pending = file.read_rows(name, 5, 18, pool=pool, padded_to=16)
            found = pending.result().astype(np.float32)
            assert np.array_equal(found[:13], whole[5:18]) and not found[13:].any(), name
            assert file.entries[name].shape == whole.shape
        for name, rows in (("Q4_K", (9, 15)), ("F32", (0, 24))):  # cut while it is open
            os.truncate(path, file.entries[name].start + 8)
            with pytest.raises(OSError, match="all.gguf ended at byte .* while it was read"):
                file.read_rows(name, *rows, pool=pool).result()
    assert set(dict(listed)) == set(tensors.TYPES)


def test_frequencies_of_llama_3_are_recognised(made, tmp_path):
    file, scaling = made("llama"), decoder.Llama3(32.0, 1.0, 4.0, 8192)
    config = dataclasses.replace(huggingface.model_config(file.path), rope_theta=5e5)
    plain_H, _ = decoder.rope_frequencies(config)
    config = dataclasses.replace(config, rope_scaling=scaling)
    slow_H, _ = decoder.rope_frequencies(config)
    factors = (plain_H / slow_H).astype(np.float32)
    assert 1 < factors[-1] < 33 and factors[0] == 1

    def read(name, factors):
        more = [(tensors.ROPE, factors, Type.F32)]
        path = file.again(tmp_path / name, more=more, **{"llama.rope.freq_base": 5e5})
        return huggingface.model_config(path)

    found = read("right.gguf", factors)
    assert found == dataclasses.replace(config, rope_theta=5e5)
    with pytest.raises(ValueError, match="rope_freqs.weight is not that of Llama 3"):
        read("wrong.gguf", factors[::-1].copy())


def test_yarn_is_that_of_its_values(made, tmp_path):
    """As in the config.json of Qwen2.5 models with a longer context; llama.cpp names no more."""
    settings = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
    values = {f"qwen2.rope.scaling.{name}": value for name, value in settings.items()}
    path = made("qwen2").again(tmp_path / "yarn.gguf", **values)
    assert huggingface.model_config(path).rope_scaling == decoder.Yarn(4.0, 32)
    more = [(tensors.ROPE, np.ones(4, np.float32), Type.F32)]
    path = made("qwen2").again(tmp_path / "both.gguf", more=more, **values)
    with pytest.raises(ValueError, match="rope_freqs.weight beside yarn"):
        huggingface.model_config(path)


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("first", [None, False, True])
def test_a_token_begins_each_text_where_the_file_says_so(made, tmp_path, first):
    file = made("llama")
    path = file.again(tmp_path / "tiny.gguf", **{"tokenizer.ggml.add_bos_token": first})
    tokenizer.copy_files(path, tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    ids = file.tokenizer.encode(TEXTS[0], add_special_tokens=False).ids
    assert theirs.encode(TEXTS[0]) == ([1] if first else []) + ids
    assert theirs.encode(TEXTS[0], add_special_tokens=False) == ids
    assert tokenizer.Tokenizer.load(path).encode(TEXTS[0]) == ids  # templates write it themselves


def test_a_command_takes_the_file(made):
    found = {row.what: row for row in models.folder(str(made("qwen2").path))}
    assert {row.state for row in found.values()} == {"ok"}
    assert "fit config.json" in found["weights"].found


def test_a_folder_or_parts_of_a_file_are_the_same_model(made, tmp_path):
    file = made("qwen2")
    path = tmp_path / "parts" / "tiny.gguf"
    path.parent.mkdir()
    write(path, "qwen2", file.values, file.listed, split_max_tensors=11)
    assert len(list(path.parent.glob("tiny-0000?-of-0000?.gguf"))) == 3
    whole = huggingface.load(file.path)
    for place in (file.path.parent, path.parent, path.parent / "tiny-00001-of-00003.gguf"):
        found = huggingface.load(place)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            assert np.array_equal(ours, theirs)
    assert hub.locate("parts/tiny-00001-of-00003.gguf", root=tmp_path).endswith("00003.gguf")
    (path.parent / "tiny-00002-of-00003.gguf").unlink()
    with pytest.raises(FileNotFoundError, match="tiny-00002-of-00003.gguf is absent"):
        huggingface.read_config(path.parent)
    shutil.copy(file.path, path.parent / "other.gguf")
    with pytest.raises(ValueError, match=r"holds 2 GGUF models: other.gguf, tiny\. Name the file"):
        huggingface.read_config(path.parent)
    with pytest.raises(ValueError, match="remote GGUF file. Copy it"):
        huggingface.read_config("memory://models/tiny.gguf")


def test_a_tokenizer_beside_the_file_is_taken(made, tmp_path):
    file, other = made("qwen2"), byte_tokenizer("llama-bpe")
    path = file.again(tmp_path / "tiny.gguf", **{"tokenizer.ggml.pre": "chatglm-bpe"})
    with pytest.raises(ValueError, match="cut by 'chatglm-bpe'.*Put the model's tokenizer.json"):
        tokenizer.Tokenizer.load(path)
    other.save(str(tmp_path / "tokenizer.json"))
    words = tokenizer.Tokenizer.load(tmp_path)
    assert words.encode(TEXTS[1]) == other.encode(TEXTS[1]).ids
    assert "tokenizer.json" in gguf_folder.opened(tmp_path).names()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.expert_count": 8}, "llama.expert_count=8"),
        ({"llama.attention.sliding_window": 512}, "sliding_window=512"),
        ({"llama.rope.scaling.type": "linear"}, "rope.scaling.type='linear'"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count=4"),
        ({"llama.attention.value_length": 16}, "value_length=16"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.attention.head_count": [4, 2]}, "head_count=.4, 2. .supported: a number"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer of kind 'llama'"),
        ({"llama.attention.causal": False}, "attention.causal=False"),
        ({"llama.rope.scaling.factor": 4.0}, "rope.scaling.type='linear'"),  # llama.cpp's default
        ({"tokenizer.ggml.merges": ["a b c"]}, "merges do not fit"),
    ],
)
def test_what_would_not_be_reproduced_is_refused(made, tmp_path, changes, message):
    path = made("llama").again(tmp_path / "changed.gguf", **changes)
    with pytest.raises(ValueError, match=message):
        huggingface.read_config(path)


def test_other_architectures_types_and_tensors_are_refused(made, tmp_path):
    file = made("llama")
    path = dataclasses.replace(file, arch="gemma").again(tmp_path / "gemma.gguf")
    with pytest.raises(ValueError, match="architecture 'gemma'; read are llama, qwen2, qwen3"):
        huggingface.read_config(path)
    name, value, _ = file.listed[1]
    path = file.again(tmp_path / "few.gguf", without=[name])
    with pytest.raises(ValueError, match=f"missing: {tensors.name_of(name)}"):
        huggingface.load(path)
    writer = gguf.GGUFWriter(tmp_path / "kind.gguf", "llama")
    writer.add_tensor("x.weight", np.zeros((2, 18), np.uint8), raw_dtype=Type.IQ4_NL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = str(tmp_path / "kind.gguf")
    with pytest.raises(ValueError, match="x.weight is of type IQ4_NL, which is not read"):
        tensors.File(path, header.read(path), heads={})


def test_lists_of_a_vocabulary_fit_each_other():
    values = tokenizer_values(byte_tokenizer("qwen2"), "qwen2")
    assert vocabulary.files(values, "a.gguf")
    count = len(values["tokenizer.ggml.tokens"])
    for key, wrong in (
        ("merges", [1, 2]),
        ("tokens", ["a"] * count),
        ("tokens", [1] * count),
        ("token_type", [9] * count),
        ("token_type", ["x"] * count),
    ):
        with pytest.raises(ValueError, match="^a.gguf: its tokens, their types and merges do not"):
            vocabulary.files(values | {f"tokenizer.ggml.{key}": wrong}, "a.gguf")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": (4, 0), "b": (4, 8)}, "its tensors overlap"),
        ({"a": (4, 56)}, "a is not whole"),
        (
            {"blk.0.attn_q.weight": (2, 0), "model.layers.0.self_attn.q_proj.weight": (2, 8)},
            "q_proj.weight is there twice",
        ),
    ],
)
def test_tensors_do_not_share_bytes_or_names(tmp_path, found, message):
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(64))
    found = {name: header.Tensor((size,), Type.F32, start) for name, (size, start) in found.items()}
    with pytest.raises(ValueError, match=message):
        tensors.File(path, header.Header({}, found, 64), heads={})


def test_a_header_is_bounded_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MOST_ITEMS", 5)
    monkeypatch.setattr(header, "MOST_BYTES", 100)
    path = tmp_path / "a.gguf"

    def read(*values):
        """values: (name, number of bytes in its list)."""
        content = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
        for name, count in values:
            content += struct.pack("<Q", len(name)) + name.encode()
            content += struct.pack("<IIQ", 9, 0, count) + bytes(count)
        path.write_bytes(content)
        return header.read(path).values

    assert read(("a", 3), ("bc", 2)) == {"a": [0] * 3, "bc": [0] * 2}
    with pytest.raises(ValueError, match="its lists have over 5 items"):
        read(("a", 3), ("b", 3))
    with pytest.raises(ValueError, match="its header has over 100 bytes"):
        read(("a" * 40, 1), ("b" * 20, 1))
    with pytest.raises(ValueError, match="its value a is there twice"):
        read(("a", 1), ("a", 2))


def test_frequencies_are_bounded_and_parts_counted(made, tmp_path):
    file = made("llama")
    for changes, kind, message in (
        ({"llama.attention.key_length": 2**31}, Type.F32, "is not that of a head"),
        ({}, Type.F16, "rope_freqs.weight is damaged"),
    ):
        more = [(tensors.ROPE, np.ones(4, np.float32), kind)]
        path = file.again(tmp_path / f"{kind}.gguf", more=more, **changes)
        with pytest.raises(ValueError, match=message):
            huggingface.read_config(path)
    for name in ("a-00001-of-00000.gguf", "a-00003-of-00002.gguf"):
        shutil.copy(file.path, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is no part of . files"):
            huggingface.read_config(tmp_path / name)


def test_damaged_files_give_one_error(made, tmp_path):
    whole, draw = made("qwen3").path.read_bytes(), random.Random(0)
    path, errors = tmp_path / "damaged.gguf", 0
    header_bytes = min(tensor.start for tensor in header.read(made("qwen3").path).tensors.values())
    for round in range(90):
        content = bytearray(whole)
        if round % 3:
            for _ in range(round % 5 + 1):
                content[draw.randrange(header_bytes)] = draw.randrange(256)
        else:
            content = content[: draw.randrange(len(whole) - 1)]
        path.write_bytes(content)
        header._read.cache_clear()
        try:
            gguf_folder.opened(path).open_weights()
            tokenizer.Tokenizer.load(path)
        except ValueError as error:
            errors += 1
            assert str(path) in str(error)
    assert errors > 50
    path.write_bytes(b"GG")
    with pytest.raises(ValueError, match="is no GGUF file"):
        huggingface.read_config(path)


def test_without_the_package_the_extra_is_named(made, monkeypatch):
    monkeypatch.setattr(tensors, "importlib", type("Absent", (), {"import_module": absent}))
    with pytest.raises(ImportError, match=r"pip install 'flow-grpo-jax\[gguf\]'"):
        huggingface.read_config(made("llama").path)


def absent(name):
    raise ImportError(f"No module named {name!r}")
