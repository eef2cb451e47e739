"""An offline till: redeems the coupons of a block while the line is down, and merges them when it is up again.

It needs a block's token and our public keys, both fetched while the line was up. What it redeems is in its journal,
synced to disk, before it says so; a crash at any point loses nothing that was said, and what is not said was not
redeemed, or is the same success when the cashier tries again. One journal belongs to one process at a time, and one
block to one journal: two tills that share a block would each redeem its coupons once.

A coupon that was redeemed here can be called off here until its merge has begun; afterwards online, like any other.
"""

import errno
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import httpx
import jwt
import msgspec

from nearcast.clock import Clock
from nearcast.coupons import (
    BLOCK_TYPE,
    COUPON_TYPE,
    Block,
    BlockCoupon,
    CouponClaims,
    OfflineRedemption,
    Verdict,
    Verdicts,
    hash_of,
)
from nearcast.ids import CouponCode, normalise_code

#: Redemptions in one request of a merge.
_AT_ONCE = 200


class Refused(Exception):
    """The till must not give the discount; `reason` is a stable code, as the API has them."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of the journal: what happened to which redemption."""

    what: Literal["block", "redeemed", "called off", "merging", "merged", "closed"]
    block: str = ""
    redemption: OfflineRedemption | None = None
    #: Of "redeemed": a block that was fetched again doesn't have it.
    coupon: BlockCoupon | None = None
    verdict: str = ""


class _Entry(msgspec.Struct):
    """A redemption as the journal tells it."""

    redemption: OfflineRedemption
    state: Literal["redeemed", "called off", "merging", "merged"] = "redeemed"


class Keys:
    """Our public keys, as /v1/coupons/keys gives them."""

    def __init__(self, jwks: bytes) -> None:
        self._keys = {str(key.key_id): key for key in jwt.PyJWKSet.from_json(jwks.decode()).keys}

    def verified(self, token: str, kind: str) -> Mapping[str, Any]:
        """What a token of this kind says. Raises `Refused` for one that we didn't sign."""
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") == kind:
                key = self._keys[str(header.get("kid"))]
                claims: dict[str, Any] = jwt.decode(token, key, algorithms=["EdDSA"], options={"verify_exp": False})
                return claims
        except (jwt.PyJWTError, KeyError):
            pass
        raise Refused("unknown_coupon", "this is not one of ours")


class EdgeTill:
    """A till with one block. A context manager: it holds its journal open and locked."""

    def __init__(self, journal: Path, token: str, keys: Keys, clock: Clock) -> None:
        """Raises `Refused` if the block isn't ours or the journal is another block's, OSError if it is in use."""
        self.block = msgspec.convert(keys.verified(token, BLOCK_TYPE), Block)
        self._keys = keys
        self._clock = clock
        self._coupons = {coupon.hash: coupon for coupon in self.block.coupons}
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._closed = False
        self._file = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sync_folder(journal.parent)
            self._read(journal)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "EdgeTill":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def redeem(
        self, typed: str, redemption_id: str, *, revenue_cents: int | None = None, discount_cents: int | None = None
    ) -> BlockCoupon:
        """Redeem a coupon, by its code or token, for a purchase; what it is good for. Repeated it is the same success.

        Raises `Refused`.
        """
        code, coupon = self._coupon(typed)
        key = (code, redemption_id)
        before = self._entries.get(key)
        if before is not None and before.state == "called off":
            raise Refused("redemption_rolled_back", "this redemption was called off")
        if before is not None:
            return coupon
        if any(entry.state != "called off" for (other, _), entry in self._entries.items() if other == code):
            raise Refused("already_redeemed", "another redemption holds this coupon")
        now_ms = self._clock.now_ms()
        if self._closed or now_ms >= self.block.until_ms:
            raise Refused("block_over", "the time of this block is over: redeem online")
        if now_ms >= coupon.expires_ms:
            raise Refused("coupon_expired", "the coupon's time is over")
        if revenue_cents is not None and revenue_cents < coupon.min_purchase_cents:
            raise Refused("below_minimum", f"this coupon is for purchases of {coupon.min_purchase_cents} cents or more")
        for other in self._of_purchase(redemption_id):
            if coupon.exclusive or other.exclusive or (coupon.group is not None and coupon.group == other.group):
                raise Refused("not_combinable", f"this coupon can't be combined with that of {other.promotion!r}")
        made = OfflineRedemption(
            code=code,
            redemption_id=redemption_id,
            at_ms=now_ms,
            revenue_cents=revenue_cents,
            discount_cents=discount_cents,
        )
        self._write([_Line(what="redeemed", redemption=made, coupon=coupon)])
        return coupon

    def call_off(self, typed: str, redemption_id: str) -> None:
        """Call a redemption off; the coupon is as good as before. Raises `Refused` once its merge has begun."""
        code, _ = self._coupon(typed)
        entry = self._entries.get((code, redemption_id))
        if entry is None or entry.state == "called off":
            return
        if entry.state != "redeemed":
            raise Refused("merged", "this redemption was merged: roll it back online")
        self._write([_Line(what="called off", redemption=entry.redemption)])

    @property
    def waiting(self) -> list[OfflineRedemption]:
        """What is not merged yet, in the order in which it happened."""
        return [entry.redemption for entry in self._entries.values() if entry.state in ("redeemed", "merging")]

    async def merge(self, api: httpx.AsyncClient, *, close: bool = False) -> list[Verdict]:
        """Tell the server what was redeemed; its verdict on each. With `close`, what wasn't redeemed is free again, and
        nothing more is redeemed here.

        `api` has the base URL and the API key. Raises `httpx.HTTPError` if it fails on the way: call it again.
        """
        verdicts: list[Verdict] = []
        while part := self.waiting[:_AT_ONCE]:
            self._write([_Line(what="merging", redemption=made) for made in part])
            said = (await self._post(api, {"redemptions": part})).verdicts
            pairs = zip(part, said, strict=True)
            self._write([_Line(what="merged", redemption=made, verdict=each.verdict) for made, each in pairs])
            verdicts += said
        if close:
            self._write([_Line(what="closed")])
            await self._post(api, {"close": True})
        return verdicts

    async def _post(self, api: httpx.AsyncClient, body: object) -> Verdicts:
        path = f"/v1/blocks/{quote(self.block.block, safe='')}/merge"
        response = await api.post(path, content=msgspec.json.encode(body))
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=Verdicts)

    def _coupon(self, typed: str) -> tuple[CouponCode, BlockCoupon]:
        if typed.count(".") == 2:
            code = msgspec.convert(self._keys.verified(typed, COUPON_TYPE), CouponClaims).code
        else:
            code = normalise_code(typed)
        coupon = self._coupons.get(hash_of(code))
        if coupon is None:
            raise Refused("unknown_coupon", "this coupon is not one of the block")
        return code, coupon

    def _of_purchase(self, redemption_id: str) -> list[BlockCoupon]:
        return [
            self._coupons[hash_of(CouponCode(code))]
            for (code, redemption), entry in self._entries.items()
            if redemption == redemption_id and entry.state != "called off"
        ]

    def _read(self, journal: Path) -> None:
        whole, end, torn = journal.read_bytes().rpartition(b"\n")
        if torn:
            # A crash in the middle of a line: what it was about was not said.
            os.ftruncate(self._file, len(whole) + len(end))
        lines = [msgspec.json.decode(line, type=_Line) for line in whole.splitlines()]
        if not lines:
            self._write([_Line(what="block", block=self.block.block)])
        elif lines[0].block != self.block.block:
            raise Refused("other_block", "this journal is that of another block")
        for line in lines:
            self._note(line)

    def _write(self, lines: list[_Line]) -> None:
        data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        before = os.fstat(self._file).st_size
        if os.write(self._file, data) != len(data):
            os.ftruncate(self._file, before)
            raise OSError(errno.ENOSPC, "the journal's disk is full")
        os.fsync(self._file)
        for line in lines:
            self._note(line)

    def _note(self, line: _Line) -> None:
        if line.what == "closed":
            self._closed = True
        if line.redemption is None or line.what == "block" or line.what == "closed":
            return
        key = (line.redemption.code, line.redemption.redemption_id)
        if line.what == "redeemed":
            self._entries[key] = _Entry(line.redemption)
            if line.coupon is not None:
                self._coupons.setdefault(line.coupon.hash, line.coupon)
        else:
            self._entries[key].state = line.what


def _sync_folder(folder: Path) -> None:
    """Else a new file's name may be lost with the power, and the file with it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
