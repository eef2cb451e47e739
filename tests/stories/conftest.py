"""One server for each kind of event log, with the town of the stories; and the town as one story sees it."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from server.log.kafka import KafkaOptions
from tests.channels.sms_provider import ACCOUNT, TOKEN, SmsProvider
from tests.services.kafka import delete_topics
from tests.stories.people import Town
from tests.stories.town import TOWN
from tests.system.process import Server

PROMOTIONS = Path(__file__).parent / "promotions.yaml"


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def kafka(request: pytest.FixtureRequest) -> KafkaOptions | None:
    """The broker that is the event log; None: the log is the embedded Valkey."""
    if request.param == "embedded":
        return None
    options: KafkaOptions = request.getfixturevalue("kafka_session_options")
    return options


@pytest.fixture(scope="module")
def sms() -> Iterator[SmsProvider]:
    provider = SmsProvider()
    yield provider
    provider.close()


@pytest.fixture(scope="module")
async def server(
    kafka: KafkaOptions | None, sms: SmsProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("stories")
    town = folder / "town.json"
    town.write_bytes(msgspec.json.encode(TOWN))
    settings = {
        "world_files": json.dumps([str(town), str(PROMOTIONS)]),
        "personal_prices": "true",
        "promotions_topic": "true",
        "sms_url": sms.url,
        "sms_account": ACCOUNT,
        "sms_auth_token": TOKEN,
        "sms_from": "+4366000000",
    }
    if kafka is not None:
        await delete_topics(kafka.bootstrap)
        settings |= {"kafka": kafka.bootstrap, "kafka_idempotent": str(kafka.idempotent).lower()}
    async with Server(folder, **settings) as server:
        yield server
        assert await server.stop() == 0
    assert "Traceback" not in server.log


@pytest.fixture
async def town(server: Server, kafka: KafkaOptions | None, sms: SmsProvider) -> AsyncIterator[Town]:
    """What one story plays with. When it is over everybody's devices are off; what is known of them stays."""
    async with server.client() as office, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        town = Town(server, kafka, office, http, sms)
        yield town
        await town.is_over()
