"""Supervised updates: loss and gradient of transformers, whatever the layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from flow_grpo_jax import optimizer, supervised, update
from models import decoder, huggingface

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = decoder.Config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
ADAM = dict(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.0, clip_norm=1e9)
OPTIMIZER = optimizer.make(lr=1e-2, warmup_steps=0, moment_dtype="float32", **ADAM)
REPLIES = [  # two with one prompt, one with its beginning, one of a single token; one twice, and a
    # second reply of a conversation, in whose prompt the first is
    ((1, 2, 3, 4), (5, 6, 7)),
    ((1, 2, 3, 4), (5, 9)),
    ((1, 2), (8, 6, 7, 31)),
    ((11,), (0,)),
    ((1, 2, 3, 4), (5, 9)),
    ((1, 2, 3, 4, 5, 6, 7, 30), (2,)),
]
SHAPES = dict(row_lengths=(8, 16), rows=(2, 1), response_lengths=(4, 12))


@pytest.fixture(scope="module")
def model():
    shapes = jax.eval_shape(lambda: decoder.Decoder(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    """(loss, {name: gradient}) in float64: every reply alone, without padding or sharing."""
    folder = tmp_path_factory.mktemp("model")
    huggingface.save(folder, model)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    total, count = 0.0, 0
    for prompt, reply in REPLIES:
        tokens = torch.tensor([prompt + reply])
        logp_TV = torch.log_softmax(peer(tokens).logits[0].double(), dim=-1)
        for place, token in enumerate(reply):
            total = total - logp_TV[len(prompt) + place - 1, token]
            count += 1
    loss = total / count
    loss.backward()
    return loss.item(), {name: leaf.grad.numpy() for name, leaf in peer.named_parameters()}


@pytest.fixture(scope="module")
def program():
    execution = decoder.Execution(jnp.float32, "none")
    return supervised.make_update(OPTIMIZER, execution=execution, chunk=8)


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_loss_and_gradient_are_those_of_transformers(model, reference, program, layout, tmp_path):
    loss, gradients = reference
    shapes = SHAPES | {"layout": layout}
    [micro_batches] = supervised.lay_out(REPLIES, shapes)
    grads, sums = program.zeros(model)
    for batch in micro_batches:
        batch = program.place(batch)
        grads, sums = program.accumulate(grads, sums, model, None, batch, on_policy=True)
    huggingface.save(tmp_path, grads)
    for name, found in load_file(tmp_path / "model.safetensors").items():
        scale = np.abs(gradients[name]).max()
        assert np.abs(found - gradients[name]).max() < 1e-4 * scale, name
    assert supervised.cross_entropy(program, model, None, REPLIES, shapes) == pytest.approx(loss)
    _, values = program(update.init(model, OPTIMIZER), None, [micro_batches])
    assert values[supervised.LOSS] == pytest.approx(loss, rel=1e-5)
    assert values["tokens/trained"] == sum(len(reply) for _, reply in REPLIES)


def test_the_loss_of_each_token_counts_the_same():
    [batches] = supervised.lay_out(REPLIES, SHAPES | {"layout": "packed"})
    weights = np.concatenate([batch.weight_BA[batch.mask_BA] for batch in batches])
    assert len(weights) == 13 and weights == pytest.approx(1 / 13)
