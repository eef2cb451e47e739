"""Publishing over HTTP to what everybody may listen to: a store's channel, or a zone's."""

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from channels.gateway.permissions import public
from nearcast.errors import InputError, NotFound
from nearcast.events import Id
from server.api.auth import Allow, Behind
from server.api.bodies import accepts, answer, read

router = APIRouter(tags=["channels"])

#: As much as a client may send; a publication is kept for each channel a few hundred times.
_MAX_DATA_BYTES = 64 * 1024


class NewPublication(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`data` is any JSON. A device that is behind may get only the newest with the same `key`. The same `once` again
    publishes nothing for a day.
    """

    data: object
    key: Id | None = None
    once: Id | None = None


@router.post(
    "/v1/channels/{channel:path}/publications",
    dependencies=[Depends(Allow("admin"))],
    openapi_extra=accepts(
        NewPublication, {"store news": NewPublication(data={"text": "Fresh bread"}, once="bread-0900")}
    ),
)
async def publish(channel: str, request: Request, services: Behind) -> Response:
    """Publish to `store:<id>` or `zone:<id>`: everybody who listens gets `data`. Answers with its place there.

    Nobody checks that there is such a store or zone, but devices can listen only to those that there are.
    """
    # Personal and staff channels carry what was decided and re-checked, and nothing else.
    if not public(channel):
        raise NotFound("unknown_channel", "what can be published to is `store:<id>` and `zone:<id>`")
    publication = await read(request, NewPublication)
    data = msgspec.json.encode(publication.data)
    if len(data) > _MAX_DATA_BYTES:
        raise InputError("publication_too_large", f"`data` may have {_MAX_DATA_BYTES} bytes, this has {len(data)}")
    if publication.key is not None and publication.once is not None:
        raise InputError("malformed_body", "a publication has `key` or `once`, not both", "$.once")
    epoch, offset = await services.publish(channel, data, key=publication.key or "", once=publication.once)
    return answer({"epoch": epoch, "offset": offset})
