"""Defaults shared by all configs: the paper's values where it gives one (docs/algorithm.md)."""

from ml_collections import ConfigDict

MODULES = ("analyst", "executor", "verifier", "generator", "base_generator")  # all but the planner
# Sections whose fields are not fixed here: the warm start's own, sources of questions, fields of a
# server's requests.
FREE = (
    "warmstart",
    "data.mixture",
    "data.environment.options",
    *(f"backends.{name}.extra" for name in (*MODULES, "judge")),
)
MIXED = ("engine.stop_ids",)  # tuples whose items are texts or whole numbers


def backend(kind="frozen"):
    """Returns what answers for a module: see experiments/running/backends.py."""
    c = ConfigDict({"kind": kind})  # or "policy", "server": any with OpenAI's API; what follows
    c.url = ""  # e.g. "http://127.0.0.1:8000/v1"
    c.model = ""  # its name there
    c.api_key_variable = ""  # environment variable that holds the key; the key is in no file
    c.temperature = 0.0
    c.seconds = 120.0  # of a call, waits between its attempts included
    c.structured = False  # ask for the module's form by response_format
    c.cache = ""  # SQLite file of replies at temperature 0
    c.token_field = "max_tokens"  # some vendors want "max_completion_tokens"
    c.extra = ConfigDict()  # further fields of the request's body
    c.limits = ConfigDict()  # of the server; the meanings are in agents/backends/server.py
    c.limits.concurrency = 16
    c.limits.requests_per_second = 0.0  # 0 = no limit
    c.limits.burst = 1
    c.limits.connect_seconds = 10.0
    c.limits.read_seconds = 120.0
    c.limits.retries = 4
    c.limits.backoff_seconds = 0.5
    c.limits.backoff_limit = 30.0
    c.limits.failures_to_open = 10
    c.limits.open_seconds = 15.0
    c.limits.max_bytes = 4_194_304
    return c


def tools():
    """Returns which tools there are, and one section for each: the arguments of its `make`."""
    c = ConfigDict()
    c.names = ("knowledge_search", "python_coder", "base_generator")
    c.workers = 16
    c.base_generator = ConfigDict({"seconds": 60.0})
    c.python_coder = ConfigDict({"seconds": 5.0})
    c.python_coder.sandbox = "standard"  # or "strict", "minimal": least that must hold
    c.python_coder.traceback = True  # False: only the last line of an error
    c.python_coder.max_output_bytes = 4_096
    c.python_coder.memory_bytes = 536_870_912
    search = {"top_k": 3, "max_characters": 2_000}  # results of an answer, and its length
    c.knowledge_search = ConfigDict({"index": "", "url": ""} | search)  # "": embedded
    c.knowledge_search.seconds = 5.0
    c.wikipedia_search = ConfigDict({"contact": "", "index": ""} | search)
    c.wikipedia_search.url = "https://en.wikipedia.org/w/api.php"
    c.wikipedia_search.per_second = 2.0
    c.wikipedia_search.seconds = 15.0
    c.google_search = ConfigDict({"engine": "gemini", "url": "", "key_variable": ""} | search)
    c.google_search.model = "gemini-2.5-flash"
    c.google_search.per_second = 2.0
    c.google_search.seconds = 30.0
    c.web_search = ConfigDict({"max_characters": 2_000, "private_hosts": ()})
    c.web_search.embeddings_url = ""  # "" = BM25 chooses the passages
    c.web_search.embeddings_model = ""
    c.web_search.embeddings_key_variable = ""
    c.web_search.per_second = 5.0
    c.web_search.seconds = 15.0
    c.mcp = ()  # MCP servers, URLs or commands: all their tools are added
    c.record = ""  # folder that keeps the answers of remote tools
    c.replay = False  # answer from that folder only
    return c


def turns():
    """Returns how rollouts branch under loss.variant="turns".

    rollout.group is a multiple of 1 + points * siblings: so many rollouts are a root and branches.
    """
    c = ConfigDict()
    c.points = 1  # turns of a root whose action is drawn anew
    c.siblings = 3  # times that each is
    c.broadcast = 0.0  # share of the gradient that comes from the outcomes of roots; needs two
    return c


def data():
    """Returns where questions come from."""
    c = ConfigDict()
    c.train = ""  # JSONL, JSON, Parquet or a TFDS array_record folder; "": the environment's alone
    c.held_out = ""  # "" = no evaluation
    c.format = "auto"  # of the rows of both; docs/data.md has the names
    c.held_out_format = ""  # "" = as data.format
    c.index_base = ""  # "0" or "1": where numbers as golds of kind choice count from
    c.bad_rows = "refuse"  # or "drop": leave out rows that are no questions
    # Source of training questions, or its part before "/" -> weight; empty: each question counts
    # the same. flow_grpo_jax/mixture.py
    c.mixture = ConfigDict()
    c.too_long = "refuse"  # or "drop": training questions whose prompts can never fit
    c.environment = environment()
    return c


def environment():
    """Returns whose questions join those of the files; docs/worlds.md."""
    c = ConfigDict({"id": ""})  # such as "gymnasium:FrozenLake-v1"; code of others is run
    c.train = 64  # training questions
    c.held_out = 16
    c.seconds = 20.0  # of a call
    c.reward_low = 0.0  # lowest and highest total of an episode's rewards: scaled to 0 and 1
    c.reward_high = 1.0
    c.rules = ""  # what a question begins with; "": the environment's own
    c.actions = ()  # names of numbered actions; (): the environment's own
    c.max_characters = 2_000  # of a result; a longer one is cut and says so
    c.options = ConfigDict()  # arguments of its own, such as is_slippery=False
    return c


def base():
    """Returns all fields with their defaults, locked: an unknown field is an error."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 100
    c.compile_cache = "auto"  # folder of compiled programs; "auto": in ~/.cache; "": none
    c.deterministic = False  # on GPUs, the same bits in every process; slower, docs/design.md

    c.model = ConfigDict()
    # Of the initial planner and of the frozen modules: a Hugging Face folder, a GGUF file, or the
    # name on the hub of a model in its cache on this disk, such as "Qwen/Qwen2.5-7B-Instruct".
    c.model.path = ""
    c.model.dtype = "float32"  # compute dtype; masters are float32
    c.model.remat = "none"  # or "dots", "attention", "full": what is kept; models/decoder.py
    c.model.thinking, c.model.date = False, "26 Jul 2024"  # running/tokens.py:switches
    c.model.attention = "auto"  # or a backend by name; models/attention/kernels.py
    c.model.lora = ConfigDict({"rank": 0, "alpha": 32.0})  # rank 0: all parameters are trained
    c.model.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    c.model.lora.targets += ("gate_proj", "up_proj", "down_proj")

    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # -1: all remaining devices
    c.mesh.sequence = False  # between blocks, positions of a row are spread over `tensor`

    c.data = data()
    c.tools = tools()

    c.rollout = ConfigDict()
    c.rollout.prompts = "instruct"  # or "compact"; see agents/prompts.py
    c.rollout.questions = 32
    c.rollout.group = 8
    c.rollout.max_turns = 3
    c.rollout.temperature = 0.5  # planner; the frozen modules decode greedily
    c.rollout.max_prompt_tokens = 18_432
    c.rollout.max_response_tokens = 2_048  # planner
    c.rollout.max_module_tokens = 2_048  # each frozen module
    c.rollout.grammar = False  # hold the frozen modules to their forms; needs the extra `grammar`
    c.rollout.call_seconds = 60.0  # a tool call that hangs longer is an infrastructure failure
    c.rollout.trajectory_seconds = 600.0
    c.rollout.in_flight = 256  # trajectories at once; further ones start as these end
    c.rollout.infra_retries = 1  # times a trajectory is started again after such a failure
    c.rollout.min_valid_share = 0.5  # abort the run below this share of usable trajectories
    c.rollout.empty_steps = 3  # in a row without a token to train on; one more ends the run

    c.engine = ConfigDict()
    c.engine.tensor = 1  # devices that split the heads of one replica
    c.engine.replicas = 0  # engines of each process; 0 = as many as its devices allow
    c.engine.slots = 64  # of a replica, for each named weight set
    # Of a replica; 0 = slots * longest request, for each weight set.
    c.engine.cache_tokens = 262_144
    c.engine.page_size = 64
    c.engine.prefill_tokens = 256  # of a row: prompts are cut into rows
    c.engine.prefill_rows = 8
    c.engine.prefill_calls = 4  # between two decode calls
    c.engine.decode_steps = 8
    c.engine.stop_ids = ()  # more tokens that end a reply, by id or text: ("<|im_end|>", 151643)
    c.engine.overlap = True  # dispatch ahead of the results
    c.engine.layers = "auto"  # "separate": arrays of their own, fast on CPU and GPU; or "stacked"
    c.engine.release = True  # give weights and cache up while the update runs

    c.backends = ConfigDict()
    for name in MODULES:
        c.backends[name] = backend()
    c.backends.judge = backend("none")

    c.reward = ConfigDict()  # what decides, by kind of question; flow_grpo_jax/scoring.py
    c.reward.qa = "rule"  # or "f1", "judge"
    c.reward.math = "rule"  # or "math_verify", "judge"
    c.reward.gameof24 = "rule"  # or "judge"
    c.reward.choice = "rule"  # or "judge"
    c.reward.judge_tokens = 512  # of a verdict
    c.reward.judge_characters = 2_000  # an answer that is longer is wrong

    c.batch = ConfigDict()
    c.batch.layout = "tree"  # or "packed", "padded"; flow_grpo_jax/batching.py
    c.batch.row_lengths = (12_288, 20_480)
    c.batch.response_lengths = (6_144, 8_192)  # most sampled tokens in a row, for each row length
    c.batch.rows = (1, 1)  # of a micro-batch on each share of the mesh (data * fsdp shares)
    c.batch.logprob_chunk = 512  # tokens whose logits exist at once

    c.loss = ConfigDict()
    c.loss.variant = "flow"
    c.loss.turns = turns()
    c.loss.clip_low = 0.2
    c.loss.clip_high = 0.3
    c.loss.dual_clip = 3.0
    c.loss.kl_coef = 1e-3
    c.loss.old_logprobs = "sampler"  # or "recompute"
    c.loss.tis_cap = 0.0  # truncated importance weights with "recompute"; 0 = off
    # Optimizer steps a rollout batch. One is strictly on-policy: the ratio is 1 and nothing is
    # clipped. The authors' code makes 8 to 12 at the same lr, of 64 shuffled turns each, and moves
    # about ten times as far for the same rollouts (paper_7b.py:authors).
    c.loss.epochs = 1
    c.loss.mini_batches = 1  # parts by questions
    c.loss.mini_batch_turns = 0  # instead: about so many turns a step, shuffled; 0 = off

    c.optim = ConfigDict()
    c.optim.lr = 1e-6
    c.optim.warmup_steps = 0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = 1.0
    c.optim.moment_dtype = "float32"  # or "bfloat16": saves 4 bytes a parameter

    c.eval = ConfigDict()
    c.eval.every = 0  # steps; 0 = only before and after
    c.eval.questions = 0  # 0 = all
    c.eval.temperature = 0.0

    c.checkpoint = ConfigDict({"every": 10, "keep": 2})
    return lock(c)


def lock(c):
    """Locks a config, but for its FREE sections; returns it."""
    c.lock()
    c.data.mixture.unlock()
    c.data.environment.options.unlock()
    for module in c.backends.values():
        module.extra.unlock()
    return c
