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
    #: How long its subscriptions may take after that; SDKs give a command 5 s.
    join_timeout_s: float = 4.0
    #: Below the 30 s after which mobile networks begin to forget idle connections.
    ping_interval_s: float = 25.0
    pong_timeout_s: float = 10.0
    #: How long a client may take to answer a close before it is cut off.
    close_timeout_s: float = 5.0
    #: At shutdown clients are asked to leave one after the other over this time, for they come back at once elsewhere.
    drain_window_s: float = 10.0
    #: How long commands that are running may take at shutdown, after that.
    drain_s: float = 5.0
    #: Bytes that may wait in this process for a client that does not read. The kernel holds `send_buffer_bytes` more.
    backlog_bytes: int = 256 * 1024
    #: From this backlog on, a publication with a key takes the place of one with the same key that still waits.
    conflate_bytes: int = 32 * 1024
    #: Of one socket, in the kernel (Linux counts about double for its own needs); by itself it grows to megabytes.
    send_buffer_bytes: int = 64 * 1024
    max_frame_bytes: int = 64 * 1024
    #: Connections of this node in all, of whatever kind; 0: any number.
    connections: int = 0
    #: Connections from one address (of IPv6: one /64); a shop's whole Wi-Fi may be one. 0: any number. Never more than
    #: half of `connections`, or one address could fill a node.
    connections_per_address: int = 1_000
    #: Connections of one user to one node; the oldest goes when another one comes. 0: any number.
    connections_per_user: int = 16
    #: Networks of proxies whose X-Forwarded-For is believed. A proxy that is not named counts as one client.
    trusted_proxies: tuple[str, ...] = ()
    #: Newcomers that get in per second; in a storm the others wait in a queue.
    handshakes_per_second: int = 1_000
    #: Newcomers get in only while fewer than this are still waiting for the answer to their `connect`.
    joins_at_once: int = 64
    #: Who has waited so long gets a 503; SDKs give up after 5 s, and come back at a time of chance.
    queue_s: float = 4.0
    #: Newcomers that may wait. Each takes a descriptor.
    queue_room: int = 10_000
    #: Events of one client, by `send` or rpc; a phone that reports every 2 s needs 30.
    events_per_minute: int = 100
    #: Commands of one client, events included.
    commands_per_minute: int = 600
    #: Who goes on after this many refusals beyond that is cut off.
    commands_over_limit: int = 64
    #: Public channels of one client, beside those of its token.
    subscriptions: int = 32
    #: How often a node renews its signs of life, and checks every channel against its stream.
    check_every_s: float = 30.0
    #: The resolution of timeouts.
    tick_s: float = 0.1
