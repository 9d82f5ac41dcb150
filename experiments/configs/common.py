"""Defaults shared by all configs: the paper's values where it gives one (docs/algorithm.md)."""

from ml_collections import ConfigDict

MODULES = ("analyst", "executor", "verifier", "generator", "base_generator")  # all but the planner
# Sections whose fields are not fixed here: sources of questions, arguments of an environment,
# fields of a server's requests.
FREE = ("data.mixture", "data.environment.options")
FREE += tuple(f"backends.{name}.extra" for name in (*MODULES, "judge"))
MIXED = ("engine.stop_ids",)  # tuples whose items are texts or whole numbers
WHOLE = ("trace.steps", "profile.steps")  # tuples of whole numbers that are empty by default
# What only watches a run, which goes on with others.
WATCHING = ("trackers", "tracking.", "trace.", "profile.")


def backend(kind="frozen"):
    """Returns what answers for a module: see experiments/running/backends.py."""
    c = ConfigDict({"kind": kind})  # or "policy", "server": any with OpenAI's API; what follows
    c.url = ""  # e.g. "http://127.0.0.1:8000/v1"
    c.model = ""  # its name there
    c.api_key_variable = ""  # environment variable that holds the key; the key is in no file
    c.temperature = 0.0  # of its replies
    c.seconds = 120.0  # of a call, waits between its attempts included
    c.structured = False  # ask for the module's form by response_format
    c.cache = ""  # SQLite file of replies at temperature 0
    c.token_field = "max_tokens"  # some vendors want "max_completion_tokens"
    c.extra = ConfigDict()  # further fields of the request's body
    c.limits = ConfigDict()  # of the server; the meanings are in agents/backends/server.py
    c.limits.concurrency = 16  # calls at once
    c.limits.requests_per_second = 0.0  # to the server
    c.limits.burst = 1  # requests that may come together in spite of the rate
    c.limits.connect_seconds = 10.0  # for a connection
    c.limits.read_seconds = 120.0  # without a byte of the reply
    c.limits.retries = 4  # attempts after the first
    c.limits.backoff_seconds = 0.5  # before the second attempt; doubles with each
    c.limits.backoff_limit = 30.0  # longest wait between two attempts, in seconds
    c.limits.failures_to_open = 10  # in a row, after which the server counts as down
    c.limits.open_seconds = 15.0  # that it is then left alone
    c.limits.max_bytes = 4_194_304  # of a reply
    return c


def tools():
    """Returns which tools there are, and one section for each: the arguments of its `make`."""
    c = ConfigDict()
    c.names = ("knowledge_search", "python_coder", "base_generator")  # docs/tools.md has all
    c.workers = 16  # calls at once, each in a thread
    c.base_generator = ConfigDict({"seconds": 60.0})  # of a call
    c.python_coder = ConfigDict({"seconds": 5.0})  # of a program
    c.python_coder.sandbox = "standard"  # or "strict", "minimal": least that must hold
    c.python_coder.traceback = True  # False: only the last line of an error
    c.python_coder.max_output_bytes = 4_096  # that the model reads; the rest is cut
    c.python_coder.memory_bytes = 536_870_912  # of a program
    search = {"top_k": 3, "max_characters": 2_000}  # results of an answer, and its length
    # A file of experiments.index, or the address of a service; without: the embedded articles.
    c.knowledge_search = ConfigDict({"index": "", "url": ""} | search)
    c.knowledge_search.seconds = 5.0  # of a call
    c.wikipedia_search = ConfigDict({"contact": "", "index": ""} | search)  # for its API; or a file
    c.wikipedia_search.url = "https://en.wikipedia.org/w/api.php"  # of any MediaWiki
    c.wikipedia_search.per_second = 2.0  # requests, of all threads
    c.wikipedia_search.seconds = 15.0  # of a call
    # gemini, serper, brave, searxng; the address of the last; of the key, "": the usual variable.
    c.google_search = ConfigDict({"engine": "gemini", "url": "", "key_variable": ""} | search)
    c.google_search.model = "gemini-2.5-flash"  # of the engine gemini
    c.google_search.per_second = 2.0  # requests, of all threads
    c.google_search.seconds = 30.0  # of a call
    # Of an answer; and hosts with private addresses that may be read.
    c.web_search = ConfigDict({"max_characters": 2_000, "private_hosts": ()})
    c.web_search.embeddings_url = ""  # "" = BM25 chooses the passages
    c.web_search.embeddings_model = ""  # its name there
    c.web_search.embeddings_key_variable = ""  # environment variable that holds its key
    c.web_search.per_second = 5.0  # requests, of all threads
    c.web_search.seconds = 15.0  # of a call
    c.mcp = ()  # MCP servers, URLs or commands: all their tools are added
    c.record = ""  # folder that keeps the answers of remote tools
    c.replay = False  # answer from that folder only
    return c


def watching():
    """Returns what only watches a run: trackers, traces, profiles (docs/tracking.md)."""
    c = ConfigDict()
    c.trackers = ()  # "tensorboard", "wandb", "trackio": each is an extra
    c.tracking = ConfigDict()
    c.tracking.project = "flow-grpo-jax"  # under which a tracker keeps its runs
    c.tracking.run_name = ""  # "" = that of the run folder
    c.tracking.trajectories = 8  # of a step, in its table; 0 = no table
    c.tracking.seconds = 60.0  # that the end of the run waits for a tracker
    c.trace = ConfigDict()
    c.trace.steps = ()  # whose phases and solvers are drawn, as a file
    c.profile = ConfigDict()
    c.profile.steps = ()  # that jax.profiler records
    return c


def turns():
    """Returns how rollouts branch under loss.variant="turns".

    rollout.group is a multiple of 1 + points * siblings: so many rollouts are a root and branches.
    """
    c = ConfigDict()
    c.points = 1  # turns of a root whose action is drawn anew
    c.siblings = 3  # further actions drawn for each of these turns
    c.broadcast = 0.0  # share of the gradient that comes from the outcomes of roots; needs two
    return c


def optim():
    """Returns the numbers of AdamW and of gradient clipping."""
    c = ConfigDict()
    c.lr = 1e-6  # learning rate
    c.warmup_steps = 0  # over which it rises from 0
    c.b1 = 0.9  # AdamW's decay of the first moment
    c.b2 = 0.999  # AdamW's decay of the second moment
    c.eps = 1e-8  # AdamW's, in the denominator
    c.weight_decay = 0.01  # AdamW's, times the learning rate
    c.clip_norm = 1.0  # global norm to which gradients are clipped
    c.moment_dtype = "float32"  # or "bfloat16": saves 4 bytes a parameter
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
    return c


def environment():
    """Returns whose questions join those of the files; docs/worlds.md."""
    c = ConfigDict()
    c.id = ""  # such as "gymnasium:FrozenLake-v1"; code of others is run
    c.train = 64  # training questions
    c.held_out = 16  # questions to evaluate
    c.seconds = 20.0  # of a call
    c.reward_low = 0.0  # total of an episode's rewards that is worth 0
    c.reward_high = 1.0  # total that is worth 1
    c.rules = ""  # what a question begins with; "": the environment's own
    c.actions = ()  # names of numbered actions; (): the environment's own
    c.max_characters = 2_000  # of a result; a longer one is cut and says so
    c.options = ConfigDict()  # arguments of its own, such as is_slippery=False
    return c


def warmstart():
    """Returns what `experiments.warmstart` trains before, and how; docs/warmstart.md."""
    c = ConfigDict()
    c.start = ""  # model to go on from, as model.path; "": a new one of `model`, see prompt_weight
    c.worlds = ""  # of experiments/worlds, divided by commas: their demonstrations are learnt
    c.data = ""  # file of conversations to learn
    c.held_out = ""  # file of conversations to measure
    c.modules = ()  # whose replies are learnt, such as ("planner", "executor"); empty: all
    c.replies = "last"  # of a conversation; or "all"
    c.bad_rows = "refuse"  # or "drop": leave out rows that are no conversations
    c.too_long = "refuse"  # or "drop": leave out what rollouts and rows have no room for
    c.seed = 0  # of the questions, the demonstrations and the order of examples
    c.steps = 100  # optimizer steps
    c.batch = 32  # replies of an optimizer step
    c.lr = 1e-5  # learning rate
    c.final_lr = 0.1  # share of lr that a cosine falls to
    c.warmup_steps = 5  # over which it rises from 0
    c.b2 = 0.98  # b1 and the rest: as in `optim`
    c.weight_decay = 0.01  # AdamW's
    c.probes = 64  # held-out replies that are measured
    c.probe_every = 10  # steps
    c.enough = 0.0  # share of held-out replies of every module that are read: ends it; 0: never

    # Of worlds.
    c.train_questions = 600  # questions for training
    c.held_out_questions = 120  # questions to measure with
    c.demonstrations = 4_000  # replies
    c.real_share = 1.0  # of demonstrations about train questions; others are about invented things
    c.temperature = 1.0  # of the demonstrated planner's choices: at 0.5 the likeliest stands out
    c.flawless = False  # show the planner good choices alone

    # Of a small model that knows nothing yet: it learns whole rows, prompts included.
    c.prompt_weight = 0.0  # of a prompt's token; 0: replies alone are learnt, as said above
    c.model = ConfigDict()
    c.model.vocab_size = 2_048  # as in config.json
    c.model.hidden_size = 128  # as in config.json
    c.model.intermediate_size = 384  # as in config.json
    c.model.num_hidden_layers = 4  # as in config.json
    c.model.num_attention_heads = 4  # as in config.json
    c.model.num_key_value_heads = 2  # as in config.json
    c.model.head_dim = 32  # as in config.json
    c.model.rope_theta = 10_000.0  # as in config.json
    c.model.max_position_embeddings = 1_024  # as in config.json
    c.tokenizer_samples = 4_000  # texts from which a tokenizer is trained
    c.rows = 16  # rows of an optimizer step
    c.row_length = 192  # tokens of a row
    c.copy_samples = 0  # random strings to copy, besides
    c.copy_distinct = 0  # tokens that every other of them is made of, so that they repeat; 0: all
    return c


def base():
    """Returns all fields with their defaults, locked: an unknown field is an error."""
    c = ConfigDict()
    c.seed = 0  # of the order of questions and of all that is sampled
    c.steps = 100  # of training: a batch of questions, rolled out and learned from
    c.compile_cache = "auto"  # folder of compiled programs; "auto": in ~/.cache; "": none
    c.deterministic = False  # on GPUs, the same bits in every process; slower, docs/design.md

    c.model = ConfigDict()
    # Of the initial planner and of the frozen modules: a Hugging Face folder, a GGUF file, or the
    # name on the hub of a model in its cache on this disk, such as "Qwen/Qwen2.5-7B-Instruct".
    c.model.path = ""
    c.model.dtype = "float32"  # compute dtype; masters are float32
    c.model.remat = "none"  # or "dots", "attention", "full": what is kept; models/decoder.py
    c.model.thinking = False  # what the chat template sees as enable_thinking
    c.model.date = "26 Jul 2024"  # its day in date_string and strftime_now: the same every day
    c.model.attention = "auto"  # or a backend by name; models/attention/kernels.py
    c.model.lora = ConfigDict({"rank": 0})  # of the adapters
    c.model.lora.alpha = 32.0  # adapters are scaled by alpha / rank
    c.model.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj")  # matrices that get adapters
    c.model.lora.targets += ("gate_proj", "up_proj", "down_proj")

    # Devices along each axis: of copies, of split parameters and optimizer, of split heads.
    c.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})  # -1: all remaining devices
    c.mesh.sequence = False  # between blocks, positions of a row are spread over `tensor`

    c.data = data()
    c.data.environment = environment()
    c.tools = tools()

    c.rollout = ConfigDict()
    c.rollout.prompts = "instruct"  # or "compact"; see agents/prompts.py
    c.rollout.questions = 32  # of a step
    c.rollout.group = 8  # trajectories of each question
    c.rollout.max_turns = 3  # of a trajectory
    c.rollout.temperature = 0.5  # planner; the frozen modules decode greedily
    c.rollout.max_prompt_tokens = 18_432  # of each module; older results are shortened to fit
    c.rollout.max_response_tokens = 2_048  # planner
    c.rollout.max_module_tokens = 2_048  # each frozen module
    c.rollout.grammar = False  # hold the frozen modules to their forms; needs the extra `grammar`
    c.rollout.call_seconds = 60.0  # a tool call that hangs longer is an infrastructure failure
    c.rollout.trajectory_seconds = 600.0  # of all its turns; then it is left out
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
    c.engine.page_size = 64  # tokens of a page of the cache
    c.engine.prefill_tokens = 256  # of a row: prompts are cut into rows
    c.engine.prefill_rows = 8  # of a prefill call
    c.engine.prefill_calls = 4  # between two decode calls
    c.engine.decode_steps = 8  # tokens that a decode call draws in each slot
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
    c.batch.row_lengths = (12_288, 20_480)  # tokens of a row, by which programs are compiled
    c.batch.response_lengths = (6_144, 8_192)  # most sampled tokens in a row, for each row length
    c.batch.rows = (1, 1)  # of a micro-batch on each share of the mesh (data * fsdp shares)
    c.batch.logprob_chunk = 512  # tokens whose logits exist at once

    c.loss = ConfigDict()
    c.loss.variant = "flow"  # docs/algorithm.md has all
    c.loss.turns = turns()
    c.loss.clip_low = 0.2  # the ratio is held above 1 - clip_low
    c.loss.clip_high = 0.3  # the ratio is held below 1 + clip_high
    c.loss.dual_clip = 3.0  # times a negative advantage: the loss of a token goes no further
    c.loss.kl_coef = 1e-3  # weight of KL with the initial planner
    c.loss.old_logprobs = "sampler"  # or "recompute"
    c.loss.tis_cap = 0.0  # truncated importance weights with "recompute"; 0 = off
    # Optimizer steps a rollout batch. One is strictly on-policy: the ratio is 1 and nothing is
    # clipped. The authors' code makes 8 to 12 at the same lr, of 64 shuffled turns each, and moves
    # about ten times as far for the same rollouts (paper_7b.py:authors).
    c.loss.epochs = 1
    c.loss.mini_batches = 1  # parts by questions
    c.loss.mini_batch_turns = 0  # instead: about so many turns a step, shuffled; 0 = off

    c.optim = optim()
    c.eval = ConfigDict()
    c.eval.every = 0  # steps; 0 = only before and after
    c.eval.questions = 0  # 0 = all
    c.eval.temperature = 0.0  # of the planner

    c.checkpoint = ConfigDict({"every": 10})  # steps
    c.checkpoint.keep = 2  # the newest checkpoints
    c.update(watching())
    c.warmstart = warmstart()
    return lock(c)


def lock(c):
    """Locks a config, but for its FREE sections; returns it."""
    c.lock()
    c.data.mixture.unlock()
    c.data.environment.options.unlock()
    for module in c.backends.values():
        module.extra.unlock()
    return c
