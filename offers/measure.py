"""Measuring: what became of a promotion's offers, and what was bought after them, as counters that only add up.

Every figure belongs to the UTC day of its offer: what is opened, redeemed or bought later counts on the day on which
it was offered, so all figures of a day are about the same offers. The counters change in the commit that changes the
customer, by the difference between the customer before and after an event; so their sums are those over all customers,
after any crash and however the log is cut into batches.

Two questions are asked of a purchase. Which offers does it answer, and how is its revenue shared among them
(attribution)? And did those who were made an offer buy more than those who were held out of it (lift)? For the second,
an offer opens a window of the promotion's `attribution_s`; further offers of the same promotion in it open none, and in
both arms it makes no difference whether a message arrived. An offer that was made only because the customer is held out
of a better one opens none either: nobody held out of it could have got it in its place.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Final, NamedTuple, Self

import msgspec

from nearcast.customer import Customer, Exposure, SentMessage
from nearcast.decisions import Decision, Reason
from nearcast.events import AnyEvent, DeliveryStatus, Purchase, Receipt, Timer
from nearcast.fold import DEADLINE_TIMER
from nearcast.ids import MessageId, PromotionId, Sku
from offers.catalogue import Catalogue

#: How many offers a customer is remembered to have been made, and how long after their window: purchases are late.
KEPT_EXPOSURES = 64
KEPT_AFTER_MS = 86_400_000
#: What one window counts at most where revenue is compared: a single wholesale purchase must not hide everything else.
MOST_COMPARED_CENTS = 1_000_000
_DAY_MS = 86_400_000
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_SEPARATOR = "\x1f"

#: What is counted: messages put in the outbox; how far they got at least (`SentMessage.reached`, from 1);
DECIDED = "decided"
STAGES = ("sent", "delivered", "opened", "applied", "redeemed")
#: those that stand at one of these now, where "rolled_back" is redeemed once, and not any more;
ROLLED_BACK: Final = "rolled_back"
OUTCOMES: tuple[DeliveryStatus, ...] = ("failed", "suppressed", "expired", "recalled", "dismissed", ROLLED_BACK)
#: of the redemptions that were not called off, what was paid before the discount, and the discount;
REVENUE, DISCOUNT = "revenue_cents", "discount_cents"
#: offers after which something was bought, and the revenue by last touch and in equal shares;
CONVERTED, LAST_TOUCH, LINEAR = "converted", "last_touch_cents", "linear_cents"
#: by arm, windows, those with a purchase, their revenue (each at most MOST_COMPARED_CENTS) and the squares of that.
ARMS = ("treated", "held_out")
WINDOWS, BOUGHT, SUM, SQUARES = "windows", "bought", "sum", "squares"
#: Why messages were not sent, or taken back.
GIVEN_UP: tuple[DeliveryStatus, ...] = ("suppressed", "recalled")
REASONS = (*(reason.value for reason in Reason), "other")


def field_of(what: str, promotion: str) -> str:
    """The name of a counter within its day."""
    return f"{what}{_SEPARATOR}{promotion}"


def split_field(field: str) -> tuple[str, PromotionId]:
    what, _, promotion = field.partition(_SEPARATOR)
    return what, PromotionId(promotion)


def of_arm(arm: str, what: str) -> str:
    return f"{arm}_{what}"


def reason_of(status: str, reason: str) -> str:
    """The counter of messages that were given up for a reason."""
    return f"{status}:{reason if reason in REASONS else 'other'}"


#: All counters that a promotion can have.
COUNTERS: tuple[str, ...] = (
    DECIDED,
    *STAGES,
    *OUTCOMES,
    REVENUE,
    DISCOUNT,
    CONVERTED,
    LAST_TOUCH,
    LINEAR,
    *(of_arm(arm, what) for arm in ARMS for what in (WINDOWS, BOUGHT, SUM, SQUARES)),
    *(reason_of(status, reason) for status in GIVEN_UP for reason in REASONS),
)


def day_of(at_ms: int) -> str:
    """The UTC day of a time, as YYYY-MM-DD."""
    return _day(at_ms // _DAY_MS)


@lru_cache(maxsize=1_024)
def _day(number: int) -> str:
    return date.fromordinal(_EPOCH_DAY + number).isoformat()


def expose(customer: Customer, decision: Decision, catalogue: Catalogue) -> list[Exposure]:
    """Remember what offers a decision made, or would have made but for the hold-out; returns what was added.

    That changes the customer, who must be committed if anything was added.
    """
    added = []
    held = decision.would_be
    if held is not None:
        not_made = _exposure(decision, held.promotion, held.sku, catalogue, held_out=True)
        # Nothing is attributed to an offer that was not made: it matters only if it opens a window.
        if not_made is not None and not _is_open(customer, not_made):
            added.append(not_made)
    if decision.outcome == "offer" and decision.promotion is not None:
        made = _exposure(decision, decision.promotion, decision.sku, catalogue, held_out=False)
        if made is not None:
            made.compared = held is None and not _is_open(customer, made)
            added.append(made)
    if added:
        kept = [old for old in customer.exposures if old.until_ms + KEPT_AFTER_MS > decision.at_ms]
        customer.exposures = [*kept, *added][-KEPT_EXPOSURES:]
    return added


def _exposure(
    decision: Decision, promotion_id: PromotionId, sku: Sku | None, catalogue: Catalogue, *, held_out: bool
) -> Exposure | None:
    promotion = catalogue.promotions.get(promotion_id)
    if promotion is None or promotion.kind != "offer":
        return None
    until_ms = decision.at_ms + promotion.attribution_s * 1_000
    return Exposure(decision.id, promotion_id, decision.at_ms, until_ms, held_out=held_out, sku=sku)


def _is_open(customer: Customer, exposure: Exposure) -> bool:
    """Whether the promotion has a window open when another one would begin."""
    return any(
        old.compared and old.promotion == exposure.promotion and old.at_ms <= exposure.at_ms < old.until_ms
        for old in customer.exposures
    )


class Credit(NamedTuple):
    """What a purchase says of one offer made to its customer, or not made."""

    promotion: PromotionId
    #: Of the offer.
    at_ms: int
    held_out: bool
    compared: bool
    #: It is the first purchase that answers the offer.
    converts: bool
    #: What was paid for the promotion's things in the window before this purchase, and now.
    before_cents: int
    paid_cents: int
    #: Its parts of what was paid: all that came last for the thing, and in equal shares.
    last_touch_cents: int = 0
    linear_cents: int = 0


def attribute(customer: Customer, purchase: Purchase, catalogue: Catalogue) -> list[Credit]:
    """Which offers a purchase answers, each line shared among those made that it is a thing of; changes the customer.

    Shares are whole cents and add up to the line: what can't be divided goes to the latest offers.
    """
    if not customer.exposures:
        return []
    paid: dict[str, int] = {}
    for line in purchase.items:
        paid[line.sku] = paid.get(line.sku, 0) + line.amount_cents
    answered = []
    for exposure in customer.exposures:
        if exposure.at_ms <= purchase.ts < exposure.until_ms:
            things = _things_of(exposure, paid, catalogue)
            if things:
                answered.append((exposure, things))
    answered.sort(key=lambda answer: answer[0].at_ms)
    last_touch = [0] * len(answered)
    linear = [0] * len(answered)
    for sku, cents in paid.items():
        touches = [at for at, (exposure, things) in enumerate(answered) if not exposure.held_out and sku in things]
        if touches:
            last_touch[touches[-1]] += cents
            each, left = divmod(cents, len(touches))
            for place, at in enumerate(reversed(touches)):
                linear[at] += each + (place < left)
    found = []
    for at, (exposure, things) in enumerate(answered):
        total = sum(paid[sku] for sku in things)
        found.append(
            Credit(
                promotion=exposure.promotion,
                at_ms=exposure.at_ms,
                held_out=exposure.held_out,
                compared=exposure.compared,
                converts=not exposure.converted,
                before_cents=exposure.revenue_cents,
                paid_cents=total,
                last_touch_cents=last_touch[at],
                linear_cents=linear[at],
            )
        )
        exposure.converted = True
        exposure.revenue_cents += total
    return found


def _things_of(exposure: Exposure, bought: Iterable[str], catalogue: Catalogue) -> list[str]:
    """Which things are the promotion's; of a promotion that is gone, only what the offer named is known."""
    promotion = catalogue.promotions.get(exposure.promotion)
    if promotion is None:
        return [sku for sku in bought if exposure.sku in (None, sku)]
    what = promotion.what
    if not what.skus and not what.segments:
        return list(bought)
    segments = catalogue.segments
    return [sku for sku in bought if sku == exposure.sku or sku in what.skus or segments.get(sku) in what.segments]


class Standing(NamedTuple):
    """How far a message is, as far as it is counted."""

    reached: int
    outcome: DeliveryStatus | None
    revenue_cents: int
    discount_cents: int

    @classmethod
    def of(cls, sent: SentMessage) -> Self:
        outcome = sent.status
        if sent.reached == len(STAGES) and outcome != STAGES[-1]:
            outcome = ROLLED_BACK
        return cls(sent.reached, outcome, sent.revenue_cents, sent.discount_cents)


def standings(customer: Customer, event: AnyEvent) -> dict[MessageId, Standing]:
    """Before an event is folded: the messages that it can change. Nearly always none, and at once."""
    if isinstance(event, Receipt):
        touched = [sent for sent in customer.messages if sent.message == event.message]
    elif isinstance(event, Timer) and event.kind == DEADLINE_TIMER:
        touched = [sent for sent in customer.messages if sent.status is None]
    else:
        return {}
    return {sent.message: Standing.of(sent) for sent in touched}


class Tally(msgspec.Struct):
    """What a commit adds to the counters: by UTC day and `field_of`. No figure names a customer."""

    days: dict[str, dict[str, int]] = {}

    def decided(self, decision: Decision, added: Sequence[Exposure]) -> None:
        """Count a decision, and what `expose` made of it."""
        if decision.promotion is not None:
            self._add(decision.promotion, decision.at_ms, DECIDED, 1)
        for exposure in added:
            if exposure.compared:
                arm = of_arm(_arm(exposure.held_out), WINDOWS)
                self._add(exposure.promotion, exposure.at_ms, arm, 1)

    def folded(
        self, customer: Customer, event: AnyEvent, before: Mapping[MessageId, Standing], catalogue: Catalogue
    ) -> None:
        """Count an event that was applied: what became of messages, whose `standings` were taken before, and which
        offers a purchase answers, which changes the customer."""
        if isinstance(event, Purchase):
            self.bought(attribute(customer, event, catalogue))
        if before:
            self._moved(customer, before, event.reason if isinstance(event, Receipt) else "")

    def bought(self, found: Sequence[Credit]) -> None:
        """Count what `attribute` found."""
        for credit in found:
            if not credit.held_out:
                self._add(credit.promotion, credit.at_ms, CONVERTED, int(credit.converts))
                self._add(credit.promotion, credit.at_ms, LAST_TOUCH, credit.last_touch_cents)
                self._add(credit.promotion, credit.at_ms, LINEAR, credit.linear_cents)
            if credit.compared:
                arm = _arm(credit.held_out)
                before = min(credit.before_cents, MOST_COMPARED_CENTS)
                after = min(credit.before_cents + credit.paid_cents, MOST_COMPARED_CENTS)
                self._add(credit.promotion, credit.at_ms, of_arm(arm, BOUGHT), int(credit.converts))
                self._add(credit.promotion, credit.at_ms, of_arm(arm, SUM), after - before)
                self._add(credit.promotion, credit.at_ms, of_arm(arm, SQUARES), after**2 - before**2)

    def _moved(self, customer: Customer, before: Mapping[MessageId, Standing], reason: str) -> None:
        for sent in customer.messages:
            was = before.get(sent.message)
            if was is None:
                continue
            now = Standing.of(sent)
            for stage in STAGES[was.reached : now.reached]:
                self._add(sent.promotion, sent.at_ms, stage, 1)
            if now.outcome != was.outcome:
                for outcome, change in ((was.outcome, -1), (now.outcome, 1)):
                    if outcome in OUTCOMES:
                        self._add(sent.promotion, sent.at_ms, outcome, change)
                if now.outcome in GIVEN_UP:
                    self._add(sent.promotion, sent.at_ms, reason_of(now.outcome, reason), 1)
            self._add(sent.promotion, sent.at_ms, REVENUE, now.revenue_cents - was.revenue_cents)
            self._add(sent.promotion, sent.at_ms, DISCOUNT, now.discount_cents - was.discount_cents)

    def _add(self, promotion: PromotionId, at_ms: int, what: str, amount: int) -> None:
        if amount:
            fields = self.days.setdefault(day_of(at_ms), {})
            field = field_of(what, promotion)
            fields[field] = fields.get(field, 0) + amount


def _arm(held_out: bool) -> str:
    return ARMS[held_out]
