"""The words of a promotion, rendered for one customer. Values in, text out; nothing here does I/O.

The templates are written by the retailer and run sandboxed: they see the fields of `Facts`, and no more. A name that
does not exist is an error, found by `check_words` before a promotion is accepted, and never an empty gap in a message.
What is merely absent (a promotion without a product) is an empty text.

The result is plain text on one line; whoever puts it into HTML escapes it.
"""

import math
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from channels.contract import one_line
from nearcast.errors import InputError
from nearcast.moments import Pickup
from nearcast.world import Discount, Product, Promotion, Store, Words

MAX_TITLE = 120
MAX_BODY = 480

#: Languages that write 3,49 and put the currency and the percent sign after the number.
_COMMA_LANGUAGES = frozenset({"cs", "da", "de", "es", "fi", "fr", "it", "nb", "nl", "pl", "pt", "ro", "ru", "sv", "tr"})

# Plain text, see above: escaping here would put &amp; into an SMS.
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


@dataclass(frozen=True)
class Named:
    """A thing with a name: `{{ product }}` and `{{ product.name }}` are the same; it is false where there is none."""

    name: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return self.name

    def __bool__(self) -> bool:
        return bool(self.name)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What templates may speak of. `price` and `discount` are already written out for the locale."""

    product: Named = field(default_factory=Named)
    store: Named = field(default_factory=Named)
    discount: str = ""
    price: str = ""
    customer: Named = field(default_factory=Named)
    #: Of a pickup: the order, where it is, and in how many minutes the customer will be there ("" if unknown).
    order: str = ""
    pickup_store: Named = field(default_factory=Named)
    minutes: int | str = ""
    #: How the order stands.
    status: str = ""
    #: What is out of stock, of an offer of something else, or of another store's.
    instead_of: Named = field(default_factory=Named)
    #: Where the product stands in the store; "" if unknown.
    aisle: str = ""


_NAMES = frozenset(each.name for each in fields(Facts))


#: Something of everything, about as long as usual: to try templates with.
ORDINARY = Facts(
    product=Named("Two-person tent", "green"),
    store=Named("Outdoor Vienna"),
    discount="20%",
    price="$199.00",
    customer=Named("Alexandra"),
    order="A-1742",
    pickup_store=Named("Outdoor Vienna"),
    minutes=12,
    status="ready to be picked up",
    instead_of=Named("Three-person tent", "green"),
    aisle="7",
)


@dataclass(frozen=True)
class Rendered:
    """A message's final texts."""

    title: str
    body: str


def render(promotion: Promotion, locale: str, facts: Facts) -> Rendered:
    """The promotion's words for `locale`, filled in. Raises `InputError` where a template is broken."""
    words = words_for(promotion, locale)
    return Rendered(_fill(words.title, facts)[:MAX_TITLE], _fill(words.body, facts)[:MAX_BODY])


def words_for(promotion: Promotion, locale: str) -> Words:
    """The entry for exactly this locale, else for its language, else the English one."""
    wanted = locale.replace("_", "-")
    for key in (wanted, language_of(wanted), "en"):
        if key in promotion.words:
            return promotion.words[key]
    raise InputError("no_words", 'the promotion has no "en" words', f"promotion {promotion.id}")


def check_words(promotion: Promotion) -> list[str]:
    """Every fault in the promotion's templates, each with its place; an empty list means all of them render."""
    faults = []
    for locale, words in promotion.words.items():
        for name, text in (("title", words.title), ("body", words.body)):
            try:
                # Rendering only visits the branches it takes; this sees names in all of them.
                unknown = meta.find_undeclared_variables(_ENVIRONMENT.parse(text)) - _NAMES
                faults += [
                    f"words.{locale}.{name}: {each!r} is not one of {sorted(_NAMES)}" for each in sorted(unknown)
                ]
                for facts in () if unknown else (Facts(), ORDINARY):
                    _fill(text, facts)
            except (InputError, TemplateError) as error:
                faults.append(f"words.{locale}.{name}: {error}")
    return faults


def facts_of(
    product: Product | None,
    store: Store | None,
    discount: Discount | None,
    customer: str,
    locale: str,
    currency: str = "$",
) -> Facts:
    """The facts of one message; `price` is the regular price, "" if it is not known."""
    written_discount = ""
    if discount is not None and discount.percent is not None:
        written_discount = f"{discount.percent:g}%"
        if language_of(locale) in _COMMA_LANGUAGES:
            written_discount = f"{discount.percent:g} %".replace(".", ",")
    elif discount is not None:
        written_discount = money(discount.amount_cents or 0, locale, currency)
    return Facts(
        product=Named(product.name, product.variant) if product else Named(),
        store=Named(store.name) if store else Named(),
        discount=written_discount,
        price=money(product.price_cents, locale, currency) if product and product.price_cents else "",
        customer=Named(customer),
    )


def with_pickup(facts: Facts, pickup: Pickup, store: Store | None, at_ms: int) -> Facts:
    """The same with what is known of a pickup at `at_ms`; `store` is where the order is."""
    return replace(
        facts,
        order=pickup.order,
        pickup_store=Named(store.name) if store else Named(),
        minutes=max(0, math.ceil((pickup.eta_ms - at_ms) / 60_000)) if pickup.eta_ms else "",
    )


def money(cents: int, locale: str = "en", currency: str = "$") -> str:
    """An amount with two decimals: `$3.49`, or `3,49 $` in languages that write it so. No thousands separators."""
    whole, rest = divmod(abs(cents), 100)
    sign = "-" if cents < 0 else ""
    if language_of(locale) in _COMMA_LANGUAGES:
        return f"{sign}{whole},{rest:02d} {currency}"
    return f"{sign}{currency}{whole}.{rest:02d}"


def language_of(locale: str) -> str:
    return locale.replace("_", "-").partition("-")[0].lower()


@lru_cache(maxsize=4096)
def _compiled(text: str) -> Template:
    return _ENVIRONMENT.from_string(text)


def _fill(text: str, facts: Facts) -> str:
    values = {name: getattr(facts, name) for name in _NAMES}
    try:
        return one_line(_compiled(text).render(values))
    except TemplateError as error:
        raise InputError("broken_template", str(error)) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # What a template's own expression can raise, such as {{ 1 / 0 }}.
        raise InputError("broken_template", f"{type(error).__name__}: {error}") from error
