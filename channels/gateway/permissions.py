"""Who may do what with which channel. Pure.

A client may listen to every channel of its token, and to the public ones, which anybody may name: what a store
(`store:<id>`) or a zone (`zone:<id>`) tells everyone. Who listens to those is nobody's business, so presence is for
personal and staff channels only.
"""

import re
from typing import Literal

from channels.gateway.backend import Identity

Action = Literal["subscribe", "publish", "presence", "history"]

# The rules of an id, which also keep the bus's separators and the store's hash tags out of a channel's name.
_PUBLIC = re.compile(r"(?:store|zone):[^\x00-\x1f\x7f{}]{1,128}")


def public(channel: str) -> bool:
    """True for a channel that everybody may listen to."""
    return _PUBLIC.fullmatch(channel) is not None


def allowed(identity: Identity, channel: str, action: Action) -> bool:
    own = channel in identity.channels
    match action:
        case "subscribe" | "history":
            return own or public(channel)
        case "publish":
            return _of_own_store(identity, channel)
        case "presence":
            return _of_own_store(identity, channel) or (
                identity.role == "customer" and channel == f"customer:{identity.sub}"
            )


def _of_own_store(identity: Identity, channel: str) -> bool:
    return identity.role == "staff" and channel.startswith("staff:") and channel in identity.channels
