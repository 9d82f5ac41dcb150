"""A `tokenizers` pipeline that segments text as a SentencePiece model file does.

The ids are SentencePiece's own, but for control symbols in a text (see `convert`) and for letters
with several combining marks under an NFKC rule, whose marks come here in canonical order.

Published Qwen2.5 folders hold tokenizer.json. This serves folders of the architecture whose
vocabulary was trained with SentencePiece: transformers reads a tokenizer.model by the class of the
model beside it, which for `qwen2` is a byte-level tokenizer with other ids for every text.

Source: sentencepiece_model.proto; arXiv 1808.06226 (SentencePiece), 1804.10959 (unigram).
"""

import pathlib

import tokenizers
from google.protobuf import message
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from flow_grpo_jax.bounds import files

SPACE = "\u2581"  # SentencePiece's mark for a blank
UNKNOWN = "\uffff<unk>"  # a noncharacter, so no text contains this piece
Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
Trainer = sentencepiece_model_pb2.TrainerSpec


def convert(path):
    """Reads a SentencePiece model file (BPE or unigram).

    Returns:
      (tokenizer, special): a `tokenizers.Tokenizer` with the ids of the file, and the names of its
      special tokens, {"bos_token": str, ...}. Control symbols are special tokens: unlike in
      SentencePiece itself, they are recognised in a text.

    Raises:
      ValueError: the file uses what cannot be converted exactly.
    """
    path = pathlib.Path(path)
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(files.read_bytes(path))
    except message.DecodeError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    trainer, rules = model.trainer_spec, model.normalizer_spec
    problems = []
    if trainer.model_type not in (Trainer.BPE, Trainer.UNIGRAM):
        problems.append(f"model_type={Trainer.ModelType.Name(trainer.model_type)}")
    if trainer.treat_whitespace_as_suffix:
        problems.append("treat_whitespace_as_suffix=true")
    if not rules.escape_whitespaces:
        problems.append("escape_whitespaces=false")
    if any(piece.type == Piece.UNUSED for piece in model.pieces):
        problems.append("unused pieces")
    if problems:
        raise ValueError(
            f"{path} cannot be converted exactly: {', '.join(problems)}. Supported: BPE and "
            "unigram models with the usual treatment of blanks. "
            "Use a folder that has a tokenizer.json."
        )
    tokenizer = tokenizers.Tokenizer(
        _bpe(model) if trainer.model_type == Trainer.BPE else _unigram(model)
    )
    tokenizer.normalizer = _normalizer(rules)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in _cuts(model)]
    )
    tokenizer.decoder = _decoder(model)
    controls = _pieces(model, Piece.CONTROL)
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(piece, special=True, normalized=False) for piece in controls]
    )
    names = {"bos_token": trainer.bos_piece, "eos_token": trainer.eos_piece}
    names["pad_token"] = trainer.pad_piece
    return tokenizer, {name: piece for name, piece in names.items() if piece in controls}


def _pieces(model, kind):
    return [piece.piece for piece in model.pieces if piece.type == kind]


def _names(model):
    return [UNKNOWN if piece.type == Piece.UNKNOWN else piece.piece for piece in model.pieces]


def _bpe(model):
    """Derives merges from SentencePiece's scores: every cut of a piece in two pieces is a merge."""
    ids = {piece: index for index, piece in enumerate(_names(model))}
    score = {piece.piece: piece.score for piece in model.pieces if piece.type == Piece.NORMAL}
    merges = []
    for piece in sorted(score, key=lambda piece: (-score[piece], ids[piece])):
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [(left, right) for left, right in cuts if left in score and right in score]
    return models.BPE(
        vocab=ids,
        merges=merges,
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
        # User-defined symbols, cut out by `_cuts`, have no merges that would build them.
        ignore_merges=bool(_pieces(model, Piece.USER_DEFINED)),
    )


def _unigram(model):
    names = _names(model)
    return models.Unigram(
        [(name, piece.score) for name, piece in zip(names, model.pieces, strict=True)],
        unk_id=names.index(UNKNOWN),
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _normalizer(rules):
    steps = []
    if rules.precompiled_charsmap:
        if rules.name.startswith("nmt"):
            # Precompiled replaces a grapheme by what its first character maps to: two blanks here.
            steps.append(normalizers.Replace("\r\n", "\n\n"))
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
        if "nfkc" in rules.name:
            # Nor does it compose what a long grapheme holds.
            steps.append(normalizers.NFC())
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
        steps.append(normalizers.Replace(Regex(f"\\A |[ {SPACE}]+\\z"), ""))
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _cuts(model):
    """Returns patterns to isolate: user-defined symbols, and the start of apparent byte pieces.

    The latter because "<0x41>" in a text is not the piece of that name.
    """
    symbols = sorted(_pieces(model, Piece.USER_DEFINED), key=len, reverse=True)
    cuts = ["|".join(map(_escape, symbols))] if symbols else []
    return cuts + ["<(?=0x[0-9A-F]{2}>)"] * model.trainer_spec.byte_fallback


def _escape(text):
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _decoder(model):
    rules = model.normalizer_spec
    steps = [
        decoders.Replace(UNKNOWN, model.trainer_spec.unk_surface),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if rules.remove_extra_whitespaces:
        steps.append(decoders.Replace(Regex(f"\\A{SPACE}+"), ""))
    elif rules.add_dummy_prefix:
        steps.append(decoders.Replace(Regex(f"\\A{SPACE}"), ""))
    return decoders.Sequence([*steps, decoders.Replace(SPACE, " ")])
