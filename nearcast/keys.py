"""The names of every key in the state store, in one place.

Keys of partition *p* carry the hash tag `{p}`, so one script can commit them together on Valkey or Redis Cluster.
"""

from hashlib import sha256

PREFIX = "nearcast:"


def epoch(partition: int) -> str:
    """Integer; rises each time a worker takes the partition over."""
    return f"{PREFIX}{{{partition}}}:epoch"


def offsets(partition: int) -> str:
    """Hash: topic → the position after the last record folded into the state."""
    return f"{PREFIX}{{{partition}}}:offsets"


def catalogue_offsets(partition: int) -> str:
    """Hash: catalogue topic → the position after the last change applied to the world."""
    return f"{PREFIX}{{{partition}}}:catalogue-offsets"


def catalogue_epoch(partition: int) -> str:
    """Integer; rises each time a worker takes the partition of the catalogue topics over."""
    return f"{PREFIX}{{{partition}}}:catalogue-epoch"


def customer(partition: int, customer_id: str) -> str:
    """`nearcast.customer.Customer`, as `server.stored` writes it."""
    return f"{PREFIX}{{{partition}}}:customer:{customer_id}"


def presence(partition: int, customer_id: str) -> str:
    """`nearcast.customer.Presence`, as `server.stored` writes it."""
    return f"{PREFIX}{{{partition}}}:presence:{customer_id}"


def outbox(partition: int) -> str:
    """Stream: `e` holds a `nearcast.messages.OutboxEntry` as JSON, `t` when its event came to log and engine, ms."""
    return f"{PREFIX}{{{partition}}}:outbox"


def timers(partition: int) -> str:
    """Sorted set: `<kind>\\x1f<customer>` by due time in ms."""
    return f"{PREFIX}{{{partition}}}:timers"


def dead_letters(partition: int) -> str:
    """Stream: `reason`, `detail`, `topic`, `position`, `key`, `arrived_ms` and the original bytes in `value`."""
    return f"{PREFIX}{{{partition}}}:dead-letters"


def decision(partition: int, decision_id: str) -> str:
    """JSON of `nearcast.decisions.Decision`; expires."""
    return f"{PREFIX}{{{partition}}}:decision:{decision_id}"


def decisions_of(partition: int, customer_id: str) -> str:
    """List: the customer's decision ids, newest first; bounded, expires."""
    return f"{PREFIX}{{{partition}}}:decisions:{customer_id}"


def opt_outs(partition: int) -> str:
    """Hash: customer → JSON of scopes withdrawn through the API, effective before the log has caught up."""
    return f"{PREFIX}{{{partition}}}:opt-outs"


def erasures(partition: int) -> str:
    """Hash: customer → "asked" by the API, then (state gone) the arrival of the erase event in ms; goes last.
    `<customer>\\x1f<visitor>` → "" for each visitor who must be gone first."""
    return f"{PREFIX}{{{partition}}}:erasures"


def pickups(partition: int) -> str:
    """Hash: customer → ids of the stores that expect them, or have them, for a pickup, `\\x1f` between them."""
    return f"{PREFIX}{{{partition}}}:pickups"


def footfall(partition: int) -> str:
    """Hash: fence → people of this partition who are in it now; those with none are left out. Names nobody."""
    return f"{PREFIX}{{{partition}}}:footfall"


def footfall_day(partition: int, store: str, day: str) -> str:
    """Hash of a store's local day: `<begin of the hour, s>\\x1f<what>\\x1f<fence>` → count; expires. Names nobody."""
    return f"{PREFIX}{{{partition}}}:footfall:{day}:{store}"


def measured_day(partition: int, day: str) -> str:
    """Hash of a UTC day: `<what>\\x1f<promotion>` → count, of the offers of that day (`offers.measure`); expires."""
    return f"{PREFIX}{{{partition}}}:measured:{day}"


def rewritten(stream: str) -> str:
    """Stream: another one of its slot while it is written anew; gone when that is done."""
    return f"{stream}:rewritten"


def delivery(partition: int, message_id: str) -> str:
    """JSON: how far the dispatcher got with a message; expires."""
    return f"{PREFIX}{{{partition}}}:delivery:{message_id}"


def handing_over(partition: int, customer_id: str) -> str:
    """Sorted set: `<message>\\x1f<courier>` of hand-overs under way to a customer, by their end in ms; expires."""
    return f"{PREFIX}{{{partition}}}:handing-over:{customer_id}"


def live(partition: int) -> str:
    """Sorted set: situations (`server.situations`) of offers that are out, by the last deadline in ms; expires."""
    return f"{PREFIX}{{{partition}}}:live"


def live_of(partition: int, situation: str) -> str:
    """Sorted set: decisions whose offers are out in this situation, by deadline in ms; expires. Names nobody."""
    return f"{PREFIX}{{{partition}}}:live:{situation}"


def sweeping(partition: int) -> str:
    """String: the dispatcher that looks after the partition's live situations; expires at once."""
    return f"{PREFIX}{{{partition}}}:sweeping"


def coupon(code: str) -> str:
    """Hash: a coupon's state. Lives in a slot of its own: a till knows the code only."""
    return f"{PREFIX}coupon:{{{code}}}"


def coupons_of(customer_id: str) -> str:
    """Sorted set: codes of the customer's coupons, by the time in ms until which each is kept."""
    return f"{PREFIX}coupons:{{{customer_id}}}"


def applied_lately(customer_id: str) -> str:
    """Sorted set: codes that the customer applied within the hour, by when in ms; expires."""
    return f"{PREFIX}applied-lately:{{{customer_id}}}"


def redeemed_lately(customer_id: str) -> str:
    """Sorted set: codes of the customer redeemed within the day, by when in ms; expires."""
    return f"{PREFIX}redeemed-lately:{{{customer_id}}}"


def store_coupons(store_id: str) -> str:
    """Sorted set: codes of applied coupons that were offered for the store, by when in ms; the newest only."""
    return f"{PREFIX}store-coupons:{{{store_id}}}"


def purchase(store_id: str, redemption_id: str) -> str:
    """Set: codes of the coupons that were reserved or redeemed in one purchase; expires."""
    return f"{PREFIX}purchase:{{{store_id}\x1f{redemption_id}}}"


def block(block_id: str) -> str:
    """Hash: a block of coupons that is out at a store's tills; expires."""
    return f"{PREFIX}block:{{{block_id}}}"


def block_codes(block_id: str) -> str:
    """Set: the codes of a block; expires with it."""
    return f"{PREFIX}block:{{{block_id}}}:codes"


def unknown_codes(asker: str) -> str:
    """Hash: how many codes that don't exist an API key and store asked for lately, and when that is over; expires."""
    return f"{PREFIX}unknown-codes:{{{asker}}}"


def budget(pool: str) -> str:
    """Hash: what a budget has granted, in all and to which partition (server/budgets.lua); pools are named by
    `offers.budgets`."""
    return f"{PREFIX}budget:{{{pool}}}"


def spent(partition: int, pool: str) -> str:
    """Hash: `pieces` and `cents` that the partition's decisions have used of a budget."""
    return f"{PREFIX}{{{partition}}}:spent:{pool}"


def leases(partition: int) -> str:
    """Set: names of the pools of which the partition may have been granted more than it used."""
    return f"{PREFIX}{{{partition}}}:leases"


def channel_stream(channel: str) -> str:
    """Stream: the last publications of a gateway channel."""
    return f"{PREFIX}channel:{{{channel}}}:stream"


def channel_meta(channel: str) -> str:
    """Hash: `epoch` and `offset` of a gateway channel."""
    return f"{PREFIX}channel:{{{channel}}}:meta"


def channel_once(channel: str, key: str) -> str:
    """String: the position of what was published once under this key; expires with the channel's history."""
    return f"{PREFIX}channel:{{{channel}}}:once:{key}"


def channel_acked(channel: str, message: str) -> str:
    """String: the device that was the first to acknowledge a message of this channel; expires."""
    return f"{PREFIX}channel:{{{channel}}}:acked:{message}"


def channel_shown(channel: str, message: str) -> str:
    """String: when a message was written to a device's socket (0: not known) and acknowledged first, in ms; expires."""
    return f"{PREFIX}channel:{{{channel}}}:shown:{message}"


def channel_nodes(channel: str) -> str:
    """Sorted set: gateway nodes with a subscriber, by time of their last sign of life in ms."""
    return f"{PREFIX}channel:{{{channel}}}:nodes"


def channel_gone(channel: str) -> str:
    """Sorted set: offsets of publications that were withdrawn, by themselves; expires with the channel's history."""
    return f"{PREFIX}channel:{{{channel}}}:gone"


def channel_withdrawn(channel: str, key: str, reason: str) -> str:
    """String: the position of the withdrawal of what was published once under this key; expires as that does."""
    return f"{PREFIX}channel:{{{channel}}}:withdrawn:{key}:{reason}"


def channel_presence(channel: str) -> str:
    """Hash: client id → `<last sign of life, ms>\\n<user>` of who is subscribed; expires."""
    return f"{PREFIX}channel:{{{channel}}}:presence"


def revoked(user: str) -> str:
    """String: the user's tokens issued up to this time (ms) are refused; expires. Doesn't spell out who it is about."""
    return f"{PREFIX}revoked:{sha256(user.encode()).hexdigest()[:32]}"


def node_bus(node: str) -> str:
    """Pub/sub channel over which publications reach one gateway node."""
    return f"{PREFIX}node:{node}"


def nodes_bus() -> str:
    """Pub/sub channel that all gateway nodes listen to."""
    return f"{PREFIX}nodes"


def stock(store_id: str) -> str:
    """Hash: SKU → pieces in stock."""
    return f"{PREFIX}stock:{store_id}"


def world(kind: str) -> str:
    """Hash: id → JSON of a `nearcast.world` struct; `kind` is store, fence, product or promotion."""
    return f"{PREFIX}{{world}}:{kind}"


def world_version() -> str:
    """Integer; rises with every change of the world."""
    return f"{PREFIX}{{world}}:version"


def models() -> str:
    """JSON: which models there are, and what each kind uses them for (`server.model_registry.State`)."""
    return f"{PREFIX}{{models}}:state"


def model_files(version: str) -> str:
    """Hash: file name → content of one model."""
    return f"{PREFIX}{{models}}:files:{version}"


def model_changes() -> str:
    """List: JSON of who changed what about models and when, newest first; bounded."""
    return f"{PREFIX}{{models}}:changes"


def log_kind() -> str:
    """String: "streams" or "kafka", the event log that the stored offsets belong to."""
    return f"{PREFIX}log-kind"


def data_version() -> str:
    """Integer: in which layout the data of this store is."""
    return f"{PREFIX}data-version"


def partitions() -> str:
    """Integer: over how many partitions the customers in this store are spread."""
    return f"{PREFIX}partitions"


def log_stream(topic: str, partition: int) -> str:
    """Stream: one partition of a topic, when Valkey Streams are the event log."""
    return f"{PREFIX}log:{{{partition}}}:{topic}"


def log_owner(partition: int | str) -> str:
    """String, one per `:<group>` after it: who holds the lease of a partition, when Valkey Streams are the log."""
    return f"{PREFIX}log:{{{partition}}}:owner"


def log_members(group: str) -> str:
    """Sorted set: workers of a consumer group by time of their last sign of life in ms."""
    return f"{PREFIX}log:members:{group}"


def assist(alert: str) -> str:
    """String: the member of staff who claimed an assist alert; expires."""
    return f"{PREFIX}assist:{{{alert}}}"


def assist_outcome(alert: str) -> str:
    """String: how the one who claimed an assist alert closed it; expires."""
    return f"{PREFIX}assist:{{{alert}}}:outcome"
