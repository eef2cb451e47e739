"""Scripts of the state store, called by many at once: calls that wait at the same time share a round trip.

A call that is alone goes at once, as it would by itself. While earlier ones are under way, later ones gather and go
together, each still atomic and answered by itself. A caller who gives up changes nothing for the others: what they had
called may run all the same.
"""

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

#: Round trips under way at once, and calls in one of them.
_TRIPS = 4
_CALLS = 64

Argument = str | int | float | bytes


class SharedScript:
    """One Lua script. Calls raise what redis-py raises."""

    def __init__(self, redis: Redis, script: str) -> None:
        self._redis = redis
        self._script = script
        self._sha = redis.register_script(script).sha
        self._waiting: list[tuple[list[Argument], asyncio.Future[object]]] = []
        #: Apart from the tasks: one that has looked for the last time is under way no more, though not done yet.
        self._under_way = 0
        self._trips: set[asyncio.Task[None]] = set()

    async def __call__(self, keys: Sequence[str], args: Sequence[Argument]) -> object:
        """The script's answer."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(([len(keys), *keys, *args], answer))
        if self._under_way < _TRIPS:
            self._under_way += 1
            trip = asyncio.create_task(self._travel(), name="shared script")
            self._trips.add(trip)
            trip.add_done_callback(self._trips.discard)
        return await answer

    async def _travel(self) -> None:
        try:
            while self._waiting:
                calls, self._waiting = self._waiting[:_CALLS], self._waiting[_CALLS:]
                await self._answer(calls)
        finally:
            self._under_way -= 1

    async def _answer(self, calls: Sequence[tuple[list[Argument], asyncio.Future[object]]]) -> None:
        try:
            answers = await self._call([arguments for arguments, _ in calls])
        except BaseException as error:
            for _, waits in calls:
                if not waits.done():
                    waits.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise
            return
        for (_, waits), answer in zip(calls, answers, strict=True):
            if waits.done():
                continue
            if isinstance(answer, Exception):
                waits.set_exception(answer)
            else:
                waits.set_result(answer)

    async def _call(self, calls: Sequence[list[Argument]]) -> list[object]:
        answers = await self._together(calls)
        unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            # The store was restarted, or is new. What it didn't know it has not run.
            await self._redis.script_load(self._script)
            for n, answer in zip(unknown, await self._together([calls[n] for n in unknown]), strict=True):
                answers[n] = answer
        return answers

    async def _together(self, calls: Sequence[list[Argument]]) -> list[object]:
        pipe = self._redis.pipeline(transaction=False)
        for arguments in calls:
            pipe.execute_command("EVALSHA", self._sha, *arguments)
        answers: list[object] = await pipe.execute(raise_on_error=False)
        return answers
