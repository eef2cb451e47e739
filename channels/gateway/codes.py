"""Centrifuge's error and disconnect codes, as data.

Errors answer one command and leave the connection open; a `temporary` one asks the client to try again. Disconnects
close it, and their range tells an SDK what to do: 3000-3499 and 4000-4499 reconnect, 3500-3999 and 4500-4999 give up.
Source: the published table of Centrifugo, https://centrifugal.dev/docs/server/codes.
"""

from typing import NamedTuple


class ErrorCode(NamedTuple):
    """The answer to a command that failed."""

    code: int
    message: str
    temporary: bool = False


class Disconnect(NamedTuple):
    """Why a connection is closed: code and reason of the WebSocket close frame."""

    code: int
    reason: str

    @property
    def reconnect(self) -> bool:
        """True if SDKs reconnect after this code."""
        return 3000 <= self.code < 3500 or 4000 <= self.code < 4500


INTERNAL = ErrorCode(100, "internal server error", temporary=True)
UNKNOWN_CHANNEL = ErrorCode(102, "unknown channel")
PERMISSION_DENIED = ErrorCode(103, "permission denied")
METHOD_NOT_FOUND = ErrorCode(104, "method not found")
LIMIT_EXCEEDED = ErrorCode(106, "limit exceeded")
MALFORMED = ErrorCode(107, "bad request")
NOT_AVAILABLE = ErrorCode(108, "not available")
TOKEN_EXPIRED = ErrorCode(109, "token expired")
TOO_MANY_REQUESTS = ErrorCode(111, "too many requests", temporary=True)
UNRECOVERABLE = ErrorCode(112, "unrecoverable position")

CLOSED = Disconnect(3000, "connection closed")
SHUTDOWN = Disconnect(3001, "shutdown")
EXPIRED = Disconnect(3005, "connection expired")
SLOW = Disconnect(3008, "slow")
INSUFFICIENT_STATE = Disconnect(3010, "insufficient state")
NO_PONG = Disconnect(3012, "no pong")
FLOODING = Disconnect(3013, "too many requests")
INVALID_TOKEN = Disconnect(3500, "invalid token")
BAD_REQUEST = Disconnect(3501, "bad request")
STALE = Disconnect(3502, "stale")
FORCED = Disconnect(3503, "force disconnect")
CONNECTION_LIMIT = Disconnect(3504, "connection limit")

#: The code and reason of an `unsubscribe` push after which SDKs don't subscribe again.
SERVER_UNSUBSCRIBED = Disconnect(2000, "server unsubscribe")

ERRORS = (
    INTERNAL,
    UNKNOWN_CHANNEL,
    PERMISSION_DENIED,
    METHOD_NOT_FOUND,
    LIMIT_EXCEEDED,
    MALFORMED,
    NOT_AVAILABLE,
    TOKEN_EXPIRED,
    TOO_MANY_REQUESTS,
    UNRECOVERABLE,
)
DISCONNECTS = (
    CLOSED,
    SHUTDOWN,
    EXPIRED,
    SLOW,
    INSUFFICIENT_STATE,
    NO_PONG,
    FLOODING,
    INVALID_TOKEN,
    BAD_REQUEST,
    STALE,
    FORCED,
    CONNECTION_LIMIT,
)
