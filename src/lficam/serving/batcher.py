"""Requests that come at the same time become one batch."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from lficam import portable
from lficam.contract import TrainedClassifier
from lficam.errors import LficamError
from lficam.predict import Explanation, explain_images


class BusyError(LficamError):
    """The queue is full; ask again later."""


@dataclass
class _Asked:
    content: bytes
    class_name: str | None
    answer: asyncio.Future[Explanation]


class Batcher:
    """Explain pictures from many requests, as many at a time as are waiting, in one thread.

    Args:
        model: trained.
        waiting: how many may wait; one more is `BusyError`.
        batch: how many at most are explained together.
    """

    def __init__(self, model: TrainedClassifier, waiting: int = 32, batch: int = 16) -> None:
        self.model, self.batch = model, batch
        self.lock = threading.Lock()  # the page asks the same model
        self._queue: asyncio.Queue[_Asked | None] = asyncio.Queue(waiting)

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return self._queue.qsize()

    async def ask(self, content: bytes, class_name: str | None = None) -> Explanation:
        """Explain the picture of a file's bytes.

        Raises:
            BusyError: too many wait already.
            LficamError: no picture, or a class that the model does not know.
        """
        asked = _Asked(content, class_name, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(asked)
        except asyncio.QueueFull:
            raise BusyError("server: busy; ask again in a second.") from None
        return await asked.answer

    async def run(self) -> None:
        """Answer until `stop`."""
        while (first := await self._queue.get()) is not None:
            asked, last = [first], False
            while len(asked) < self.batch and not self._queue.empty():
                following = self._queue.get_nowait()
                if following is None:
                    last = True
                    break
                asked.append(following)
            wanted = [one for one in asked if not one.answer.done()]  # who waited too long is gone
            answers = await asyncio.to_thread(self._explain, wanted)
            for one, answer in zip(wanted, answers, strict=True):
                if one.answer.done():
                    continue
                if isinstance(answer, Exception):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)
            if last:
                return

    async def stop(self) -> None:
        """Let `run` end when all who wait are answered."""
        await self._queue.put(None)

    def _explain(self, asked: Sequence[_Asked]) -> list[Explanation | Exception]:
        """One after the other by class, since a batch has one."""
        answers: list[Explanation | Exception] = [LficamError("server: not answered.")] * len(asked)
        by_class = defaultdict(list)
        for place, one in enumerate(asked):
            try:
                picture = portable.decode(BytesIO(one.content), "picture")
            except portable.PortableError as error:
                answers[place] = LficamError(str(error))
                continue
            by_class[one.class_name].append((place, picture))
        for class_name, members in by_class.items():
            try:
                with self.lock:
                    found = list(explain_images(self.model, [picture for _, picture in members], class_name))
            except Exception as error:  # whatever it is, it is the answer of these requests and not the end of all
                found = [error] * len(members)  # type: ignore[list-item]
            for (place, _), result in zip(members, found, strict=True):
                answers[place] = result
        return answers
