"""A plain torch and transformers GRPO step, as one would write it by hand.

`Qwen2ForCausalLM` with scaled-dot-product attention, logits at response positions only, log-probs
as gathered logit minus logsumexp, a reference pass without gradients, clipped ratio loss plus k3
KL, gradient accumulation, gradient clipping, fused AdamW. Prompts are padded on the left to the
longest prompt of the step and responses on the right to the longest response, as TRL's
GRPOTrainer does. float32 weights and optimizer state; bfloat16 runs under autocast.

Dimensions:
  S samples of the step    B rows of a micro-batch    P prompt tokens    A response tokens
  T = P + A    V vocabulary
"""

import math
import time

import torch
import transformers

from experiments.speed.peers import serve

KL_BOUND = 5.0  # where k3 goes on as its tangent, as flow_grpo_jax/loss.py has it


class TorchUpdate:
    def load(self, folder, reference, dtype, threads, compiled, optimizer, loss, **_):
        """Reads both models.

        Args:
          folder, reference: Hugging Face folders of the policy and of the reference.
          dtype: "float32" or "bfloat16", of the computation.
          threads: CPU threads; 0 keeps torch's choice.
          compiled: whether torch.compile is applied to both models.
          optimizer: dict(lr, b1, b2, eps, weight_decay, clip_norm).
          loss: dict(clip_low, clip_high, dual_clip, kl_coef).
        """
        if threads:
            torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype, self.numbers = getattr(torch, dtype), loss
        self.policy = self.read(folder).train()
        self.parameters = list(self.policy.parameters())
        self.reference = self.read(reference).eval() if loss["kl_coef"] else None
        if compiled:
            self.policy = torch.compile(self.policy)
            self.reference = self.reference and torch.compile(self.reference)
        self.clip_norm = optimizer["clip_norm"]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimizer["lr"],
            betas=(optimizer["b1"], optimizer["b2"]),
            eps=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
            fused=True,
        )
        return {
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "device": self.device,
            "threads": torch.get_num_threads(),
        }

    def read(self, folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        )
        return model.to(self.device)

    def batch(self, samples, rows, **_):
        """Lays the step's samples out.

        Args:
          samples: dicts of prompt, response (ids), logprobs (nats, of π_old) and advantage.
          rows: B.
        """
        longest = {key: max(len(s[key]) for s in samples) for key in ("prompt", "response")}

        def right(values, width, dtype):
            row = torch.zeros(width, dtype=dtype)
            row[: len(values)] = torch.tensor(values, dtype=dtype)
            return row

        def left(values, width, dtype):
            return right(values[::-1], width, dtype).flip(0)

        P, A = longest["prompt"], longest["response"]
        whole, real = torch.int64, torch.float32
        prompt_SP = torch.stack([left(s["prompt"], P, whole) for s in samples])
        prompt_mask_SP = torch.stack([left([1] * len(s["prompt"]), P, whole) for s in samples])
        target_SA = torch.stack([right(s["response"], A, whole) for s in samples])
        mask_SA = torch.stack([right([1] * len(s["response"]), A, whole) for s in samples])
        tensors = (
            torch.cat([prompt_SP, target_SA], dim=1),
            torch.cat([prompt_mask_SP, mask_SA], dim=1),
            target_SA,
            mask_SA.float(),
            torch.stack([right(s["logprobs"], A, real) for s in samples]),
            torch.tensor([[s["advantage"]] for s in samples], dtype=real),
        )
        on_device = [tensor.to(self.device) for tensor in tensors]
        self.samples = len(samples)
        self.micro_batches = list(zip(*(t.split(rows) for t in on_device), strict=True))
        return {
            "layout": f"{len(samples)} rows of {P}+{A}, {rows} at a time",
            "computed_tokens": len(samples) * (P + A),
        }

    def logprobs(self, model, token_BT, seen_BT, target_BA):
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            logits_BAV = model(
                input_ids=token_BT,
                attention_mask=seen_BT,
                logits_to_keep=target_BA.shape[1] + 1,
                use_cache=False,
            ).logits[:, :-1]
        logits_BAV = logits_BAV.float()
        chosen_BA = logits_BAV.gather(-1, target_BA[:, :, None]).squeeze(-1)
        return chosen_BA - logits_BAV.logsumexp(-1)

    def step(self):
        """Runs one optimizer step; the reply holds its seconds and what it computed."""
        self.wait()
        started = time.perf_counter()
        policy = kl = torch.zeros((), device=self.device)
        kl_coef = self.numbers["kl_coef"]
        for token_BT, seen_BT, target_BA, mask_BA, old_BA, adv_B1 in self.micro_batches:
            weight_BA = mask_BA / mask_BA.sum(-1, keepdim=True) / self.samples
            logp_BA = self.logprobs(self.policy, token_BT, seen_BT, target_BA)
            part = -(weight_BA * self.gain((logp_BA - old_BA) * mask_BA, adv_B1)).sum()
            policy = policy + part.detach()
            if kl_coef:
                with torch.no_grad():
                    ref_BA = self.logprobs(self.reference, token_BT, seen_BT, target_BA)
                log_ref_BA = (ref_BA - logp_BA) * mask_BA
                inside_BA = log_ref_BA.clamp(max=KL_BOUND)
                k3_BA = inside_BA.exp() - inside_BA - 1.0
                k3_BA = k3_BA + math.expm1(KL_BOUND) * (log_ref_BA - inside_BA)
                k3 = (weight_BA * k3_BA).sum()
                kl, part = kl + k3.detach(), part + kl_coef * k3
            part.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        values = {"policy": float(policy), "kl": float(kl), "grad_norm": float(norm)}
        self.wait()
        return values | {
            "seconds": time.perf_counter() - started,
            "peak_bytes": self.peak_bytes(),
        }

    def gain(self, log_ratio_BA, adv_B1):
        numbers = self.numbers
        free_BA = log_ratio_BA.exp()
        clipped_BA = free_BA.clamp(1.0 - numbers["clip_low"], 1.0 + numbers["clip_high"])
        gain_BA = torch.minimum(free_BA * adv_B1, clipped_BA * adv_B1)
        floor_B1 = numbers["dual_clip"] * adv_B1
        return torch.where(adv_B1 < 0, torch.maximum(gain_BA, floor_B1), gain_BA)

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self):
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return serve.host_peak_bytes()


if __name__ == "__main__":
    peer = TorchUpdate()
    serve.serve({"load": peer.load, "batch": peer.batch, "step": peer.step})
