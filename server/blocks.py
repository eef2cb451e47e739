"""Blocks: coupons that are handed to a store's tills, so that they can be redeemed while the line is down.

    (none) --take--> out --close, or free_ms is over--> free
                      \\--merge, any number of times, also afterwards--> out

What is in a block can be redeemed by the block's id and at its store only, until the block is closed or its `free_ms`
(its end and some grace) is over. The tills get hashes of the codes, not the codes: a block that gets lost is worth
nothing without the customers' phones. What they redeemed is merged later, each redemption by its own atomic step, so a
merge may be cut short and repeated anywhere. A redemption is merged even if the block is free again by then, whoever
has reserved its coupon or has it in a block; one whose coupon was redeemed elsewhere meanwhile is reported, and not
redeemed twice. What was redeemed against a term is recorded and said: not to record it would let it be spent again.

A merge says nothing of codes that aren't in the block, so it needs no bound on unknown ones.

Each step can be repeated: a block is taken by an id of the caller's, and taken again it is the same block, without
the coupons that aren't in it any more, until it is closed.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock
from nearcast.coupons import BLOCK_TYPE, Block, BlockCoupon, OfflineRedemption, Verdict, hash_of
from nearcast.errors import Conflict, InputError, NotFound
from nearcast.ids import CouponCode, StoreId
from server.coupons import AppliedOffer, Coupon, CouponBook
from server.store import reaching_store, text

#: How long after its end a block is remembered, for late merges.
KEEP_MS = 30 * 86_400_000
#: How long after its end the coupons of a block stay closed to others, so that its redemptions can be merged.
GRACE_S = 900.0
MOST_COUPONS = 1_000
LONGEST_S = 24 * 3_600.0
#: Redemptions of one merge that are in hand at once.
_HANDS = 16


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict, and the coupon if it is redeemed."""

    verdict: Verdict
    coupon: Coupon | None


class Blocks:
    """The blocks of a coupon book."""

    def __init__(self, redis: Redis, book: CouponBook, clock: Clock) -> None:
        self._redis = redis
        self._book = book
        self._clock = clock
        self._script = redis.register_script(Path(__file__).with_suffix(".lua").read_text(encoding="utf-8"))

    async def take(self, block: str, store: StoreId, for_s: float, most: int) -> Block:
        """Hand out up to `most` coupons that were offered for this store, the latest applied first, for so long.

        Taken again it is the same block, whatever is asked for. Raises `Conflict` if another store has this id, or it
        is closed.
        """
        now_ms = self._clock.now_ms()
        until_ms = now_ms + round(for_s * 1000)
        free_ms = until_ms + round(GRACE_S * 1000)
        arguments = (store, until_ms, free_ms, most, free_ms - now_ms + KEEP_MS, block)
        answer = await self._run("take", block, keys.store_coupons(store), *arguments)
        known_store, until, free = (text(part) for part in answer[1:4] if part is not None)
        pairs = zip(answer[5::2], answer[6::2], strict=True)
        coupons = [_block_coupon(text(code or b""), offer or b"") for code, offer in pairs]
        return Block(
            block=block,
            store=known_store,
            until_ms=int(until),
            free_ms=int(free),
            coupons=sorted(coupons, key=lambda coupon: coupon.hash),
        )

    def sign(self, block: Block) -> str:
        """The block as a token, which its tills can verify with the public keys."""
        return self._book.signer.sign(BLOCK_TYPE, block)

    async def merge(self, block: str, redemptions: Sequence[OfflineRedemption]) -> list[Merged]:
        """Record what was redeemed by a block; a verdict for each, in the order given.

        Raises `NotFound` for an unknown block; `Unavailable` if it was cut short: repeat it.
        """
        store = await self._store_of(block)
        hands = asyncio.Semaphore(_HANDS)

        async def one(made: OfflineRedemption) -> Merged:
            try:
                async with hands:
                    coupon = await self._book.redeem(
                        *(made.code, store, made.redemption_id),
                        revenue_cents=made.revenue_cents,
                        discount_cents=made.discount_cents,
                        block=block,
                        offline_ms=made.at_ms,
                    )
            except InputError as error:
                refused = Verdict(redemption_id=made.redemption_id, verdict=error.reason, detail=error.detail)
                return Merged(verdict=refused, coupon=None)
            verdict = Verdict(redemption_id=made.redemption_id, verdict="redeemed", broke=coupon.broke or "")
            return Merged(verdict=verdict, coupon=coupon)

        results = await asyncio.gather(*(one(made) for made in redemptions), return_exceptions=True)
        merged = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            merged.append(result)
        return merged

    async def close(self, block: str) -> None:
        """The tills are done with it: what they didn't redeem is free again. Raises `NotFound`."""
        await self._run("close", block, keys.block_codes(block), block)

    async def _store_of(self, block: str) -> StoreId:
        with reaching_store():
            store = cast("bytes | None", await self._redis.hget(keys.block(block), "store"))
        if store is None:
            raise _unknown()
        return StoreId(text(store))

    async def _run(self, step: str, block: str, third: str, *arguments: str | float) -> list[bytes | None]:
        where = [keys.block(block), keys.block_codes(block), third]
        with reaching_store():
            answer: list[bytes | None] = await self._script(keys=where, args=[step, self._clock.now_ms(), *arguments])
        match text(answer[0] or b""):
            case "unknown_block":
                raise _unknown()
            case "other_store":
                raise Conflict("other_store", "a block with this id is out at another store", "id")
            case "block_closed":
                raise Conflict("block_closed", "this block is closed: take one with another id", "id")
        return answer


def _unknown() -> NotFound:
    return NotFound("unknown_block", "there is no block with this id, or it is long ago")


def _block_coupon(code: str, offer: bytes) -> BlockCoupon:
    good_for = msgspec.json.decode(offer, type=AppliedOffer)
    return BlockCoupon(
        hash=hash_of(CouponCode(code)),
        promotion=good_for.promotion,
        expires_ms=good_for.expires_ms,
        sku=good_for.sku,
        discount=good_for.discount,
        exclusive=good_for.exclusive,
        group=good_for.group,
        min_purchase_cents=good_for.min_purchase_cents,
    )
