"""Tunix's GRPO step, driven as its learner drives it.

The policy loss registered as "grpo", `Trainer.train` (its jitted train step, with optax.MultiSteps
for gradient accumulation) and the reference pass of `InferenceWorker`, on Tunix's own Qwen2. What
`RLCluster` and `GRPOLearner` do around a rollout is left out. Prompts are padded on the left to
the configured longest prompt and responses on the right to the configured longest response, as
the learner and its sampler do; with `packed`, the policy's pass (not the reference's) runs on rows
made by Tunix's `pack_sequences`, its option `max_seq_token_per_tpu`.

Packed rows change Tunix's loss: it averages over a row, although the tokens belong to several
samples. Time them, but do not compare their loss.

Dimensions:
  S samples of the step    B rows of a micro-batch    P longest prompt    A longest response
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tunix
from flax import nnx
from tunix.rl import function_registry, trainer
from tunix.rl import utils as rl_utils
from tunix.rl.grpo import grpo_learner
from tunix.rl.inference import inference_worker

from experiments.speed.peers import serve, tunix_model

PAD, EOS = 0, 1  # ids that no sample holds: Tunix finds padding by the id


class TunixUpdate:
    def load(self, folder, reference, dtype, remat, optimizer, loss, **_):
        """Reads both models.

        Args:
          folder, reference: Hugging Face folders of the policy and of the reference.
          dtype: "float32" or "bfloat16", of the computation; weights are float32.
          remat: whether Tunix recomputes each decoder layer in the backward pass.
          optimizer: dict(lr, b1, b2, eps, weight_decay, clip_norm).
          loss: dict(clip_low, clip_high, dual_clip, kl_coef).
        """
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
        self.policy = tunix_model.read(folder, self.mesh, dtype=dtype, remat=remat)
        self.kl_coef = loss["kl_coef"]
        self.worker = None
        if self.kl_coef:
            self.worker = inference_worker.InferenceWorker(
                {"reference": tunix_model.read(reference, self.mesh, dtype=dtype, remat=remat)}
            )
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(optimizer["clip_norm"]),
            optax.adamw(
                optimizer["lr"],
                b1=optimizer["b1"],
                b2=optimizer["b2"],
                eps=optimizer["eps"],
                weight_decay=optimizer["weight_decay"],
            ),
        )
        self.config = grpo_learner.GRPOConfig(
            beta=self.kl_coef, epsilon=loss["clip_low"], kl_loss_mode="low_var_kl"
        )
        self.config.epsilon_high = loss["clip_high"]
        self.config.epsilon_c = loss["dual_clip"]
        self.config.temperature = 1.0
        return {
            "versions": {"tunix": tunix.__version__, "jax": jax.__version__},
            "device": jax.devices()[0].platform,
        }

    def batch(self, samples, rows, max_prompt, max_response, packed, **_):
        """Lays the step's samples out.

        Args:
          samples: dicts of prompt, response (ids), logprobs (nats, of π_old) and advantage.
          rows: B; divides the samples.
          max_prompt, max_response: P and A.
          packed: tokens of a packed row; 0 = no packing.
        """
        P, A, S = max_prompt, max_response, len(samples)
        prompt_SP, response_SA = np.full((S, P), PAD, np.int32), np.full((S, A), PAD, np.int32)
        old_SA = np.zeros((S, A), np.float32)
        for s, sample in enumerate(samples):
            prompt_SP[s, P - len(sample["prompt"]) :] = sample["prompt"]
            response_SA[s, : len(sample["response"])] = sample["response"]
            old_SA[s, : len(sample["response"])] = sample["logprobs"]
        self.example = grpo_learner.TrainExample(
            prompt_ids=jnp.asarray(prompt_SP),
            prompt_mask=jnp.asarray(prompt_SP != PAD),
            completion_ids=jnp.asarray(response_SA),
            completion_mask=jnp.asarray(response_SA != PAD),
            advantages=jnp.asarray([sample["advantage"] for sample in samples], jnp.float32),
            ref_per_token_logps=None,
            old_per_token_logps=jnp.asarray(old_SA),
        )
        self.slices = [slice(s, s + rows) for s in range(0, S, rows)]
        self.packed = packed
        micro_batches = self.micro_batches()
        self.trainer = self.make_trainer(len(micro_batches))
        shape = f"{S} rows of {P}+{A}, {rows} at a time"
        if packed:
            shape = f"{len(micro_batches)} rows of {packed}, one at a time"
        return {
            "layout": shape,
            "computed_tokens": sum(
                e.prompt_ids.size + e.completion_ids.size for e in micro_batches
            ),
        }

    def make_trainer(self, accumulate):
        learner = trainer.Trainer(
            self.policy,
            self.optimizer,
            trainer.peft_trainer.TrainingConfig(
                eval_every_n_steps=10**9, gradient_accumulation_steps=accumulate
            ),
            custom_checkpoint_metadata_fn=dict,
        )
        learner.is_managed_externally = True
        grpo_loss = function_registry.get_policy_loss_fn("grpo")
        learner.with_loss_fn(
            lambda model, train_example, algo_config: grpo_loss(
                model, train_example, algo_config=self.config, pad_id=PAD, eos_id=EOS
            ),
            has_aux=True,
        )
        learner.with_gen_model_input_fn(lambda x: {"train_example": x, "algo_config": self.config})
        learner.with_rl_metrics_to_log({"pg_loss": np.mean, "kl_loss": np.mean})
        return learner

    def micro_batches(self):
        example = self.example
        if self.worker:
            parts = [
                self.worker.get_ref_per_token_logps(
                    example.prompt_ids[s], example.completion_ids[s], PAD, EOS
                )
                for s in self.slices
            ]
            example = example.replace(ref_per_token_logps=jnp.concatenate(parts))
        cut = [jax.tree.map(lambda x: x[s], example) for s in self.slices]  # noqa: B023
        if self.packed:
            cut = [e for part in rl_utils.pack_sequences(iter([cut]), self.packed) for e in part]
        return cut

    def step(self):
        """Runs one optimizer step; the reply holds its seconds and what it computed."""
        jax.block_until_ready(nnx.state(self.policy))
        started = time.perf_counter()
        with self.mesh:
            self.trainer.train(self.micro_batches())
        jax.block_until_ready(nnx.state(self.policy))
        seconds = time.perf_counter() - started
        values = self.trainer._prev_buffered_train_metrics.additional_metrics
        statistics = jax.devices()[0].memory_stats() or {}
        return {
            "seconds": seconds,
            "policy": float(np.mean([float(x) for x in values["pg_loss"][0]])),
            "kl": float(np.mean([float(x) for x in values["kl_loss"][0]])),
            "compiled": self.trainer._jitted_train_step_fn.func.jitted_fn._cache_size(),
            "peak_bytes": statistics.get("peak_bytes_in_use", serve.host_peak_bytes()),
        }


if __name__ == "__main__":
    peer = TunixUpdate()
    serve.serve({"load": peer.load, "batch": peer.batch, "step": peer.step})
