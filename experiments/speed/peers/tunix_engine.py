"""Tunix's `Sampler`: a left-padded batch that runs until its longest response ends.

Prompts are padded to the next power of two, as Tunix does by itself; so is the number of requests,
by repeating the first. The buffer of tokens has one size for a load, and the loop ends at the last
token wanted, without Tunix's one further step, so few programs serve all batches. A batch that
compiled runs again; its first run does not count.

Dimensions:
  B requests    P prompt tokens
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import tunix
from tunix.generate import sampler

from experiments.speed.peers import drive, serve, tunix_model

PAD, NO_STOP = 0, -1


class Ids:
    """A tokenizer for prompts that are token ids already."""

    def encode(self, ids, **_):
        return list(ids)

    def decode(self, ids, **_):
        return ""

    def bos_id(self):
        return None

    def eos_id(self):
        return NO_STOP

    def pad_id(self):
        return PAD

    def dedup_bos_ids(self, ids):
        return ids


class RoomySampler(sampler.Sampler):
    """Tunix's sampler with a buffer for `room` response tokens, whatever a batch wants."""

    room, wanted = 0, 0

    def init_sample_state(self, token_BP, total_sampling_steps, **rest):
        state = super().init_sample_state(
            token_BP, total_sampling_steps=token_BP.shape[1] + self.room, **rest
        )
        last = token_BP.shape[1] + self.wanted - 1
        return state.replace(total_sampling_steps=jnp.int32(last))


def power_of_2(count):
    return 1 << (count - 1).bit_length()


class Batches:
    def load(self, folder, dtype, slots, **_):
        """Reads the model.

        Args:
          folder: Hugging Face folder.
          dtype: "float32" or "bfloat16".
          slots: most requests at once.
        """
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
        self.model = tunix_model.read(
            folder, self.mesh, dtype=dtype, weights_dtype=jnp.dtype(dtype)
        )
        self.slots, self.seed = slots, 0
        return {
            "versions": {"tunix": tunix.__version__, "jax": jax.__version__},
            "device": jax.devices()[0].platform,
        }

    def prepare(self, longest_prompt, longest_response, **_):
        """Makes the sampler of a load.

        Args:
          longest_prompt, longest_response: tokens.
        """
        config = self.model.config
        self.sampler = RoomySampler(
            self.model,
            Ids(),
            sampler.CacheConfig(
                cache_size=power_of_2(longest_prompt) + longest_response,
                num_layers=config.num_layers,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
            ),
        )
        self.sampler.room = longest_response
        compiled = self.sampler._compiled_prefill_fn

        def prefill(*arguments, **named):
            state = jax.block_until_ready(compiled(*arguments, **named))
            self.first = time.perf_counter()
            return state

        self.sampler._compiled_prefill_fn = prefill
        self.programs = (compiled, self.sampler._compiled_decode_fn)
        self.compile_seconds = 0.0
        return {}

    def compiled(self):
        return sum(program._cache_size() for program in self.programs)

    def run(self, chains):
        """Runs one pass over the chains; the reply is its report."""
        self.steps = self.rows = 0
        run = drive.in_batches(chains, self.generate, self.slots)
        drawn = sum(run.tokens.values())
        statistics = jax.devices()[0].memory_stats() or {}
        return run.report() | {
            "fill": drawn / (self.steps * self.slots),
            "wasted": 1 - drawn / self.rows,
            "compiled": self.compiled(),
            "compile_seconds": self.compile_seconds,
            "peak_bytes": statistics.get("peak_bytes_in_use", serve.host_peak_bytes()),
        }

    def generate(self, prompts, new):
        count = power_of_2(len(prompts))
        padded = prompts + prompts[:1] * (count - len(prompts))
        before, started = self.compiled(), time.perf_counter()
        drawn = self.once(padded, max(new))
        aside = 0.0
        if self.compiled() > before:
            aside = time.perf_counter() - started
            self.once(padded, max(new))
            self.compile_seconds += max(0.0, 2 * aside - (time.perf_counter() - started))
        self.steps += drawn
        self.rows += drawn * count
        return [min(drawn, tokens) for tokens in new], self.first, aside

    def once(self, prompts, most):
        self.seed += 1
        self.sampler.wanted = most
        with self.mesh:
            output = self.sampler(
                prompts,
                max_generation_steps=self.sampler.room,
                eos_tokens=[NO_STOP],
                temperature=1.0,
                top_p=1.0,
                seed=self.seed,
            )
        return min(most, len(output.tokens[0]))


if __name__ == "__main__":
    peer = Batches()
    serve.serve({"load": peer.load, "prepare": peer.prepare, "run": peer.run})
