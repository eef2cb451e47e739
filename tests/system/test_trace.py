"""How long a message took from its event to the device: as metrics, and as the message's own trace."""

import asyncio
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from channels.trace import STAGES
from clients.client import Device
from nearcast.messages import Push
from tests.system.process import KEYS, Server, eventually
from tests.system.test_serve import DOCUMENT, near, shopper


class Measured:
    """What `/metrics` says of the way of messages: how many, and how many seconds in all, by stage and by end."""

    def __init__(self, text: str) -> None:
        self.counts: dict[str, float] = {}
        self.sums_s: dict[str, float] = {}
        wanted = {"nearcast_delivery_stage_seconds": "stage", "nearcast_event_to_device_seconds": "until"}
        for family in text_string_to_metric_families(text):
            if label := wanted.get(family.name):
                for sample in family.samples:
                    name = f"{family.name} {sample.labels[label]}"
                    if sample.name.endswith("_count"):
                        self.counts[name] = sample.value
                    elif sample.name.endswith("_sum"):
                        self.sums_s[name] = sample.value

    @classmethod
    async def of(cls, server: Server) -> "Measured":
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
            return cls((await http.get("/metrics")).text)

    def stages_s(self) -> list[float]:
        return [self.sums_s[f"nearcast_delivery_stage_seconds {stage}"] for stage in STAGES]

    def until_s(self, end: str) -> float:
        return self.sums_s[f"nearcast_event_to_device_seconds {end}"]


async def _delivery(server: Server, push: Push, customer: str = "ann") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {KEYS['admin']}"}
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, headers=headers) as http:
        answer = await http.get(f"/v1/customers/{customer}/messages/{push.message}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


async def test_a_message_tells_where_its_time_went(tmp_path: Path) -> None:
    """Each stage is there once, none is negative, and together they are the whole way from the log to the device; the
    trace says of the one message what the metrics say of all, and so does the log, at its debug level."""
    async with Server(tmp_path, log_level="debug") as server, server.client() as admin:
        await admin.put_catalogue(DOCUMENT)
        await shopper(admin, "ann", "websocket")
        async with Device(server.gateway, server.token("ann")) as phone:
            await admin.events([near("ann", "1")])
            async with asyncio.timeout(20):
                push = await anext(aiter(phone))

            async def sent() -> bool:
                return bool((await _delivery(server, push))["state"] == "sent")

            await eventually(sent)
            before = await Measured.of(server)
            assert await phone.ack(push)
            after = await Measured.of(server)

        delivery = await _delivery(server, push)
        trace = delivery["trace"]
        assert (delivery["message"], delivery["channel"], delivery["given_up"]) == (push.message, "websocket", [])
        assert [mark["stage"] for mark in trace] == ["arrived", *STAGES]
        times_ms = [mark["at_ms"] for mark in trace]
        assert times_ms == sorted(times_ms)
        assert push.at_ms <= times_ms[0] + 60_000

        stages = [f"nearcast_delivery_stage_seconds {stage}" for stage in STAGES]
        assert {name: after.counts[name] for name in stages} == dict.fromkeys(stages, 1.0)
        assert before.counts[stages[-1]] == 0
        lengths_s = [(end - begin) / 1000 for begin, end in pairwise(times_ms)]
        assert after.stages_s() == pytest.approx(lengths_s)
        assert after.until_s("socket") == pytest.approx(sum(after.stages_s()[:-1]))
        assert after.until_s("ack") == pytest.approx(sum(after.stages_s()))
        assert after.until_s("ack") == pytest.approx((times_ms[-1] - times_ms[0]) / 1000)
        assert await server.stop() == 0
    said = re.findall(rf"message={push.message} (.*)", server.log)
    assert sorted(line.split()[0] for line in said) == ["acknowledged", "handed", "on"]
