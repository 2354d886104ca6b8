"""Rows to prompts: which columns hold the texts, and which rows have none. Knows no tokenizer."""

from dataclasses import dataclass

from assay.errors import ConfigError
from assay.files.blocks import Block
from assay.files.readers import Reader, choose_text_column
from assay.sequence import TextPrompt


@dataclass(frozen=True, slots=True)
class TextColumns:
    """text, text_pair: what the model reads. row_id: what reports call a row. guessed: nobody said which is text."""

    text: str
    text_pair: str | None = None
    row_id: str | None = None
    guessed: bool = False

    @classmethod
    def of(cls, reader: Reader, text: str | None, text_pair: str | None, row_id: str | None) -> "TextColumns":
        """The columns that were asked for, or the one there is. Raises ConfigError."""
        for asked, option in ((text_pair, "--text-pair-column"), (row_id, "--id-column")):
            if asked is not None:
                choose_text_column(reader.columns, asked, option=option)
        left = [name for name in reader.texts if name not in (text_pair, row_id)]
        chosen = choose_text_column(reader.columns, text, left)
        if text_pair == chosen:
            raise ConfigError(f"Both texts of a pair are in {chosen!r}; name two columns.")
        return cls(chosen, text_pair, row_id, guessed=text is None and len(reader.columns) > 1)

    def prompts(self, block: Block) -> tuple[list[TextPrompt | None], dict[int, str]]:
        """A prompt a row, None for one that has none, and what is wrong with those, by their places."""
        problems = dict(block.problems)
        texts = block.column(self.text)
        pairs = block.column(self.text_pair) if self.text_pair is not None else None
        prompts: list[TextPrompt | None] = []
        for place, text in enumerate(texts):
            pair = None if pairs is None else pairs[place]
            wrong = _wrong(self.text, text) or (_wrong(self.text_pair, pair) if self.text_pair is not None else "")
            if wrong:
                problems.setdefault(place, wrong)
            prompts.append(None if place in problems else TextPrompt(text, pair))
        return prompts, problems


def _wrong(column: str, text: object) -> str:
    if isinstance(text, str):
        return "" if text and not text.isspace() else f"{column!r} is empty"
    if text is None:
        return f"{column!r} is null"
    return f"{column!r} is {repr(text)[:60]}, of type {type(text).__name__}, and no text"
