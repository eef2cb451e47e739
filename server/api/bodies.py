"""Bodies in and out: decoded and encoded by msgspec, and described for OpenAPI from the same types."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from fastapi import Request, Response

from nearcast.errors import InputError
from nearcast.events import Id
from offers.wording import explained

_T = TypeVar("_T")
_REF = "#/components/schemas/{name}"
#: JSON as OpenAPI documents hold it.
Json = dict[str, object]


async def read(request: Request, kind: type[_T]) -> _T:
    """The request's JSON body as `kind`. Raises `InputError`, naming the field."""
    body = await request.body()
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        # In the words that a file with the same mistake would be refused with.
        where = str(error).partition(" - at ")[2]
        raise InputError("malformed_body", explained(str(error), kind)[1], where.strip("`")) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        detail, _, where = str(error).partition(" - at ")
        raise InputError("malformed_body", detail, where.strip("`")) from None


def checked_id(value: str, where: str) -> str:
    """An id from a path, under the same rules as one in a body. Raises `InputError`."""
    try:
        return msgspec.convert(value, Id)
    except msgspec.ValidationError as error:
        raise InputError("malformed_id", str(error), where) from None


def answer(body: object, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def accepts(kind: object, examples: Mapping[str, object], media_type: str = "application/json") -> Json:
    """OpenAPI for a route's JSON body: its schema and examples by name, each of which must decode as `kind`."""
    (schema,), components = msgspec.json.schema_components([kind], schema_hook=_any_value, ref_template=_REF)
    shown = {name: {"value": msgspec.to_builtins(example)} for name, example in examples.items()}
    content = {media_type: {"schema": schema, "examples": shown}}
    return {"requestBody": {"required": True, "content": content}, "x-components": components}


def _any_value(kind: type) -> Json:
    """`object` stands for JSON that is passed on unseen."""
    if kind is not object:
        raise NotImplementedError
    return {"description": "Any JSON."}
