"""The reasons in words: why a candidate, a moment or a message led to nothing, as a person would say it.

One sentence for each code, for the demo's page, `nearcast promotions explain` and whoever shows decisions to people.
"""

from collections.abc import Mapping

from nearcast.decisions import Reason

IN_WORDS: Mapping[Reason, str] = {
    Reason.OPTED_OUT: "The customer has opted out of everything.",
    Reason.NO_CONSENT: "The customer has consented to none of its channels, or withdrew the use of their location.",
    Reason.LOW_CONFIDENCE: "It is too uncertain that the customer is there.",
    Reason.SPOOFED: "The position looks made up.",
    Reason.OUTSIDE_WINDOW: "The campaign has not begun yet, or is over.",
    Reason.NOT_IN_AUDIENCE: "The customer does not belong to the audience.",
    Reason.OTHER_ARM: "The customer belongs to another arm of the experiment.",
    Reason.OUTSIDE_HOURS: "It is outside the hours of the promotion.",
    Reason.PERSONAL_PRICES_OFF: "Prices for one customer are switched off.",
    Reason.NO_PRODUCT: "The product is not in the catalogue.",
    Reason.STORE_CLOSED: "The store, or the place in it, is closed.",
    Reason.OUT_OF_STOCK: "The store has none of it left.",
    Reason.IN_STOCK: "The store has it, so there is no need for something else.",
    Reason.NOWHERE_ELSE: "No store near enough has it either.",
    Reason.NO_ALTERNATIVE: "The store has nothing else of that kind.",
    Reason.NO_ANCHOR_PRICE: "The customer's purchases give no price to start from, or none below the list price.",
    Reason.STAFF_CONTACT: "A member of staff spoke to the customer a moment ago.",
    Reason.QUIET_HOURS: "These are the customer's quiet hours.",
    Reason.CAPPED: "The customer has had this promotion often enough.",
    Reason.CAPPED_OVERALL: "The customer has had enough messages of all promotions together.",
    Reason.CAPPED_CHANNELS: "The customer has had enough messages by each of its channels.",
    Reason.BUDGET_EXHAUSTED: "The budget of the promotion is used up.",
    Reason.OUTRANKED: "Another promotion was worth more.",
    Reason.NOT_WORTH_IT: "It is expected to bring less than it costs.",
    Reason.HOLDOUT: "The customer is held out, so that the effect of offers can be measured.",
    Reason.EXPLORED: "Chance chose something else, so that the models learn.",
    Reason.HELD: "Quiet hours: it will be decided anew when they are over.",
    Reason.LEFT: "The customer has left.",
    Reason.TOO_LATE: "The moment was over before it could be sent.",
    Reason.UNREACHABLE: "The customer could be reached by none of its channels.",
    Reason.PROMOTION_ENDED: "The promotion ended, or was taken away, in the meantime.",
    Reason.ERASED: "The customer's data is being erased.",
    Reason.BOUGHT: "The customer has bought it in the meantime.",
}


def in_words(reason: str) -> str:
    """The sentence of a reason; of one that is not known here (a newer server's), the code itself."""
    try:
        return IN_WORDS[Reason(reason)]
    except ValueError:
        return f"{reason}."
