"""Scripts that share round trips, on a real store."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Away
from redis.exceptions import ResponseError

from server.scripts import SharedScript

ECHO = "if ARGV[1] == 'bad' then return redis.error_reply('bad') end redis.call('INCR', KEYS[1]) return ARGV[1]"


async def test_each_has_its_own_answer(redis: Redis) -> None:
    """A thousand at once, in far fewer round trips; an error is that of the call alone."""
    script = SharedScript(redis, ECHO)
    texts = ["bad" if n % 10 == 0 else f"text-{n}" for n in range(1_000)]
    before = (await redis.info("stats"))["total_reads_processed"]
    answers = await asyncio.gather(*(script(["n"], [text]) for text in texts), return_exceptions=True)
    trips = (await redis.info("stats"))["total_reads_processed"] - before
    for text, answer in zip(texts, answers, strict=True):
        assert isinstance(answer, ResponseError) if text == "bad" else answer == text.encode()
    assert int(await redis.get("n") or 0) == 900
    assert trips < 200


async def test_a_store_that_forgot_the_script(redis: Redis) -> None:
    """It is told again, and what it didn't know runs once."""
    script = SharedScript(redis, ECHO)
    for _ in range(2):
        await redis.script_flush()
        answers = await asyncio.gather(*(script(["n"], [n]) for n in range(100)))
        assert answers == [str(n).encode() for n in range(100)]
    assert int(await redis.get("n") or 0) == 200


async def test_callers_who_give_up(redis: Redis) -> None:
    """The others get their own answers all the same."""
    script = SharedScript(redis, ECHO)
    calls = [asyncio.create_task(script(["n"], [n])) for n in range(300)]
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for n, answer in enumerate(answers):
        assert isinstance(answer, asyncio.CancelledError) if n % 3 == 0 else answer == str(n).encode()
    assert await script(["n"], ["after"]) == b"after"


async def test_a_store_that_is_away() -> None:
    """Everybody is told, also those who come later."""
    async with Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)) as nowhere:
        script = SharedScript(nowhere, ECHO)
        for _ in range(2):
            answers = await asyncio.gather(*(script(["n"], [n]) for n in range(200)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {Away}
        with pytest.raises(Away):
            await script(["n"], ["alone"])


class _Together(Redis):
    """The first four round trips come back in the same turn of the event loop."""

    back = 0
    all_back: asyncio.Event

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "Pipeline":
        return _AtOnce(self, self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _AtOnce(Pipeline):
    def __init__(self, redis: _Together, *rest: Any) -> None:
        super().__init__(*rest)
        self._of: _Together = redis

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        answers = await super().execute(raise_on_error)
        self._of.back += 1
        if self._of.back == 4:
            asyncio.get_running_loop().call_soon(self._of.all_back.set)
        await self._of.all_back.wait()
        return answers


async def test_called_again_at_once(redis: Redis) -> None:
    """Who is answered when all trips end together, and calls again in the same turn, is not left waiting."""
    async with _Together(connection_pool=redis.connection_pool) as at_once:
        at_once.all_back = asyncio.Event()
        script = SharedScript(at_once, ECHO)
        await redis.script_load(ECHO)

        async def twice(n: int) -> object:
            await script(["n"], [n])
            return await script(["n"], [f"{n} again"])

        calls = []
        for n in range(4):
            calls.append(asyncio.create_task(twice(n) if n == 0 else script(["n"], [n])))
            await asyncio.sleep(0)
        answers = await asyncio.wait_for(asyncio.gather(*calls), 10)
    assert answers == [b"0 again", b"1", b"2", b"3"]
