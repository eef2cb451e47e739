"""The error tree. The class decides what happens next; the message says what was wrong and where.

NearcastError
├── InputError              the caller's fault: HTTP 4xx, or a dead letter with `reason`
│   ├── NotFound            404
│   ├── Conflict            409
│   ├── Gone                410
│   ├── Unauthenticated     401
│   ├── Forbidden           403
│   ├── TooLarge            413
│   └── TooManyRequests     429
├── ConfigurationError      start-up stops, naming the setting
├── Unavailable             a dependency is away: retry with backoff, HTTP 503
├── UnreadableState         a customer's record can't be decoded: it is left alone, and their events become dead letters
├── DeadLettersFull         the engine stops before it would have to throw records away
├── Fenced                  another worker owns the partition: drop the batch and everything cached for it
└── SendError               a channel could not deliver
    ├── RetrySend           the same channel, later
    ├── FallBack            not this channel: try the next one
    └── DropSend            no channel will do: record it and stop
        └── Recalled        it was taken back before it was sent
"""


class NearcastError(Exception):
    """Everything nearcast raises on purpose."""


class InputError(NearcastError):
    """Input that can't be accepted.

    `reason` is a stable snake_case code that callers, metrics and dead letters can rely on; `where` names the
    field, line or record at fault.
    """

    status = 400

    def __init__(self, reason: str, detail: str, where: str = "") -> None:
        super().__init__(f"{detail} ({where})" if where else detail)
        self.reason = reason
        self.detail = detail
        self.where = where


class Unauthenticated(InputError):
    """No credentials, or credentials that aren't valid."""

    status = 401


class Forbidden(InputError):
    """Known, but not allowed to do this."""

    status = 403


class NotFound(InputError):
    """What was named does not exist, or is not the caller's to see."""

    status = 404


class Conflict(InputError):
    """The thing named is in a state that forbids this."""

    status = 409


class Gone(InputError):
    """It existed; its time is over."""

    status = 410


class TooLarge(InputError):
    """Over a documented size limit."""

    status = 413


class TooManyRequests(InputError):
    """Over a rate limit; `retry_after_s` says when to come back."""

    status = 429

    def __init__(self, reason: str, detail: str, where: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(reason, detail, where)
        self.retry_after_s = retry_after_s


class ConfigurationError(NearcastError):
    """A setting is missing, unknown or out of range."""


class Unavailable(NearcastError):
    """A dependency (log, store, provider) can't be reached just now."""


class UnreadableState(NearcastError):
    """A customer's record is damaged, or newer than this release. It must not be overwritten."""


class DeadLettersFull(NearcastError):
    """A partition holds as many dead letters as it may. Nothing of this batch was committed, so nothing is lost."""


class Fenced(NearcastError):
    """Another worker has taken the partition over; nothing of this batch was committed."""


class SendError(NearcastError):
    """A channel could not deliver; the subclass says what to do."""


class RetrySend(SendError):
    """Passing fault: the same channel may work later."""


class FallBack(SendError):
    """This channel can't reach the customer now: try the next one."""


class DropSend(SendError):
    """Permanent: the message will be accepted by no channel."""


class Recalled(DropSend):
    """The message has been taken back: it must not be sent any more."""
