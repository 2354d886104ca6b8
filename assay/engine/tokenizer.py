"""Prompts to sequences: a checkpoint's own tokenizer, in threads, off the event loop. Knows no model and no queue."""

import asyncio
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from assay.errors import CheckpointError, ContextLengthError, RequestError
from assay.model.weights import read_json
from assay.sequence import Options, Prompt, Sequence, TextPrompt, TokenPrompt, TruncationSide

# tokenizer_config.json writes "no limit" as 1e30.
_NO_LIMIT = 1e20


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """A tokenizer and what its config says. `model_max_length` is None where the config sets no real limit."""

    tokenizer: Tokenizer
    model_max_length: int | None
    truncation_side: TruncationSide


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a checkpoint folder. Raises CheckpointError when it is missing or broken."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    limit = config.get("model_max_length")
    return TextTokenizer(
        tokenizer,
        model_max_length=int(limit) if isinstance(limit, int | float) and limit < _NO_LIMIT else None,
        truncation_side="left" if config.get("truncation_side") == "left" else "right",
    )


class TokenizerPool:
    """Threads that turn the prompts of a request into sequences.

    vocab_size: ids at or above it have no row in the model's embedding.
    max_model_len: longest sequence, special tokens included.
    """

    def __init__(self, text_tokenizer: TextTokenizer, vocab_size: int, max_model_len: int, threads: int) -> None:
        self._tokenizer = text_tokenizer.tokenizer
        self._truncation_side = text_tokenizer.truncation_side
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="assay-tokenizer")

    async def encode(self, prompts: Seq[Prompt], options: Options) -> list[Sequence]:
        """One sequence a prompt, in order. Raises RequestError for what cannot be scored as asked."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.encode_now, prompts, options)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def encode_now(self, prompts: Seq[Prompt], options: Options) -> list[Sequence]:
        """The same in the calling thread."""
        limit = self._limit(options)
        texts = [_text_of(prompt) for prompt in prompts if isinstance(prompt, TextPrompt)]
        encodings = iter(self._encode(texts, options.add_special_tokens))
        sequences = []
        for index, prompt in enumerate(prompts):
            if isinstance(prompt, TokenPrompt):
                sequence = self._from_ids(prompt.token_ids, limit, options)
            else:
                sequence = self._from_text(prompt, next(encodings), limit, options)
            if not sequence.num_tokens:
                raise RequestError(f"Input at index {index} is empty: it has no tokens.", param="input")
            if sequence.num_tokens > self._max_model_len:
                raise ContextLengthError(
                    f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt "
                    f"contains {sequence.num_tokens} input tokens (input at index {index}). Shorten it, or set "
                    "truncate_prompt_tokens to -1 to cut it.",
                    param="input",
                )
            sequence.index = index
            sequence.priority = options.priority
            sequences.append(sequence)
        return sequences

    def _limit(self, options: Options) -> int | None:
        """Tokens to cut to, or None where the caller wants no cutting."""
        limit = options.truncate_prompt_tokens
        if limit is None:
            return None
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

    def _encode(self, texts: list[str | tuple[str, str]], add_special_tokens: bool) -> list[Encoding]:
        if not texts:
            return []
        try:
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except TypeError:  # what the library makes of text that is no Unicode
            raise RequestError(
                "The text holds a lone surrogate (U+D800 to U+DFFF), which is no Unicode character.", param="input"
            ) from None

    def _from_ids(self, token_ids: list[int], limit: int | None, options: Options) -> Sequence:
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise RequestError(
                    f"Token id {token_id} is out of vocabulary; ids lie between 0 and {self._vocab_size - 1}.",
                    param="input",
                )
        if limit is not None and len(token_ids) > limit:
            token_ids = token_ids[-limit:] if self._side(options) == "left" else token_ids[:limit]
        return Sequence(token_ids)

    def _from_text(self, prompt: TextPrompt, encoding: Encoding, limit: int | None, options: Options) -> Sequence:
        if limit is not None and len(encoding.ids) > limit:
            encoding = self._truncated(prompt, limit, options)
        types = encoding.type_ids
        return Sequence(encoding.ids, types if any(types) else None)

    def _truncated(self, prompt: TextPrompt, limit: int, options: Options) -> Encoding:
        """Cut the texts, then add the special tokens again, so that none of them is lost and token types fit."""
        tokenizer, special, is_pair = self._tokenizer, options.add_special_tokens, prompt.text_pair is not None
        room = limit - (tokenizer.num_special_tokens_to_add(is_pair) if special else 0)
        if room < 1:
            raise RequestError(
                f"truncate_prompt_tokens is {limit}, which leaves no room beside this model's special tokens.",
                param="truncate_prompt_tokens",
            )
        first = tokenizer.encode(prompt.text, add_special_tokens=False)
        second = tokenizer.encode(prompt.text_pair, add_special_tokens=False) if prompt.text_pair is not None else None
        lengths = longest_first(len(first.ids), len(second.ids) if second else 0, room)
        first.truncate(lengths[0], direction=self._side(options))
        if second is not None:
            second.truncate(lengths[1], direction=self._side(options))
        return tokenizer.post_process(first, second, special)

    def _side(self, options: Options) -> TruncationSide:
        return options.truncation_side or self._truncation_side


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of a pair cut to `room` by taking tokens off the longer text, as transformers' `longest_first` does."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def _text_of(prompt: TextPrompt) -> str | tuple[str, str]:
    return prompt.text if prompt.text_pair is None else (prompt.text, prompt.text_pair)
