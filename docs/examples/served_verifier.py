"""Multi-hop questions with a verifier on a server with OpenAI's API.

python -m experiments.train --config=docs/examples/served_verifier.py --workdir=runs/served \
    --config.model.path=/models/Qwen2.5-1.5B-Instruct --config.data.train=/data/nq.jsonl
"""

from experiments.configs import search


def get_config():
    c = search.get_config()
    verifier = c.backends.verifier
    verifier.kind = "server"
    verifier.url = "http://127.0.0.1:8000/v1"
    verifier.model = "Qwen/Qwen2.5-7B-Instruct"
    verifier.structured = True  # the verdict as a JSON object
    verifier.limits.concurrency = 32
    return c
