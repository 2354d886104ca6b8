"""Room in the queue, counted in tokens: who may enter, who is refused, who waits in line. Knows no threads."""

import asyncio
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq

from assay.config import WhenFull
from assay.errors import OverloadedError, QueueFullError, TooLargeError
from assay.sequence import Prompt, TextPrompt, TokenPrompt

Line = deque[tuple[int, asyncio.Future[None]]]
"""Who waits: for how much room, and what ends the wait."""

_CHARACTERS_PER_TOKEN = 4


class Admission:
    """Tokens that are being tokenized and tokens that wait for the device share `limit`.

    queued: tokens that wait for the device now. when_full: refuse with 429 or 503, or stand in line, first come first
    served. tokenizing: tokens admitted and not yet queued, as estimated from their texts.
    """

    def __init__(self, limit: int, when_full: WhenFull, queued: Callable[[], int]) -> None:
        self.limit = limit
        self.tokenizing = 0
        self._when_full = when_full
        self._queued = queued
        self._front: Line = deque()  # of those that were admitted before; all of the line is behind them
        self._line: Line = deque()

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._front) + len(self._line)

    def has_room(self, tokens: int, at_front: bool = False) -> bool:
        """Whether `enter` would neither wait nor refuse."""
        return not self._front and (at_front or not self._line) and self._fits(tokens)

    async def enter(self, tokens: int, at_front: bool = False) -> None:
        """Take room for `tokens`, until `leave`. Raises TooLargeError, QueueFullError or OverloadedError.

        at_front: it was admitted before, by an estimate that was too low.
        """
        if tokens > self.limit:
            raise TooLargeError(
                f"The request has about {tokens} tokens, more than the whole queue holds ({self.limit}); split it."
            )
        if self.has_room(tokens, at_front):
            self.tokenizing += tokens
            return
        message = f"The queue is full ({self.limit} tokens wait); try again later."
        match self._when_full:
            case "429":
                raise QueueFullError(message)
            case "503":
                raise OverloadedError(message)
            case "wait":
                await self._stand_in(self._front if at_front else self._line, tokens)

    async def _stand_in(self, line: Line, tokens: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (tokens, turn)
        line.append(place)
        try:
            await turn
        except BaseException:
            if place in line:
                line.remove(place)
                self.wake()  # those behind it may fit
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(tokens)  # its turn came in the moment that it gave up
            raise

    def leave(self, tokens: int) -> None:
        """What `enter` took is queued, or gone. Those in line hear of it at the end of this turn of the loop: who has
        been tokenized leaves, and enters to be queued, in one go, and no other takes that room meanwhile.
        """
        self.tokenizing -= tokens
        if self._front or self._line:
            asyncio.get_running_loop().call_soon(self.wake)

    def wake(self) -> None:
        """Room may have come: let in whoever fits, in order."""
        while (line := self._front or self._line) and self._fits(line[0][0]):
            tokens, turn = line.popleft()
            if not turn.done():
                self.tokenizing += tokens
                turn.set_result(None)

    def dismiss(self, error: Exception) -> None:
        """Tell everyone in line that there will be no turn."""
        while line := self._front or self._line:
            _, turn = line.popleft()
            if not turn.done():
                turn.set_exception(error)

    def _fits(self, tokens: int) -> bool:
        return self._queued() + self.tokenizing + tokens <= self.limit


def estimated_tokens(prompts: Seq[Prompt], longest: int) -> int:
    """What stands for the prompts' tokens until they are counted. longest: of one prompt, in tokens."""
    total = 0
    for prompt in prompts:
        if isinstance(prompt, TokenPrompt):
            tokens = len(prompt.token_ids)
        elif isinstance(prompt, TextPrompt):
            characters = len(prompt.text) + len(prompt.text_pair or "")
            tokens = characters // _CHARACTERS_PER_TOKEN + 1
        else:
            characters = sum(len(str(message.get("content"))) for message in prompt.messages)
            tokens = characters // _CHARACTERS_PER_TOKEN + 1
        total += min(tokens, longest)
    return total
