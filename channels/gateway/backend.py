"""What the gateway knows of its clients, and what it needs from the server that it runs in."""

from typing import Literal, NamedTuple, Protocol

Role = Literal["customer", "staff", "demo"]


class Identity(NamedTuple):
    """Who a token says that a client is. `channels` are those it is subscribed to; `client` names the connection."""

    sub: str
    role: Role
    channels: tuple[str, ...]
    client: str = ""


class Backend(Protocol):
    """Answers clients. Calls of one connection come one after the other, those of several at the same time."""

    async def exists(self, channel: str) -> bool:
        """Whether a public channel is that of a store or a zone that there is. Others may not take up room.

        Raises `Unavailable` while that can't be told.
        """
        ...

    async def rpc(self, identity: Identity, method: str, data: bytes) -> bytes:
        """JSON in, JSON out. `InputError` becomes an error reply, `Unavailable` a reply that asks to try again."""
        ...

    async def event(self, identity: Identity, data: bytes) -> None:
        """An event that the client sent without waiting for an answer; `InputError` and `Unavailable` drop it."""
        ...
