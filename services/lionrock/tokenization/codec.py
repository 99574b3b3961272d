"""Codec: one model's conversations and texts to token ids, and its ids back to text.

How a conversation is encoded: the template is rendered with every character labelled as the template's or a message's; the
control tokens that the template wrote become their ids; the text between two of them, whoever wrote it, is encoded as one piece
by a tokenizer that has no added tokens and whose vocabulary lacks their spellings. That is what Hugging Face's library does to
the whole string, cut at the same places, so the ids are equal wherever no message spells a control token; and where one does, no
path leads from its text to a control token's id.

Loading ends with a proof on sample conversations that following the labels loses none of the template's own control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lionrock.modelstore.source import locate
from lionrock.modelstore.vocabulary import TOKENIZER_NAME
from lionrock.tokenization.chat_template import ChatTemplate, Message
from lionrock.tokenization.codec_errors import TemplateRefused, TextNotUnicode, TokenIdUnknown, TokenizerUnsupported, TooManyTokens
from lionrock.tokenization.control_tokens import ControlTokens
from lionrock.tokenization.definition import TokenizerDefinition, read_definition
from lionrock.tokenization.gguf_tokenizer import read_gguf_definition
from lionrock.tokenization.stream_decoder import StreamDecoder
from lionrock.tokenization.token_bytes import TokenBytes

DEFAULT_MAX_TOKENS = 262_144
# Longer pieces are counted slice by slice before they are encoded, so that what is over the limit never takes the memory of its
# encoding.
SLICE_CHARS = 65_536
# Slicing breaks at most a few tokens a slice; a sum over slices may exceed the true count by less than this factor.
_SLICING_SLACK = 1.02

_PRE_TOKENIZERS = frozenset({"Sequence", "Split", "Digits", "ByteLevel", "Punctuation"})
_NORMALIZERS = frozenset({"NFC"})
_PROBES: tuple[tuple[Message, ...], ...] = (
    (Message("user", "First."),),
    (Message("user", "First."), Message("assistant", "Second."), Message("user", "Third.")),
    (Message("system", "Zeroth."), Message("user", "First."), Message("assistant", "Second."), Message("user", "Third.")),
    (Message("user", "First."), Message("assistant", "Second."), Message("tool", "Third.", "1"), Message("assistant", "Fourth.")),
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of an input. content_tokens: those of the messages' texts, each encoded alone, without what the template adds."""

    token_ids: list[int]
    content_tokens: int


class Codec:
    """One model's tokenizer and chat template. Safe to use from several threads; encoding releases the interpreter lock."""

    def __init__(self, definition: TokenizerDefinition, *, max_tokens: int = DEFAULT_MAX_TOKENS) -> None:
        """Build from a definition, which is not kept. max_tokens: bound of one input. Raises TokenizerUnsupported."""
        _refuse_unknown_parts(definition.pipeline)
        self._max_tokens = max_tokens
        self.digest = definition.digest()
        self.eos_token_ids = definition.eos_token_ids
        self._text_tokenizer, self._control = _tokenizer_of_text(definition)
        spellings = {token_id: spelling for spelling, token_id in definition.vocabulary.items()}
        spellings |= {token.id: token.spelling for token in definition.added_tokens}
        self._token_bytes = TokenBytes(spellings, {token.id for token in definition.added_tokens if token.special})
        self.chat_template: ChatTemplate | None = None
        if definition.chat_template is not None:
            self.chat_template = ChatTemplate(definition.chat_template, definition.special_tokens)
            _prove_labels(self.chat_template, self._control)

    @property
    def vocabulary_size(self) -> int:
        """Highest id + 1, added tokens included."""
        return len(self._token_bytes)

    @property
    def control_tokens(self) -> Mapping[int, str]:
        """Ids that no text can produce, with their spellings."""
        return self._control.spellings

    def encode_text(self, text: str) -> Encoded:
        """Encode text without template and without control tokens. Raises TextNotUnicode, TooManyTokens."""
        _require_unicode(text)
        token_ids = self._encode_piece(text, self._max_tokens) if text else []
        return Encoded(token_ids, len(token_ids))

    def encode_conversation(self, messages: Sequence[Message]) -> Encoded:
        """Render and encode, ready for the assistant's turn. Raises TextNotUnicode, TemplateRefused, TooManyTokens."""
        if self.chat_template is None:
            raise TemplateRefused("the model has no chat template")
        for message in messages:
            _require_unicode(message.content)
            _require_unicode(message.tool_call_id or "")
        token_ids: list[int] = []
        for piece in self._control.split(self.chat_template.render(messages)):
            if isinstance(piece, int):
                token_ids.append(piece)
            else:
                token_ids += self._encode_piece(piece, self._max_tokens - len(token_ids))
        if len(token_ids) > self._max_tokens:
            raise TooManyTokens(self._max_tokens)
        content_tokens = sum(len(self._encode_piece(message.content, self._max_tokens)) for message in messages if message.content)
        return Encoded(token_ids, content_tokens)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Decode all ids at once; control tokens that stand for no text yield none. Raises TokenIdUnknown."""
        return self._token_bytes.join(token_ids).decode("utf-8", "replace")

    def spell(self, token_ids: Iterable[int]) -> list[bytes | None]:
        """Return the bytes of each id; None for those that the model does not have."""
        return [self._spelled(token_id) for token_id in token_ids]

    def _spelled(self, token_id: int) -> bytes | None:
        try:
            return self._token_bytes.join((token_id,))
        except TokenIdUnknown:
            return None

    def stream_decoder(self) -> StreamDecoder:
        """Start to decode an answer piece by piece."""
        return StreamDecoder(self._token_bytes)

    def _encode_piece(self, text: str, limit: int) -> list[int]:
        if len(text) > SLICE_CHARS:
            count = 0
            for start in range(0, len(text), SLICE_CHARS):
                count += len(self._encode(text[start : start + SLICE_CHARS]))
                if count > limit * _SLICING_SLACK:
                    raise TooManyTokens(self._max_tokens)
        token_ids = self._encode(text)
        if len(token_ids) > limit:
            raise TooManyTokens(self._max_tokens)
        return token_ids

    def _encode(self, text: str) -> list[int]:
        # The fast variant computes no offsets: two thirds of the memory and a fifth of the time.
        (encoding,) = self._text_tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids


def open_codec(name: str, path: Path, *, max_tokens: int = DEFAULT_MAX_TOKENS) -> Codec:
    """Read a model's tokenizer and build its codec. No weights are read, and a directory with tokenizer.json needs none.

    path: a store entry, a GGUF file, or a directory with tokenizer.json.
    Raises ModelNameInvalid, ModelFileMissing, ModelFileCorrupt, ModelFormatUnsupported, TokenizerUnsupported.
    """
    return Codec(_read(name, path), max_tokens=max_tokens)


def _read(name: str, path: Path) -> TokenizerDefinition:
    if (path / TOKENIZER_NAME).is_file():
        return read_definition(path)
    model = locate(name, path)
    return read_gguf_definition(model.files[0]) if model.format == "gguf" else read_definition(model.directory)


def _tokenizer_of_text(definition: TokenizerDefinition) -> tuple[Tokenizer, ControlTokens]:
    """Build the tokenizer that no text leads from to a control token, and the table of control tokens."""
    added = {token.spelling: token for token in definition.added_tokens}
    if len(added) != len(definition.added_tokens):
        raise TokenizerUnsupported("an added token stands twice")
    products = {left + right for left, right in definition.merges}
    ordinary = {
        token.spelling
        for token in definition.added_tokens
        if not token.special and token.spelling in products and definition.vocabulary.get(token.spelling) == token.id
    }
    control = {spelling: token.id for spelling, token in added.items() if spelling not in ordinary}
    vocabulary = {spelling: token_id for spelling, token_id in definition.vocabulary.items() if spelling not in control}
    document = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": definition.pipeline["normalizer"],
        "pre_tokenizer": definition.pipeline["pre_tokenizer"],
        "decoder": definition.pipeline["decoder"],
        "post_processor": None,
        "model": {
            "type": "BPE",
            **{name: value for name, value in definition.pipeline["options"].items() if value is not None},
            "vocab": vocabulary,
            "merges": definition.merges,
        },
    }
    if set(vocabulary.values()) & set(control.values()):
        raise TokenizerUnsupported("a control token shares its id with ordinary text")
    try:
        return Tokenizer.from_str(json.dumps(document)), ControlTokens(control)
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself; its text may quote the vocabulary
        raise TokenizerUnsupported(f"the tokenizer cannot be built without its control tokens ({type(error).__name__})") from None


def _refuse_unknown_parts(pipeline: Mapping[str, Any]) -> None:
    kinds = {"normalizer": _NORMALIZERS, "pre_tokenizer": _PRE_TOKENIZERS, "decoder": frozenset({"ByteLevel"})}
    for part, known in kinds.items():
        unknown = _kinds_of(pipeline[part]) - known
        if unknown:
            raise TokenizerUnsupported(f"the tokenizer's {part} has {', '.join(sorted(unknown))}, which is not served")
    if "ByteLevel" not in _kinds_of(pipeline["pre_tokenizer"]) or "ByteLevel" not in _kinds_of(pipeline["decoder"]):
        raise TokenizerUnsupported("the tokenizer is not byte-level")
    options = pipeline["options"]
    if options["dropout"] or options["byte_fallback"] or options["unk_token"] is not None:
        raise TokenizerUnsupported("the tokenizer's model drops merges, falls back to bytes or has an unknown token")
    if options["continuing_subword_prefix"] or options["end_of_word_suffix"]:
        raise TokenizerUnsupported("the tokenizer's model marks parts of words")


def _kinds_of(part: Any) -> frozenset[str]:
    if part is None:
        return frozenset()
    steps = part.get("pretokenizers") or part.get("normalizers") or part.get("decoders") or ()
    return frozenset({part["type"]}).union(*(_kinds_of(step) for step in steps))


def _prove_labels(template: ChatTemplate, control: ControlTokens) -> None:
    """Check that each sample's control tokens are all within what the template is known to have written."""
    accepted = 0
    for probe in _PROBES:
        try:
            rendered = template.render(probe)
        except TemplateRefused:
            continue
        accepted += 1
        if control.written_by_template(rendered) != control.spelled_anywhere(rendered):
            raise TokenizerUnsupported("the chat template builds control tokens in a way that cannot be told from a message's text")
    if accepted == 0:
        raise TokenizerUnsupported("the chat template refuses every sample conversation")


def _require_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TextNotUnicode("the text holds an unpaired surrogate") from None
