"""Package list and dependencies. `make quickstart` and `make test` install from here.

Packages are listed by hand, because other projects own import names such as `agents`;
tests/test_layout.py keeps the list complete.
"""

import pathlib
import re

from setuptools import setup

PACKAGES = [
    "agents",
    "agents.backends",
    "agents.environments",
    "experiments",
    "experiments.configs",
    "experiments.diagnosis",
    "experiments.documenting",
    "experiments.evaluating",
    "experiments.planning",
    "experiments.reporting",
    "experiments.running",
    "experiments.serving",
    "experiments.solving",
    "experiments.speed",
    "experiments.speed.peers",
    "experiments.sweeping",
    "experiments.tracking",
    "experiments.warmstarting",
    "experiments.worlds",
    "flow_grpo_jax",
    "flow_grpo_jax.answers",
    "flow_grpo_jax.benchmarks",
    "flow_grpo_jax.bounds",
    "flow_grpo_jax.datasets",
    "models",
    "models.attention",
    "models.engine",
    "models.engine.layouts",
    "models.gguf",
    "tools",
    "tools.sandbox",
]

PACKAGE_DATA = {
    "experiments": ["data/**/*", "reporting/assets/*"],
    "tools": ["data/**/*"],
}

REQUIRES = [
    "absl-py>=2.2",
    "flax>=0.12,<0.14",
    "fsspec>=2025.3",
    "grain>=0.2.15",
    "jax>=0.10,<0.12",
    "jinja2>=3.1.6",  # earlier ones have holes in the sandbox of templates
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "packaging>=24",
    "pyarrow>=20",
    "rich>=13.9",
    "sentencepiece>=0.2",
    "tensorflow-datasets>=4.9.9",
    "tokenizers>=0.22",
    "transformers>=5,<6",
]

SERVE = ["prometheus-client>=0.21,<1", "starlette>=0.46,<2", "uvicorn>=0.34,<1"]
MCP = ["mcp>=2.3,<3"]
GRAMMAR = ["llguidance>=1.8,<2"]
GGUF = ["gguf>=0.17,<1"]
GYMNASIUM = ["gymnasium>=1.2,<2"]
PLOTS = ["matplotlib>=3.9,<4"]
TENSORBOARD = ["tensorboardX>=2.6"]
EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda12": ["jax[cuda12]"],
    "cuda13": ["jax[cuda13]"],
    "gcs": ["gcsfs>=2025.3"],  # model folders at gs://
    # The TPU compiler; it must match jaxlib, so give it an environment of its own. Needs no TPU.
    "plan": ["libtpu"],
    "serve": SERVE,
    "grammar": GRAMMAR,  # response_format of the server, rollout.grammar
    "web": ["trafilatura>=2,<3", "lxml_html_clean>=0.4,<1"],  # the main text of pages
    "gguf": GGUF,  # model files of llama.cpp
    "mcp": MCP,
    # Environments of others. verifiers has no extra: it pins older versions of openai and mcp.
    "gymnasium": GYMNASIUM,
    "openenv": ["openenv-core>=0.3,<0.4"],
    "math": ["math-verify>=0.8", "sympy>=1.13"],
    "tensorboard": TENSORBOARD,
    "wandb": ["wandb>=0.22"],
    "trackio": ["trackio>=0.20"],
    # PNG and SVG of experiments.evaluate --analyse, experiments.compare and experiments.sweep
    "plots": PLOTS,
    # torch is the reference that tests compare with. This version also admits the small CPU build
    # 2.13.0+cpu, which pip prefers where an index offers it.
    "dev": [
        *SERVE,
        *GRAMMAR,
        *GGUF,
        *GYMNASIUM,
        *MCP,
        *PLOTS,
        *TENSORBOARD,
        "httpx>=0.27,<1",
        "hypothesis>=6.100",
        "ipykernel>=6.29,<8",
        "nbclient>=0.10.1,<1",
        "openai>=1.70",
        "peft>=0.17",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.9",
        "safetensors>=0.5",
        "torch==2.13.0",
    ],
}

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.*)"', (HERE / "flow_grpo_jax/__init__.py").read_text())[1]

setup(
    name="flow-grpo-jax",
    version=VERSION,
    description="Flow-GRPO training of the planner of a tool-using agent, in one JAX program.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=PACKAGES,
    package_data=PACKAGE_DATA,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["flow-grpo = experiments.__main__:main"]},
)
