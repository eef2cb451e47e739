"""Scripts that share round trips, on a real store."""

import asyncio

import pytest
from redis.asyncio import Redis
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
