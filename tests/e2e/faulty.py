"""`assay`, with a fault built in: `python -m tests.e2e.faulty FAULT SWITCH serve MODEL …`. Knows no test.

SWITCH is a file. The faults of the device ask it: without it all is well, `hold` holds the device, `fail` breaks it.
"""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay.cli import main
from assay.engine.encoder import PromptEncoder
from assay.engine.runner import Batch, ModelRunner

BAD_ID = 9  # of the token that the device cannot take
SECRET = "hunter2"  # a word that stands in no line of code that a traceback shows
ROOM = 100  # tokens that fit into the memory of a device that has little


class Panic(BaseException):
    """As the tokenizers' library raises when its Rust code panics."""


def device(switch: Path) -> None:
    run = ModelRunner.run

    def word() -> str:
        return switch.read_text() if switch.exists() else ""

    def switched(self: ModelRunner, batch: Batch) -> Any:
        while word() == "hold":
            time.sleep(0.01)
        if word() == "fail":
            raise RuntimeError("the device is gone")
        return run(self, batch)

    ModelRunner.run = switched  # type: ignore[method-assign]


def bad_input(switch: Path) -> None:
    run = ModelRunner.run

    def flawed(self: ModelRunner, batch: Batch) -> Any:
        if any(BAD_ID in sequence.token_ids for sequence in batch.sequences):
            raise ValueError(SECRET)
        return run(self, batch)

    ModelRunner.run = flawed  # type: ignore[method-assign]


def little_memory(switch: Path) -> None:
    run = ModelRunner.run

    def small(self: ModelRunner, batch: Batch) -> Any:
        if batch.packed.num_tokens > ROOM:
            raise MemoryError
        return run(self, batch)

    ModelRunner.run = small  # type: ignore[method-assign]


def tokenizer(switch: Path) -> None:
    """Texts with the word `panic` raise; those with `hang` never come back."""
    encode = PromptEncoder.encode

    def faulty(self: PromptEncoder, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        texts = " ".join(getattr(prompt, "text", "") for prompt in prompts)
        if "panic" in texts:
            raise Panic(SECRET)
        if "hang" in texts:
            threading.Event().wait()
        return encode(self, prompts, *args, **kwargs)

    PromptEncoder.encode = faulty  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[Path], None]] = {
    "device": device,
    "bad-input": bad_input,
    "little-memory": little_memory,
    "tokenizer": tokenizer,
}

if __name__ == "__main__":
    _, fault, switch, *arguments = sys.argv
    FAULTS[fault](Path(switch))
    sys.argv = ["assay", *arguments]
    main()
