"""What can be set about the gateway, and why it is as it is."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """The defaults suit phones on mobile networks."""

    host: str = "127.0.0.1"
    #: 0 takes a free port.
    port: int = 0
    #: Pages that may connect, as exact origins ("https://shop.example"). A client without an Origin header is an app.
    origins: tuple[str, ...] = ()
    #: How long a new connection may take to send its token.
    connect_timeout_s: float = 5.0
    #: Below the 30 s after which mobile networks begin to forget idle connections.
    ping_interval_s: float = 25.0
    pong_timeout_s: float = 10.0
    #: How long a client may take to answer a close before it is cut off.
    close_timeout_s: float = 5.0
    #: How long commands that are running may take at shutdown.
    drain_s: float = 5.0
    #: Bytes that may wait for a client that does not read.
    backlog_bytes: int = 256 * 1024
    max_frame_bytes: int = 64 * 1024
    #: Events of one client, by `send` or rpc; a phone that reports every 2 s needs 30.
    events_per_minute: int = 100
    #: Commands with a reply of one client, events included.
    commands_per_minute: int = 600
    #: The resolution of timeouts.
    tick_s: float = 0.5
