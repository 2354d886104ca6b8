"""Prompts to sequences, by a checkpoint's own tokenizer. Knows no model, no queue and no event loop."""

from collections.abc import Sequence as Seq
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from tokenizers import Encoding

from assay.engine.conversation import text_of
from assay.engine.tokenizer import TextTokenizer
from assay.engine.truncation import cut_text, kept_places, window_places
from assay.errors import AssayError, CheckpointError, ContextLengthError, RequestError
from assay.sequence import ChatPrompt, Options, Prompt, Sequence, Span, TextPrompt, TokenPrompt, TruncationSide

if TYPE_CHECKING:
    from assay.engine.chat import ChatTemplate


class PromptEncoder:
    """What turns the prompts of a request into sequences; safe in several threads at once.

    vocab_size: ids at or above it have no row in the model's embedding.
    max_model_len: longest sequence, special tokens included.
    type_vocab_size: token types that the model tells apart; under two, none are kept.
    trusts_templates: a request may bring its own chat template.
    pairs_need_template: a language model used as a reranker, to which two texts side by side say nothing.
    """

    def __init__(
        self,
        text_tokenizer: TextTokenizer,
        vocab_size: int,
        max_model_len: int,
        type_vocab_size: int = 2,
        pairs_need_template: bool = False,
        trusts_templates: bool = False,
    ) -> None:
        self._tokenizer = text_tokenizer.tokenizer
        self._truncation_side = text_tokenizer.truncation_side
        self._chat_template = text_tokenizer.chat_template
        self._suffix_id = text_tokenizer.suffix_id
        if self._suffix_id is not None and self._suffix_id >= vocab_size:
            raise CheckpointError(
                f"config.json: reward_token_id {self._suffix_id} is not below vocab_size {vocab_size}."
            )
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._has_types = type_vocab_size > 1
        self._pairs_need_template = pairs_need_template
        self._trusts_templates = trusts_templates
        self._special_tokens = text_tokenizer.special_tokens
        self._requests_template = lru_cache(maxsize=16)(self._compiled)

    def encode_together(self, requests: Seq[tuple[Seq[Prompt], Options, int]]) -> list[list[Sequence] | AssayError]:
        """What `encode` makes of each of several requests, or its error, with their plain texts in one call of the
        library: it runs without the interpreter, which is handed over twice a call.
        """
        plain = [
            _plain_texts(prompts) if not options.windowed and options.add_special_tokens is not False else []
            for prompts, options, _ in requests
        ]
        try:
            encodings = iter(self._encode([text for texts in plain for text in texts], [True]))
        except RequestError:  # one of them: each is told of its own
            plain = [[] for _ in requests]
        results: list[list[Sequence] | AssayError] = []
        for (prompts, options, first_index), texts in zip(requests, plain, strict=True):
            made = list(islice(encodings, len(texts))) if texts else None
            try:
                results.append(self.encode(prompts, options, first_index, False, made))
            except AssayError as error:
                results.append(error)
        return results

    def encode(
        self,
        prompts: Seq[Prompt],
        options: Options,
        first_index: int = 0,
        any_length: bool = False,
        plain: list[Encoding] | None = None,
    ) -> list[Sequence]:
        """A sequence for each prompt, or one for each window of it, in order. For a thread off the event loop.

        Raises RequestError for what cannot be scored as asked.
        first_index: what the caller calls the first of these prompts, in messages. any_length: they will be counted and
            not scored, so that none is too long or empty. plain: the encodings, where they are all plain texts.
        """
        asked = options.truncate_prompt_tokens
        limit = None if asked is None else self._limit(asked)
        window_size = self._window_size(options) if options.windowed else None
        if plain is None:
            prompts = [self._pair_as_conversation(prompt) for prompt in prompts]
            texts = [self._text_of(prompt) for prompt in prompts if not isinstance(prompt, TokenPrompt)]
            special = [_adds_special(prompt, options) for prompt in prompts if not isinstance(prompt, TokenPrompt)]
            plain = self._encode(texts, special, with_offsets=window_size is not None)
        encodings = iter(plain)
        sequences: list[Sequence] = []
        for index, prompt in enumerate(prompts):
            if isinstance(prompt, TokenPrompt):
                made = [self._from_ids(prompt.token_ids, limit, options)]
            elif isinstance(prompt, TextPrompt) and window_size is not None:
                made = self._windows(prompt, next(encodings), window_size, options)
            else:
                made = [self._from_text(prompt, next(encodings), limit, options)]
            for sequence in made:
                if not any_length:
                    self._check_length(sequence.num_tokens, first_index + index)
                sequence.index = len(sequences)
                sequence.prompt = index
                sequence.priority = options.priority
                sequences.append(sequence)
        return sequences

    def token_strings(self, token_ids: list[int]) -> list[str]:
        """Each token as the vocabulary writes it; empty where the model has an id that its tokenizer has not."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def text(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        """Raises RequestError for an id that the model does not have."""
        self._from_ids(token_ids, None, Options())
        return self._tokenizer.decode(token_ids, skip_special_tokens)

    def _check_length(self, num_tokens: int, index: int) -> None:
        if not num_tokens:
            raise RequestError(f"Input at index {index} is empty: it has no tokens.", param="input")
        if num_tokens > self._max_model_len:
            raise ContextLengthError(
                f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt "
                f"contains {num_tokens} input tokens (input at index {index}). "
                f"{ContextLengthError.advice}",
                param="input",
            )

    def _limit(self, limit: int) -> int:
        """Tokens to cut to."""
        if limit == -1:
            return self._max_model_len
        if limit < 1:
            raise RequestError(
                f"truncate_prompt_tokens is {limit}; it must be -1 (the model's length) or at least 1.",
                param="truncate_prompt_tokens",
            )
        if limit > self._max_model_len:
            raise RequestError(
                "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size.",
                param="truncate_prompt_tokens",
            )
        return limit

    def _window_size(self, options: Options) -> int:
        """Tokens of a window."""
        size = self._max_model_len if options.window_size is None else options.window_size
        if not 1 <= size <= self._max_model_len:
            raise RequestError(
                f"window_size is {size}; it must lie between 1 and the model's length, {self._max_model_len} tokens.",
                param="window_size",
            )
        if options.window_overlap is not None and options.window_overlap < 0:
            raise RequestError(f"window_overlap is {options.window_overlap}; it cannot be negative.", "window_overlap")
        return size

    def _pair_as_conversation(self, prompt: Prompt) -> Prompt:
        """A pair, where the template has the roles `query` and `document` of a reranker."""
        if not (isinstance(prompt, TextPrompt) and prompt.text_pair is not None):
            return prompt
        if self._chat_template is not None and self._chat_template.reads_pairs:
            task = [] if prompt.instruction is None else [{"role": "system", "content": prompt.instruction}]
            pair = [{"role": "query", "content": prompt.text}, {"role": "document", "content": prompt.text_pair}]
            return ChatPrompt([*task, *pair])
        if self._pairs_need_template:
            raise RequestError(
                "This reranker reads pairs through a template with the roles query and document, and has none; start "
                "it with --chat-template (see docs/rerankers.md).",
                param="input",
            )
        if prompt.instruction is not None:
            raise RequestError("This reranker's pairs have no place for an instruction; leave it out.", "instruction")
        return prompt

    def _text_of(self, prompt: TextPrompt | ChatPrompt, contents: list[str] | None = None) -> str | tuple[str, str]:
        if isinstance(prompt, TextPrompt):
            return prompt.text if prompt.text_pair is None else (prompt.text, prompt.text_pair)
        template = self._chat_template if prompt.template is None else self._requests_template(prompt.template)
        if template is None:
            raise RequestError(
                "This model has no chat template; send `input`, or start the server with --chat-template FILE.",
                param="messages",
            )
        return template.render(prompt, contents)

    def _compiled(self, template: str) -> "ChatTemplate":
        if not self._trusts_templates:
            raise RequestError(
                "`chat_template` is not accepted from requests; the server's --chat-template sets one, and "
                "--trust-request-chat-template accepts them.",
                "chat_template",
            )
        from assay.engine.chat import ChatTemplate

        try:
            return ChatTemplate(template, self._special_tokens)
        except CheckpointError as error:
            raise RequestError(error.message, "chat_template") from None

    def _encode(
        self, texts: list[str | tuple[str, str]], special: list[bool], with_offsets: bool = False
    ) -> list[Encoding]:
        if not texts:
            return []
        if len(set(special)) > 1:  # texts and conversations in one call: only the library can do that
            return [self._encode([text], [adds], with_offsets)[0] for text, adds in zip(texts, special, strict=True)]
        encode = self._tokenizer.encode_batch if with_offsets else self._tokenizer.encode_batch_fast
        try:
            return encode(texts, add_special_tokens=special[0])
        except TypeError:  # what the library makes of text that is no Unicode
            raise RequestError(
                "The text holds a lone surrogate (U+D800 to U+DFFF), which is no Unicode character.", param="input"
            ) from None

    def _from_ids(self, token_ids: list[int], limit: int | None, options: Options) -> Sequence:
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self._vocab_size):
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < self._vocab_size)
            raise RequestError(
                f"Token id {wrong} is out of vocabulary; ids lie between 0 and {self._vocab_size - 1}.", param="input"
            )
        if limit is not None and len(token_ids) > limit:
            token_ids = token_ids[-limit:] if self._side(options) == "left" else token_ids[:limit]
        return Sequence(token_ids)

    def _from_text(
        self, prompt: TextPrompt | ChatPrompt, encoding: Encoding, limit: int | None, options: Options
    ) -> Sequence:
        suffix = self._suffix_of(encoding)
        room = None if limit is None else limit - len(suffix)
        if room is None or len(encoding.ids) <= room:
            return self._sequence(encoding, None, suffix)
        if isinstance(prompt, ChatPrompt):
            encoding = self._cut_conversation(prompt, room, options)
            return self._sequence(encoding, None, suffix)
        return self._sequence(encoding, kept_places(encoding.sequence_ids, room, self._side(options)), suffix)

    def _windows(self, prompt: TextPrompt, encoding: Encoding, size: int, options: Options) -> list[Sequence]:
        """Each knows its characters; a text that fits is one window."""
        suffix = self._suffix_of(encoding)
        if len(encoding.ids) + len(suffix) <= size:
            sequence = self._sequence(encoding, None, suffix)
            sequence.span = Span(0, len(prompt.text if prompt.text_pair is None else prompt.text_pair))
            return [sequence]
        windows = []
        offsets = encoding.offsets
        for places, own in window_places(encoding.sequence_ids, size - len(suffix), options.window_overlap):
            sequence = self._sequence(encoding, places, suffix)
            sequence.span = Span(offsets[own[0]][0], offsets[own[-1]][1])
            windows.append(sequence)
        return windows

    def _suffix_of(self, encoding: Encoding) -> list[int]:
        return [] if self._suffix_id is None or encoding.ids[-1:] == [self._suffix_id] else [self._suffix_id]

    def _sequence(self, encoding: Encoding, places: list[int] | None, suffix: list[int]) -> Sequence:
        """The tokens at these places (None: all), and the suffix."""
        ids, types = encoding.ids, encoding.type_ids
        if places is not None:
            ids, types = [ids[i] for i in places], [types[i] for i in places]
        if max(ids, default=0) >= self._vocab_size:
            raise RequestError(
                f"The tokenizer gives this text the id {max(ids)}, but the model has only {self._vocab_size} "
                "embeddings: the checkpoint's tokenizer knows tokens that its model does not.",
                param="input",
            )
        has_types = self._has_types and any(types)
        return Sequence(ids + suffix, types + [0] * len(suffix) if has_types else None)

    def _cut_conversation(self, prompt: ChatPrompt, limit: int, options: Options) -> Encoding:
        """Cut the messages' contents to one common length, the greatest that fits, and leave the template whole.

        The pooled token is the template's last: cut off, the score would be of something else.
        """
        contents = [text_of(message) for message in prompt.messages]
        offsets = [self._tokenizer.encode(text, add_special_tokens=False).offsets for text in contents]
        special = _adds_special(prompt, options)
        side = self._side(options)

        def encoded(longest: int) -> Encoding:
            cut = [cut_text(text, spans, longest, side) for text, spans in zip(contents, offsets, strict=True)]
            return self._encode([self._text_of(prompt, cut)], [special])[0]

        fits, too_long = 0, max(map(len, offsets), default=0)
        best = encoded(fits)
        if len(best.ids) > limit:
            raise RequestError(
                f"The chat template alone takes {len(best.ids)} tokens; truncate_prompt_tokens allows {limit}.",
                param="truncate_prompt_tokens",
            )
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            candidate = encoded(middle)
            if len(candidate.ids) <= limit:
                fits, best = middle, candidate
            else:
                too_long = middle
        return best

    def _side(self, options: Options) -> TruncationSide:
        return options.truncation_side or self._truncation_side


def _plain_texts(prompts: Seq[Prompt]) -> list[str]:
    """The texts, where these are texts and nothing else; none otherwise."""
    texts = []
    for prompt in prompts:
        if type(prompt) is not TextPrompt or prompt.text_pair is not None:
            return []
        texts.append(prompt.text)
    return texts


def _adds_special(prompt: Prompt, options: Options) -> bool:
    return not isinstance(prompt, ChatPrompt) if options.add_special_tokens is None else options.add_special_tokens
