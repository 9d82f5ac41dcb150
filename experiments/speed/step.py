"""The step that is measured: our update on one size, and the FLOPs that it needs.

Dimensions:
  S samples (turns)    B rows    T tokens in a row    A response tokens of a row
"""

import functools
import time

import jax
import numpy as np

from experiments.speed import measure
from flow_grpo_jax import loss, optimizer, update
from models import decoder, huggingface, lora
from models.attention import kernels

LOSS = dict(clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl_coef=1e-3)
# Too small to change a weight: every step starts from the same ones.
OPTIMIZER = dict(lr=1e-12, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0)


def adapters(size):
    """Returns lora.Settings of an UpdateSize; None if all parameters are trained."""
    return lora.Settings(size.rank, 2.0 * size.rank, tuple(lora.TARGETS)) if size.rank else None


def maker(size, *, dtype, remat, attend, chunk, mesh=None):
    """Returns (optimizer, function without arguments that makes an `update.Update`).

    mesh: of one device, if that is not the default one.
    """
    adamw = optimizer.make(warmup_steps=0, moment_dtype="float32", **OPTIMIZER)
    make = functools.partial(
        update.Update,
        adamw,
        numbers=loss.Numbers(sequence_ratio=False, tis_cap=0.0, **LOSS),
        execution=decoder.Execution(
            dtype=dtype, remat=remat, attend=kernels.make(attend, mesh=mesh)
        ),
        temperature=1.0,
        chunk=chunk,
        assemble=lora.combine if size.rank else update.whole_model,
        epochs=1,
        old_logprobs="sampler",
        donate_params=True,
    )
    return adamw, make


class OurUpdate:
    """The update of this repository on one size."""

    def __init__(self, size, *, dtype, seed, **how):
        """Draws the weights. how: the others of `maker`."""
        key_model, key_reference, key_adapters = jax.random.split(jax.random.key(seed), 3)
        make = functools.partial(decoder.Decoder, config=size.dims)
        if size.rank:
            self.frozen = jax.jit(functools.partial(make, dtype=dtype))(key_model)
            init = jax.jit(functools.partial(lora.init, settings=adapters(size)))
            params = init(self.frozen, key_adapters)
        else:
            params = jax.jit(make)(key_model)
            # Near the policy, as in training: far from it everyone bounds KL in another way.
            mix = lambda ours, other: (0.9 * ours + 0.1 * other).astype(dtype)
            self.frozen = jax.jit(lambda *keys: jax.tree.map(mix, *map(make, keys)))(
                key_model, key_reference
            )
        adamw, self.make_update = maker(size, dtype=dtype, **how)
        self.state = update.init(params, adamw)

    def save(self, folder):
        """Writes policy and reference as Hugging Face folders; returns their paths."""
        paths = {"folder": folder / "policy", "reference": folder / "reference"}
        huggingface.save(paths["folder"], self.state.params)
        huggingface.save(paths["reference"], self.frozen, dtype=np.float32)
        return {name: str(path) for name, path in paths.items()}

    def step(self, run, batches):
        """Runs one optimizer step by an Update from `make_update`."""
        jax.block_until_ready(self.state)
        started = time.perf_counter()
        self.state, metrics = run(self.state, self.frozen, [batches])
        jax.block_until_ready(self.state)
        return {
            "seconds": time.perf_counter() - started,
            "policy": metrics["loss/policy"],
            "kl": metrics["loss/kl"],
            "grad_norm": metrics["optim/grad_norm"],
            "compiled": run.compile_count,
            "peak_bytes": measure.peak_bytes(),
        }


def useful_flops(size, *, tokens, pairs, sampled):
    """Returns FLOPs of training (by the usual formula, really needed).

    Args:
      tokens: how many must be computed. pairs: how many pairs of a query and a key that it sees
        these have. sampled: how many of the tokens carry loss.
    """
    dims = size.dims
    layers = dims.num_hidden_layers * dims.layer_parameters
    head = dims.vocab_size * dims.hidden_size
    width = dims.num_hidden_layers * dims.num_attention_heads * dims.head_dim
    passes = 4 if size.rank else 6
    usual = passes * (layers + head) * tokens + 12 * width * pairs
    reference = 2 * layers * tokens + 2 * head * sampled + 4 * width * pairs
    done = passes * (layers * tokens + head * sampled) + 12 * width * pairs + reference
    return float(usual), float(done)


def flops_alone(size, load):
    """Returns `useful_flops` of the samples, each on its own."""
    length_S = np.array([len(s.prompt_tokens) + len(s.response_tokens) for s in load.samples])
    return useful_flops(
        size,
        tokens=int(length_S.sum()),
        pairs=int((length_S * (length_S + 1) // 2).sum()),
        sampled=load.sampled_tokens,
    )


def flops_of_batches(size, batches):
    """Returns `useful_flops` of TurnBatches: a shared prefix counts once."""
    tokens = pairs = 0
    for batch in batches:
        # Of each key: the queries that see it.
        seen_by_BT = batch.until_BT - np.arange(batch.until_BT.shape[1])
        real_BT = batch.until_BT > 0
        tokens += int(real_BT.sum())
        pairs += int(seen_by_BT[real_BT].sum())
    return useful_flops(
        size, tokens=tokens, pairs=pairs, sampled=sum(int(b.mask_BA.sum()) for b in batches)
    )
