"""The demo: starts nearcast as its child, sets the stage, lets shoppers walk, counts what arrives.

It knows nearcast by its wire only. Order: sinks, server, catalogue, people (profiles, consents, history), then the
play; at the end everything is taken down again, also after a failure or Ctrl-C.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from clients.client import Nearcast
from clients.demo import stage
from clients.demo.child import Child
from clients.demo.mailbox import Mailbox
from clients.demo.measure import Measure
from clients.demo.play import Keys, Play
from clients.demo.smsbox import SmsBox

_READY_S = 60.0


class Options(NamedTuple):
    """`seconds` of walking (None: until stopped); `port` of the HTTP API and the page (None: any free one)."""

    folder: Path
    seconds: float | None = None
    headless: bool = False
    shoppers: int = 40
    seed: int = 7
    port: int | None = None
    time_lapse: float = 6.0


class DemoFailed(Exception):
    """The demo can't go on; the message says why."""


class Driver:
    """One run: `run` returns the summary, `stop` ends the walking early and in order."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self.measure = Measure()
        self.child: Child | None = None
        self._options = options
        self._say = say
        self._stopped = asyncio.Event()
        self._walking = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()

    async def wait_walking(self) -> None:
        """Until the shoppers are on their way."""
        await self._walking.wait()

    async def restart_server(self) -> None:
        """SIGKILL the server in the middle of its work and start it again on the same data, ports and secrets."""
        if self.child is None:
            raise RuntimeError("the demo is not running")
        await self.child.kill()
        await self.child.start()
        async with Nearcast(self.child.api_url, self.child.key("admin")) as admin:
            await _until_ready(admin, self.child)

    async def run(self) -> dict[str, Any]:
        options, measure = self._options, self.measure
        async with AsyncExitStack() as stack:
            play = Play(measure, self._say, options.seed, headless=options.headless)
            account, auth_token = "AC" + secrets.token_hex(16), secrets.token_urlsafe(24)
            smsbox = await stack.enter_async_context(SmsBox(account, auth_token, play.got_sms, play.sms_delivered))
            mailbox = await stack.enter_async_context(Mailbox(play.got_mail))
            child = self.child = Child(options.folder, options.port, (smsbox.url, account, auth_token), mailbox.port)
            stack.push_async_callback(child.stop)
            await child.start()
            keys = Keys(
                *[
                    await stack.enter_async_context(Nearcast(child.api_url, child.key(role)))
                    for role in ("intake", "pos", "admin")
                ]
            )
            # Reading the purchases takes as long as the server's start.
            prepared = asyncio.create_task(
                asyncio.to_thread(stage.prepare, options.shoppers, options.seed), name="prepare the stage"
            )
            await _until_ready(keys.admin, child)
            scene = await prepared
            await stage.set_up(scene, keys.intake, keys.admin, measure, child.gateway_url, self._say)
            self._say(f"Open {child.api_url}/demo/")
            ended = asyncio.create_task(child.ended(), name="watch the server")
            walking = asyncio.create_task(
                play.perform(scene, child, keys, options.seconds, options.time_lapse, self._stopped, self._walking),
                name="the play",
            )
            try:
                await asyncio.wait((ended, walking), return_when=asyncio.FIRST_COMPLETED)
                if not walking.done():
                    raise DemoFailed(f"nearcast ended with exit code {ended.result()}:\n{child.log_tail()}")
                await walking
            finally:
                ended.cancel()
                walking.cancel()
                await asyncio.gather(ended, walking, return_exceptions=True)
            return measure.summary()


async def _until_ready(admin: Nearcast, child: Child) -> None:
    ended = asyncio.create_task(child.ended(), name="server ended early")
    try:
        async with asyncio.timeout(_READY_S):
            while not await admin.ready():
                if ended.done():
                    raise DemoFailed(f"nearcast ended with exit code {ended.result()}:\n{child.log_tail()}")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DemoFailed(f"nearcast was not ready within {_READY_S:.0f} s:\n{child.log_tail()}") from None
    finally:
        ended.cancel()
