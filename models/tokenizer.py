"""Turns text into token ids and back, by a Hugging Face folder; trains small vocabularies."""

import functools
import json
import pathlib
import re
import tempfile

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, trainers

from models import (
    chat_template,
    folders,
    splits,
    template_limits,
    tokenizer_file,
    tokenizer_folder,
)
from models.gguf import folder as gguf_folder

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    *chat_template.FILES,
)
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
CANNOT_ENCODE = "The tokenizer cannot encode a text"

# The messages in order, each between its markers, then the header of the reply.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

DIGIT_PAIRS = tuple(f"{number:02d}" for number in range(100))
PRIVATE = 0xF0000  # the first of 65,534 characters that Unicode gives no meaning
PART = 2**12  # characters, or a little more, of a long text that are encoded at once
MOST_COMPOSED = 4  # characters that become one in a normal form of Unicode
KEPT, KEPT_LINE = 2**23, 64  # characters of lines whose ids are remembered, and a line's own cost


class Tokenizer:
    """A tokenizer of a folder; nothing is downloaded by a model's name.

    Attributes:
      eos_ids: tuple of ids that end a reply: `eos_token_id` of generation_config.json, else the
        tokenizer's own; then the token that the chat template puts after a reply, and `stops`.
        Empty if none of them names one.
      turn_end: text after a reply, by the chat template, if no one token marks it; else "".
      switches: names of the given switches that the chat template asks for.
      merges_system: whether the chat template takes no system message, so that its text goes in
        front of the first user's message.
      pad_id: id for padding; the first of eos_ids where the folder names none.
      vocab_size: one more than the largest id. A model may have more rows than that.
      longest_token: most characters that a token stands for, before they are normalized. Only a
        tokenizer that drops characters, such as repeated blanks, can fit more into its tokens.
    """

    def __init__(
        self,
        backend,
        *,
        eos_ids=(),
        stops=(),
        switches=None,
        saved_class="PreTrainedTokenizerFast",
        place="",
    ):
        """Wraps a transformers tokenizer that is backed by the `tokenizers` library.

        Args:
          backend: the transformers tokenizer.
          eos_ids: ids that end a reply; empty takes the backend's own.
          stops: more tokens that do: ids, or texts of one token; a text of digits is an id.
          switches: {name: value} that the chat template sees beside the messages.
          saved_class: `tokenizer_class` that `save` writes.
          place: folder that errors name.

        Raises:
          ValueError: one of `stops` is no token.
        """
        self._backend, self._saved_class = backend, saved_class
        self._what = f"The chat template of {place}" if place else "The chat template"
        # Called directly: the wrapper sets truncation on every call, which threads may not share.
        self._fast = backend.backend_tokenizer
        self._fast.no_truncation()
        self._fast.no_padding()
        templates = chat_template.by_name(backend.chat_template)
        self._template = templates.get(chat_template.DEFAULT) or CHAT_TEMPLATE
        # A template may write the special tokens, which a folder can call anything.
        self._seen = dict(backend.special_tokens_map) | dict(switches or {})
        self.switches = tuple(name for name in switches or () if name in self._template)
        behaviour = chat_template.examine(self._render)
        self.merges_system, self._lead = behaviour.merges_system, behaviour.lead
        own = () if backend.eos_token_id is None else (backend.eos_token_id,)
        self.eos_ids = tuple(eos_ids) or own
        self.pad_id = backend.pad_token_id
        if self.pad_id is None:
            self.pad_id = self.eos_ids[0] if self.eos_ids else 0
        vocabulary = self._fast.get_vocab()
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.longest_token = max(map(len, vocabulary)) * (
            MOST_COMPOSED if self._fast.normalizer else 1
        )
        tokenizer_file.check_ids((self.vocab_size - 1, self.pad_id, *self.eos_ids), "The tokenizer")
        added = self._fast.get_added_tokens_decoder()
        ends, self.turn_end = self._turn_end(behaviour.end or "", added)
        stops = [self._id(stop) for stop in stops]
        self._reply_end = (*ends, *self.eos_ids, *stops)[:1]
        self.eos_ids = tuple(dict.fromkeys([*self.eos_ids, *ends, *stops]))
        self._marks = {token.content: i for i, token in added.items() if token.special}
        # Longest first, so that no mark is taken for another that it begins with.
        marks = sorted(map(re.escape, self._marks), key=len, reverse=True)
        self._mark = re.compile("|".join(marks) or "(?!)")
        # Some are found in the normalized text only, such as ＜/s＞ for </s>.
        self._normalizes_marks = self._fast.normalizer is not None and any(
            token.special and token.normalized for token in added.values()
        )
        self._parting = splits.parting(self._fast, added.values())
        self._lines, self._kept = {}, 0  # line -> its ids, and their share of KEPT
        self._ids = tuple(range(self.vocab_size))

    @classmethod
    def load(cls, folder, *, stops=(), switches=None):
        """Reads a folder with tokenizer.json, vocab.json and merges.txt, or tokenizer.model alone.

        Args:
          folder: path or URL.
          stops: tokens that end a reply beside those that the folder names.
          switches: {name: value} that the chat template sees beside the messages, such as
            enable_thinking, which those of Qwen3 and SmolLM3 ask for.

        Raises:
          FileNotFoundError: the folder holds none of them.
          ValueError: a file is damaged or over a bound; the folder has chat templates and none is
            the default; or one of `stops` is no token.
        """
        names = (*FILES, tokenizer_folder.SENTENCEPIECE, GENERATION)
        with folders.local_copy(gguf_folder.opened(folder), names) as local:
            return cls._load(local, folder, stops=stops, switches=switches)

    @classmethod
    def _load(cls, folder, location, **settings):
        config = tokenizer_folder.read_json(folder / TOKENIZER_CONFIG)
        template = chat_template.read(folder, config)
        ends = tokenizer_folder.read_json(folder / GENERATION).get("eos_token_id")
        ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
        tokenizer_file.check_ids(ends, folder / GENERATION)
        saved_class = config.get("tokenizer_class", "PreTrainedTokenizerFast")
        has = {name: (folder / name).is_file() for name in tokenizer_folder.BACKENDS}
        if not any(has.values()):
            raise FileNotFoundError(
                f"{location} holds no tokenizer: none of {', '.join(tokenizer_folder.BACKENDS)} "
                "is there. Download the tokenizer's files beside the weights."
            )
        if list(filter(has.get, tokenizer_folder.BACKENDS)) == [tokenizer_folder.SENTENCEPIECE]:
            saved_class = "PreTrainedTokenizerFast"
        with tokenizer_file.failures(f"The tokenizer in {location} cannot be used"):
            backend = tokenizer_folder.load(folder, config, template)
            return cls(backend, eos_ids=ends, saved_class=saved_class, place=location, **settings)

    def encode(self, text, *, most=None):
        """Returns the token ids of a text, list[int]; special tokens are recognised, none added.

        most: None, or how many ids are of use: of a text with more, the first of them are returned,
          at least most + 1. Other threads can go on meanwhile, however long the text is.

        Raises:
          ValueError: the tokenizer's own pattern gives up on the text.
        """
        return self._encode_in_parts(self._fast, text, most)

    def decode(self, ids, *, keep_special=False):
        """Returns the text of token ids; special tokens only if asked, unknown ids give nothing."""
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=not keep_special)

    def chat(self, messages, *, most=None):
        """Returns the ids of a conversation and the header of its next reply, list[int].

        Args:
          messages: [{"role": "system" | "user" | "assistant", "content": str}, ...].
          most: as in `encode`.

        The folder's chat template is followed; without one, each message stands between
        <|im_start|> and <|im_end|>. Only the template's own marks become special tokens: a mark
        that a message holds is text like any other, so no message can end itself or begin another.

        Raises:
          ValueError: a content is not text, such as a list with an image; or the template refuses
            the messages.
        """
        for message in messages:
            if not isinstance(message["content"], str):
                raise ValueError(
                    f"The content of a {message['role']} message is a "
                    f"{type(message['content']).__name__}, not text. Images and other parts are "
                    "not supported; describe the image in words."
                )
        if self.merges_system:
            messages = chat_template.merged(messages)
        texts = [message["content"] for message in messages]
        if not any(map(self._holds_mark, texts)):
            return self._encode_by_lines(self._render(messages), most)
        # Stand-ins carry the messages' marks past the template: those it then holds are its own.
        # A stand-in is two characters; the first, where a message has it, is doubled.
        first = chr(PRIVATE)
        names = [first, *(chr(PRIVATE + 1 + index) for index in range(len(self._marks)))]
        named = dict(zip([first, *self._marks], names, strict=True))
        shown = dict(zip(names, named, strict=True))
        hide = functools.partial(
            re.compile(f"{first}|{self._mark.pattern}").sub, lambda found: first + named[found[0]]
        )
        show = functools.partial(
            re.compile(f"{first}(.)", re.DOTALL).sub, lambda found: shown[found[1]]
        )
        rendered = self._render(
            [
                message | {"content": hide(text)}
                for message, text in zip(messages, texts, strict=True)
            ]
        )
        ids, end = [], 0
        for mark in self._mark.finditer(rendered):
            ids += self._encode_plain(show(rendered[end : mark.start()]), most, inside=end > 0)
            ids.append(self._marks[mark[0]])
            end = mark.end()
            if most is not None and len(ids) > most:
                return ids
        return ids + self._encode_plain(show(rendered[end:]), most, inside=end > 0)

    def reply(self, text):
        """Returns the ids of a whole reply, list[int], as a model draws them after `chat`.

        The chat template says what stands around it: blanks before, and the token after, else the
        first of eos_ids; there is none if these are empty. As in `chat`, marks in the text are
        text.
        """
        return [*self._encode_plain(self._lead + text, inside=True), *self._reply_end]

    def _holds_mark(self, text):
        if self._normalizes_marks and not self._mark.search(text):
            text = self._fast.normalizer.normalize_str(text)
        return self._mark.search(text) is not None

    def check_conversation(self, roles):
        """Raises ValueError if the chat template refuses messages of these roles, or drops one."""
        texts = [f"probe{index}{role}" for index, role in enumerate(roles)]
        messages = [
            {"role": role, "content": text} for role, text in zip(roles, texts, strict=True)
        ]
        rendered = self._render(chat_template.merged(messages) if self.merges_system else messages)
        dropped = [role for role, text in zip(roles, texts, strict=True) if text not in rendered]
        if dropped:
            raise ValueError(
                f"{self._what} leaves out the {dropped[0]} message of a conversation "
                f"({', '.join(roles)})."
            )

    def _render(self, messages, header=True):
        """Returns the text of a conversation; ValueError if the template refuses it."""
        try:
            return template_limits.render(
                self._template,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=header,
                **self._seen,
            )
        except template_limits.TooMuch as error:
            raise ValueError(f"{self._what} is not usable: {error}.") from error
        except chat_template.ERRORS as error:
            roles = ", ".join(message["role"] for message in messages)
            raise chat_template.Refused(
                f"{self._what} refuses a conversation ({roles}): "
                f"{str(error) or type(error).__name__}"
            ) from error

    def _turn_end(self, text, added):
        """Returns (ids of the first mark in the text that ends a turn, else (); the text, else "").

        A mark is a special token or, where there is none, another added token that is not blank.
        """
        marks = [added[i] for i in self.encode(text) if i in added and added[i].content.strip()]
        marks.sort(key=lambda token: not token.special)  # stable: the first special one, if any
        if marks:
            return (self._fast.token_to_id(marks[0].content),), ""
        return (), text.strip()

    def _id(self, stop):
        """Returns the id of a token that is given by id or text."""
        if str(stop).isascii() and str(stop).isdigit():
            ids = [int(stop)] if int(stop) < self.vocab_size else []
        else:
            ids = self.encode(stop) if isinstance(stop, str) else []
        if len(ids) != 1:
            cut = f" It is {len(ids)} tokens." if ids else ""
            raise ValueError(
                f"The end of a reply {stop!r} is not a token of the tokenizer.{cut} Give the text "
                f"of a single token, or an id below {self.vocab_size}."
            )
        return ids[0]

    def _encode_by_lines(self, text, most=None):
        """Encodes like `encode`, but fast for texts with lines seen before, such as prompts."""
        if self._parting is None:
            return self.encode(text, most=most)
        *lines, last = self._parting.line_end.split(text)
        ids = []
        for line in [*(f"{line}\n" for line in lines), last]:
            ids += self._lines.get(line) or self._remember(line, most)
            if most is not None and len(ids) > most:
                break
        return ids

    def _remember(self, line, most):
        """Returns the ids of a line, remembered until KEPT is full; safe in many threads."""
        if most is not None and len(line) > PART:  # they may not be all
            return self.encode(line, most=most)
        ids = tuple([self._ids[i] for i in self.encode(line)])  # lines share the int objects
        if self._kept > KEPT:
            self._lines, self._kept = {}, 0
        self._lines[line] = ids
        self._kept += len(line) + KEPT_LINE
        return ids

    def _encode_plain(self, text, most=None, *, inside=False):
        """Encodes like `encode`, but special tokens are text. inside: after other text."""
        return self._encode_in_parts(self._plain_inside if inside else self._plain, text, most)

    def _encode_in_parts(self, fast, text, most):
        with tokenizer_file.failures(CANNOT_ENCODE):
            if most is None:
                return fast.encode(text, add_special_tokens=False).ids
            ids, start = [], 0
            while start < len(text) and len(ids) <= most:
                cut = self._parting and self._parting.anywhere.search(text, start + PART)
                end = cut.end() if cut else len(text)
                # A batch, even of one, lets other threads run.
                (part,) = fast.encode_batch_fast([text[start:end]], add_special_tokens=False)
                ids += part.ids
                start = end
            return ids

    @functools.cached_property
    def _plain(self):
        return _without_marks(self.json)

    @functools.cached_property
    def _plain_inside(self):
        """Like `_plain`, without the blank that Mistral's puts before the first word of a text."""
        inside = self.json.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
        return self._plain if inside == self.json else _without_marks(inside)

    @property
    def json(self):
        """The text of its tokenizer.json."""
        return self._fast.to_str()

    def save(self, folder):
        """Writes tokenizer.json, its configuration and the end ids; `load` gives the same ids."""
        folder = pathlib.Path(folder)
        self._backend.save_pretrained(folder)
        path = folder / TOKENIZER_CONFIG
        values = tokenizer_folder.read_json(path) | {"tokenizer_class": self._saved_class}
        _write_json(path, tokenizer_file.for_both_versions(values))
        path = folder / GENERATION
        ends = {"eos_token_id": list(self.eos_ids), "pad_token_id": self.pad_id}
        _write_json(path, tokenizer_folder.read_json(path) | ends)


def _without_marks(text):
    """Returns the tokenizers.Tokenizer of a tokenizer.json that takes special tokens for text."""
    plain = tokenizers.Tokenizer.from_str(text)
    plain.encode_special_tokens = True
    return plain


def copy_files(source, target):
    """Copies a tokenizer from folder to folder; a SentencePiece file is written as tokenizer.json.

    The class that it names becomes the one that follows tokenizer.json, except Qwen2's: others of
    transformers 5, such as the GPT2Tokenizer that SmolLM2 names, cut texts as they always do.

    Read one that is not Qwen2's with transformers' `PreTrainedTokenizerFast`: beside a Qwen2 model,
    AutoTokenizer keeps only vocabulary and merges.

    Args:
      source, target: path or URL.
    """
    source, target = gguf_folder.opened(source), folders.Folder(target)
    present = [name for name in FILES if source.has(name)]
    if not {"tokenizer.json", "vocab.json"} & set(present):
        with tempfile.TemporaryDirectory() as converted:
            Tokenizer.load(source.location).save(converted)
            source = folders.Folder(converted)
            for name in source.names():
                target.write(name, source.read(name))
    elif source.path("") != target.path(""):
        for name in dict.fromkeys([TOKENIZER_CONFIG, *present]):
            if name == TOKENIZER_CONFIG:
                values = tokenizer_file.for_both_versions(source.read_json(name))
                whole = source.read_json("tokenizer.json")
                if whole and not splits.is_qwen2(whole):
                    values["tokenizer_class"] = "PreTrainedTokenizerFast"
                if values:
                    target.write_json(name, values)
            elif name == chat_template.NAMED_DEFAULT:  # after the file that it overrules
                target.write(chat_template.FILE, source.read(name))
            else:
                target.write(name, source.read(name))


def train_byte_bpe(
    texts,
    *,
    vocab_size,
    folder,
    special_tokens=SPECIAL_TOKENS,
    eos_token="<|im_end|>",
    chat_template=None,
):
    """Trains a byte-level BPE and writes it as a Hugging Face folder.

    It is Qwen2's tokenizer with 100 more tokens, 00..99: digits are taken in pairs from the left
    (12345 is 12 34 5), so numbers stay short although the vocabulary is small. They are added
    tokens, not merges, because transformers rebuilds the pre-tokenizer of a Qwen2 folder, which
    parts digits. Any text round-trips up to Unicode normal form C; equal texts give equal files.

    Args:
      texts: iterable of str.
      vocab_size: number of tokens, special ones included; fewer if the texts offer fewer merges.
      folder: gets tokenizer.json, tokenizer_config.json and generation_config.json.
      special_tokens: have the last ids, in this order; the first is the padding.
      eos_token: the special token that ends a reply.
      chat_template: a Jinja template; None takes CHAT_TEMPLATE.

    Returns:
      The Tokenizer, loaded from the folder.
    """
    added = [*DIGIT_PAIRS, *special_tokens]
    if vocab_size < 256 + len(added):
        raise ValueError(
            f"vocab_size={vocab_size} is too small: 256 bytes, {len(DIGIT_PAIRS)} pairs of digits "
            f"and {len(special_tokens)} special tokens need {256 + len(added)} or more."
        )
    if eos_token not in special_tokens:
        raise ValueError(f"eos_token={eos_token!r} is not one of {special_tokens}; add it there.")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(splits.QWEN2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([_added_token(token, special=False) for token in DIGIT_PAIRS])
    tokenizer.add_special_tokens([_added_token(token, special=True) for token in special_tokens])
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": eos_token,
        "pad_token": special_tokens[0],
        "additional_special_tokens": list(special_tokens),
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template or CHAT_TEMPLATE,
    }
    ends = {
        "eos_token_id": tokenizer.token_to_id(eos_token),
        "pad_token_id": tokenizer.token_to_id(special_tokens[0]),
    }
    _write_json(folder / TOKENIZER_CONFIG, config)
    _write_json(folder / GENERATION, ends)
    return Tokenizer.load(folder)


def _added_token(token, *, special):
    return tokenizers.AddedToken(token, special=special, normalized=False)


def _write_json(path, values):
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
