"""Generation by transformers: `generate` on left-padded batches, or its continuous batching.

Runs in an environment that has torch and transformers; started by link.py.

Dimensions:
  B requests    P prompt tokens    T tokens, prompt and response
"""

import logging
import time

import torch
import transformers

from experiments.speed.peers import drive, serve

NO_STOP = -1


class First(transformers.StoppingCriteria):
    """A criterion that stops nothing and notes the time of the first token."""

    def __init__(self):
        self.reading = None

    def __call__(self, token_BT, scores, **_):
        if self.reading is None:
            if token_BT.is_cuda:
                torch.cuda.synchronize()
            self.reading = time.perf_counter()
        return torch.zeros(len(token_BT), dtype=torch.bool, device=token_BT.device)


class StaticBatching:
    """`generate`: a batch is padded on the left and runs until its longest response ends."""

    def load(self, folder, dtype, threads, slots, **_):
        """Reads the model.

        Args:
          folder: Hugging Face folder.
          dtype: "float32" or "bfloat16".
          threads: CPU threads; 0 keeps torch's choice.
          slots: most requests at once.
        """
        if threads:
            torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.slots = slots
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=getattr(torch, dtype)
        )
        self.model = model.to(self.device).eval()
        self.sampling = transformers.GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0
        )
        return {
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "device": self.device,
        }

    def prepare(self, **_):
        """Prepares nothing: nothing depends on the load."""
        return {}

    def run(self, chains):
        """Runs one pass over the chains; the reply is its report."""
        self.steps = self.rows = 0
        run = drive.in_batches(chains, self.generate, self.slots)
        drawn = sum(run.tokens.values())
        return run.report() | {
            "fill": drawn / (self.steps * self.slots),
            "wasted": 1 - drawn / self.rows,
            "peak_bytes": peak_bytes(),
        }

    @torch.inference_mode()
    def generate(self, prompts, new):
        P, most = max(map(len, prompts)), max(new)
        token_BP = torch.tensor([[0] * (P - len(prompt)) + prompt for prompt in prompts])
        seen_BP = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts])
        first = First()
        token_BT = self.model.generate(
            token_BP.to(self.device),
            attention_mask=seen_BP.to(self.device),
            generation_config=self.sampling,
            max_new_tokens=most,
            min_new_tokens=most,
            stopping_criteria=[first],
        )
        drawn = token_BT.cpu().shape[1] - P
        self.steps += drawn
        self.rows += drawn * len(prompts)
        return [min(drawn, count) for count in new], first.reading, 0.0


class ContinuousBatching(StaticBatching):
    """Continuous batching, with its cache of pages and shared prefixes."""

    manager = None

    def prepare(self, longest, page_size, **_):
        """Starts the manager anew.

        Args:
          longest: tokens of the longest request.
          page_size: tokens of a page.
        """
        self.stop()
        started = time.perf_counter()
        settings = {}
        if self.device == "cpu":  # on a GPU it finds these from the memory
            pages = self.slots * -(-longest // page_size)
            settings = dict(num_blocks=pages + self.slots, max_batch_tokens=512)
        self.context = self.model.continuous_batching_context_manager(
            generation_config=transformers.GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
                eos_token_id=NO_STOP,
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                max_requests_per_batch=self.slots,
                page_size=page_size if self.device == "cpu" else 256,
                **settings,
            ),
        )
        self.manager = self.context.__enter__()
        return {"compile_seconds": time.perf_counter() - started}

    def stop(self):
        if self.manager is not None:
            self.context.__exit__(None, None, None)
            self.manager = None

    def run(self, chains):
        before = getattr(self.manager, "current_batch", 0)
        run = drive.continuously(chains, self.submit, self.poll)
        steps = self.manager.current_batch - before
        return run.report() | {
            "fill": sum(run.tokens.values()) / (steps * self.slots),
            "peak_bytes": peak_bytes(),
        }

    def submit(self, key, turn):
        self.manager.add_request(
            turn.prompt,
            request_id="{}-{}".format(*key),
            max_new_tokens=turn.new,
            record_timestamps=True,
            eos_token_id=NO_STOP,
        )

    def poll(self, wait):
        result = self.manager.get_result(timeout=1.0 if wait is None else max(wait, 1e-3))
        if result is None:
            if not self.manager.is_running():
                raise RuntimeError("Continuous batching ended by itself.")
            return []
        if result.error is not None:
            raise RuntimeError(f"Request {result.request_id} failed: {result.error}")
        if not result.is_finished():
            return []
        key = tuple(map(int, result.request_id.split("-")))
        return [(key, len(result.generated_tokens), result.timestamps[0])]


def peak_bytes():
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return serve.host_peak_bytes()


class Either:
    """The one of the two that `load` names."""

    def load(self, how, **settings):
        """Loads by `how`, "static" or "continuous"; settings: of `StaticBatching.load`."""
        self.peer = {"static": StaticBatching, "continuous": ContinuousBatching}[how]()
        return self.peer.load(**settings)

    def prepare(self, **settings):
        return self.peer.prepare(**settings)

    def run(self, chains):
        return self.peer.run(chains)


if __name__ == "__main__":
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
    either = Either()
    serve.serve({"load": either.load, "prepare": either.prepare, "run": either.run})
