"""Defaults shared by all configs: the paper's values where it gives one (docs/algorithm.md)."""

from ml_collections import ConfigDict

MODULES = ("analyst", "executor", "verifier", "generator", "base_generator")  # all but the planner
# Sections whose fields are not fixed here: sources of questions, arguments of an environment,
# fields of a server's requests.
FREE = ("data.mixture", "data.environment.options")
FREE += tuple(f"backends.{name}.extra" for name in (*MODULES, "judge"))
MIXED = ("engine.stop_ids",)  # tuples whose items are texts or whole numbers
WHOLE = ("trace.steps", "profile.steps")  # tuples of whole numbers that are empty by default
# Fields that only watch a run: a run resumes with others.
WATCHING = ("trackers", "tracking.", "trace.", "profile.")


def backend(kind="frozen"):
    """Returns what answers for a module: see experiments/running/backends.py."""
    c = ConfigDict({"kind": kind})  # or "policy", or "server": one with OpenAI's API
    c.url = ""  # of the server, e.g. "http://127.0.0.1:8000/v1"
    c.model = ""  # its name on the server
    c.api_key_variable = ""  # environment variable that holds the key, which is never stored
    c.temperature = 0.0  # of the server's replies
    c.seconds = 120.0  # limit of a call, including waits between its attempts
    c.structured = False  # ask for the module's form through response_format
    c.cache = ""  # SQLite file of replies at temperature 0
    c.token_field = "max_tokens"  # some vendors want "max_completion_tokens"
    c.extra = ConfigDict()  # more fields for the request's body
    c.limits = ConfigDict()  # of the server; the meanings are in agents/backends/server.py
    c.limits.concurrency = 16  # calls at once
    c.limits.requests_per_second = 0.0  # rate limit
    c.limits.burst = 1  # requests that may come at once despite the rate limit
    c.limits.connect_seconds = 10.0  # limit for connecting
    c.limits.read_seconds = 120.0  # longest wait for the next byte of a reply
    c.limits.retries = 4  # attempts after the first
    c.limits.backoff_seconds = 0.5  # wait before the second attempt; doubles with each
    c.limits.backoff_limit = 30.0  # longest wait between two attempts, in seconds
    c.limits.failures_to_open = 10  # failures in a row after which the server counts as down
    c.limits.open_seconds = 15.0  # how long a server that is down is left alone
    c.limits.max_bytes = 4_194_304  # largest reply
    return c


def tools():
    """Returns which tools there are, and one section for each: the arguments of its `make`."""
    c = ConfigDict()
    c.names = ("knowledge_search", "python_coder", "base_generator")  # see docs/tools.md
    c.workers = 16  # calls at once, each in a thread
    c.base_generator = ConfigDict({"seconds": 60.0})  # limit of a call
    c.python_coder = ConfigDict({"seconds": 5.0})  # limit of a program
    c.python_coder.sandbox = "standard"  # level that must hold; or "strict", "minimal"
    c.python_coder.traceback = True  # False: only the last line of an error
    c.python_coder.max_output_bytes = 4_096  # output that the model reads; the rest is cut
    c.python_coder.memory_bytes = 536_870_912  # limit of a program
    length = {"max_characters": 2_000}  # longest answer
    search = {"top_k": 3} | length  # most results in an answer
    c.knowledge_search = ConfigDict(search)
    c.knowledge_search.index = ""  # a file made by experiments.index; "": the built-in articles
    c.knowledge_search.url = ""  # of a search service, instead of an index
    c.knowledge_search.seconds = 5.0  # limit of a call
    c.wikipedia_search = ConfigDict(search)
    c.wikipedia_search.contact = ""  # your e-mail or web address; the live API requires it
    c.wikipedia_search.index = ""  # a file made by experiments.index, instead of the live API
    c.wikipedia_search.url = "https://en.wikipedia.org/w/api.php"  # of any MediaWiki
    c.wikipedia_search.per_second = 2.0  # most requests of all threads together
    c.wikipedia_search.seconds = 15.0  # limit of a call
    c.google_search = ConfigDict({"engine": "gemini"} | search)  # or "serper", "brave", "searxng"
    c.google_search.url = ""  # of your SearXNG
    c.google_search.key_variable = ""  # environment variable of the key; "": the engine's usual one
    c.google_search.model = "gemini-2.5-flash"  # for the engine gemini
    c.google_search.per_second = 2.0  # most requests of all threads together
    c.google_search.seconds = 30.0  # limit of a call
    c.web_search = ConfigDict(length)
    c.web_search.private_hosts = ()  # hosts that may be read despite private addresses
    c.web_search.embeddings_url = ""  # server that ranks the passages; "": BM25 does
    c.web_search.embeddings_model = ""  # its name on that server
    c.web_search.embeddings_key_variable = ""  # environment variable that holds its key
    c.web_search.per_second = 5.0  # most requests of all threads together
    c.web_search.seconds = 15.0  # limit of a call
    c.mcp = ()  # MCP servers (URLs or commands) whose tools are all added
    c.record = ""  # folder that stores the answers of remote tools
    c.replay = False  # answer only from that folder
    return c


def watching():
    """Returns what only watches a run: trackers, traces, profiles (docs/tracking.md)."""
    c = ConfigDict()
    c.trackers = ()  # "tensorboard", "wandb", "trackio": each is an extra
    c.tracking = ConfigDict()
    c.tracking.project = "flow-grpo-jax"  # project of the runs in a tracker
    c.tracking.run_name = ""  # "": the run folder's name
    c.tracking.trajectories = 8  # rows per step in the tables of trajectories; 0: no table
    c.tracking.seconds = 60.0  # how long the end of a run waits for a tracker
    c.trace = ConfigDict()
    c.trace.steps = ()  # steps to trace, one file each
    c.profile = ConfigDict()
    c.profile.steps = ()  # steps that jax.profiler records
    return c


def turns():
    """Returns how rollouts branch under loss.variant="turns".

    rollout.group must be a multiple of 1 + points * siblings: a root and its branches.
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
    c.warmup_steps = 0  # steps in which the learning rate rises from 0
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
    c.train = ""  # JSONL, JSON, Parquet or TFDS array_record; "": only the environment's questions
    c.held_out = ""  # questions to evaluate on, in the same formats; "": no evaluation
    c.format = "auto"  # format of the rows in both; docs/data.md has the names
    c.held_out_format = ""  # of data.held_out; "": the same as data.format
    c.index_base = ""  # "0" or "1": number of the first option, for golds that are numbers
    c.bad_rows = "refuse"  # or "drop": leave out rows that are not questions
    # Weights of sources: a question's source, or its part before "/" -> weight; empty: each
    # question counts the same.
    c.mixture = ConfigDict()
    c.too_long = "refuse"  # or "drop": leave out training questions whose prompts can never fit
    return c


def environment():
    """Returns whose questions join those of the files; docs/worlds.md."""
    c = ConfigDict()
    c.id = ""  # such as "gymnasium:FrozenLake-v1"; runs code from others
    c.train = 64  # number of training questions
    c.held_out = 16  # number of held-out questions
    c.seconds = 20.0  # limit of a call
    c.reward_low = 0.0  # total of an episode's rewards that counts as 0
    c.reward_high = 1.0  # total that counts as 1
    c.rules = ""  # text that starts each question; "": the environment's own
    c.actions = ()  # names of numbered actions; (): the environment's own
    c.max_characters = 2_000  # longest result; a longer one is cut and says so
    c.options = ConfigDict()  # the environment's arguments, such as is_slippery=False
    return c


def warmstart():
    """Returns what `experiments.warmstart` trains on, and how; docs/warmstart.md."""
    c = ConfigDict()
    c.start = ""  # initial model, as in model.path; "": a new one with the shape in warmstart.model
    c.worlds = ""  # worlds to learn from, separated by commas; docs/worlds.md
    c.data = ""  # file of conversations to learn from
    c.held_out = ""  # file of conversations to measure on
    c.modules = ()  # modules whose replies are learnt, e.g. ("planner", "executor"); (): all
    c.replies = "last"  # which replies of a conversation are learnt; or "all"
    c.bad_rows = "refuse"  # or "drop": leave out rows that are not conversations
    c.too_long = "refuse"  # or "drop": leave out what is too long for rollouts or rows
    c.seed = 0  # of the questions, the demonstrations and the order of examples
    c.steps = 100  # optimizer steps
    c.batch = 32  # replies per optimizer step
    c.lr = 1e-5  # learning rate
    c.final_lr = 0.1  # share of lr at the end of its cosine
    c.warmup_steps = 5  # steps in which the learning rate rises from 0
    c.b2 = 0.98  # AdamW's decay of the second moment; the others are those of optim
    c.weight_decay = 0.01  # AdamW's, times the learning rate
    c.probes = 64  # held-out replies per measurement
    c.probe_every = 10  # steps between measurements
    c.enough = 0.0  # stop when this share of each module's held-out replies can be read; 0: never

    c.train_questions = 600  # training questions to write from the worlds
    c.held_out_questions = 120  # held-out questions to write from the worlds
    c.demonstrations = 4_000  # replies to write from the worlds
    c.real_share = 1.0  # share of demonstrations on training questions, not invented ones
    c.temperature = 1.0  # of the planner's demonstrated choices; lower: the likeliest more often
    c.max_turns = 0  # of demonstrations, so that long ones get to their end; 0: rollout.max_turns
    c.flawless = False  # demonstrate only good choices of the planner

    c.prompt_weight = 0.0  # loss weight of a prompt's token, for models trained from scratch
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
    c.tokenizer_samples = 4_000  # texts that a new tokenizer is trained on
    c.rows = 16  # with prompt_weight: rows per optimizer step
    c.row_length = 192  # with prompt_weight: tokens per row
    c.copy_samples = 0  # with prompt_weight: random strings to learn copying from
    c.copy_distinct = 0  # different tokens in every other such string, which then repeat; 0: any
    return c


def base():
    """Returns all fields with their defaults, locked: an unknown field is an error."""
    c = ConfigDict()
    c.seed = 0  # of the order of questions and of all sampling
    c.steps = 100  # training steps, each one batch of questions
    c.compile_cache = "auto"  # folder of compiled programs; "auto": in ~/.cache; "": none
    c.deterministic = False  # on GPUs: the same bits in every process, but slower; docs/design.md

    c.model = ConfigDict()
    # Initial planner and frozen modules: a Hugging Face folder, a GGUF file, or the hub name of a
    # downloaded model, such as "Qwen/Qwen2.5-7B-Instruct".
    c.model.path = ""
    c.model.dtype = "float32"  # for computing; trained parameters stay float32
    c.model.remat = "none"  # rematerialisation; or "dots", "attention", "full": models/decoder.py
    c.model.thinking = False  # the chat template's enable_thinking
    c.model.date = "26 Jul 2024"  # today's date for the chat template, fixed so that runs repeat
    c.model.attention = "auto"  # or the name of a kernel; models/attention/kernels.py
    c.model.lora = ConfigDict({"rank": 0})  # rank of the adapters
    c.model.lora.alpha = 32.0  # adapters are scaled by alpha / rank
    c.model.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj")  # matrices that get adapters
    c.model.lora.targets += ("gate_proj", "up_proj", "down_proj")

    c.mesh = ConfigDict({"data": 1})  # devices that hold copies of the parameters
    c.mesh.fsdp = -1  # devices that split parameters and optimizer
    c.mesh.tensor = 1  # devices that split the heads
    c.mesh.sequence = False  # between blocks, split the positions of a row over `tensor`

    c.data = data()
    c.data.environment = environment()
    c.tools = tools()

    c.rollout = ConfigDict()
    c.rollout.prompts = "instruct"  # or "compact"; see agents/prompts.py
    c.rollout.questions = 32  # questions per step
    c.rollout.group = 8  # trajectories per question
    c.rollout.max_turns = 3  # turns per trajectory
    c.rollout.temperature = 0.5  # of the planner; the frozen modules decode greedily
    c.rollout.max_prompt_tokens = 18_432  # for each module; older results are shortened to fit
    c.rollout.max_response_tokens = 2_048  # for the planner
    c.rollout.max_module_tokens = 2_048  # for the reply of each frozen module
    c.rollout.grammar = False  # constrain the frozen modules to their forms; extra `grammar`
    c.rollout.call_seconds = 60.0  # a tool call that hangs longer is an infrastructure failure
    c.rollout.trajectory_seconds = 600.0  # limit of a whole trajectory, which is then left out
    c.rollout.in_flight = 256  # trajectories at once; the others start as these end
    c.rollout.infra_retries = 1  # restarts of a trajectory after infrastructure failures
    c.rollout.min_valid_share = 0.5  # stop the run below this share of valid trajectories
    c.rollout.empty_steps = 3  # steps in a row without a token to train on; one more ends the run

    c.engine = ConfigDict()
    c.engine.tensor = 1  # devices that split the heads of one replica
    c.engine.replicas = 0  # engines of each process; 0 = as many as its devices allow
    c.engine.slots = 64  # requests decoded at once, per replica and weight set
    # Tokens in a replica's cache; 0: slots * longest request, for each weight set.
    c.engine.cache_tokens = 262_144
    c.engine.page_size = 64  # tokens per cache page
    c.engine.prefill_tokens = 256  # tokens per prefill row; prompts are cut into rows
    c.engine.prefill_rows = 8  # rows per prefill call
    c.engine.prefill_calls = 4  # most prefill calls between two decode calls
    c.engine.decode_steps = 8  # tokens per slot that a decode call draws
    c.engine.stop_ids = ()  # more tokens that end a reply, by id or text: ("<|im_end|>", 151643)
    c.engine.overlap = True  # dispatch the next call before the results are read
    c.engine.layers = "auto"  # or "separate": one array per layer, fast on CPU and GPU; "stacked"
    c.engine.release = True  # free weights and cache while the update runs

    c.backends = ConfigDict()
    for name in MODULES:
        c.backends[name] = backend()
    c.backends.judge = backend("none")

    c.reward = ConfigDict()  # what decides, by kind of question; flow_grpo_jax/scoring.py
    c.reward.qa = "rule"  # or "f1", "judge"
    c.reward.math = "rule"  # or "math_verify", "judge"
    c.reward.gameof24 = "rule"  # or "judge"
    c.reward.choice = "rule"  # or "judge"
    c.reward.judge_tokens = 512  # longest reply of the judge
    c.reward.judge_characters = 2_000  # a longer answer is wrong without asking the judge

    c.batch = ConfigDict()
    c.batch.layout = "tree"  # or "packed", "padded"; docs/algorithm.md
    c.batch.row_lengths = (12_288, 20_480)  # tokens per row; one program is compiled for each
    c.batch.response_lengths = (6_144, 8_192)  # most sampled tokens in a row, for each row length
    c.batch.rows = (1, 1)  # rows per micro-batch on each of the data * fsdp shares of the mesh
    c.batch.logprob_chunk = 512  # tokens whose logits exist at once

    c.loss = ConfigDict()
    c.loss.variant = "flow"  # docs/algorithm.md has the others
    c.loss.turns = turns()
    c.loss.clip_low = 0.2  # the ratio is clipped below 1 - clip_low
    c.loss.clip_high = 0.3  # the ratio is clipped above 1 + clip_high
    c.loss.dual_clip = 3.0  # largest ratio that counts for a negative advantage
    c.loss.kl_coef = 1e-3  # weight of KL with the initial planner
    c.loss.old_logprobs = "sampler"  # or "recompute": with the trainer, before the update
    c.loss.tis_cap = 0.0  # cap of the importance weights used with "recompute"; 0: off
    # Passes over a rollout batch. By default a batch makes one optimizer step, strictly on-policy:
    # the ratio is 1 and nothing is clipped. The authors' code makes 8 to 12 at the same lr, of 64
    # shuffled turns each, and moves about ten times as far for the same rollouts
    # (paper_7b.py:authors).
    c.loss.epochs = 1
    c.loss.mini_batches = 1  # optimizer steps per pass, split by questions
    c.loss.mini_batch_turns = 0  # instead: about this many shuffled turns per step; 0: off

    c.optim = optim()
    c.eval = ConfigDict()
    c.eval.every = 0  # steps between evaluations; 0: only before and after training
    c.eval.questions = 0  # held-out questions to evaluate; 0: all
    c.eval.temperature = 0.0  # of the planner

    c.checkpoint = ConfigDict({"every": 10})  # steps between checkpoints
    c.checkpoint.keep = 2  # how many of the newest checkpoints to keep
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
