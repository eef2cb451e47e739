"""The words of promotions."""

import pytest

from channels.templates import Facts, Named, check_words, facts_of, money, render
from nearcast.errors import InputError
from nearcast.world import Discount, Product, Promotion, Store, Words

FACTS = Facts(product=Named("Green tea", "250 g"), store=Named("Main Street"), discount="20%", price="$3.49")


def _promotion(**words: str) -> Promotion:
    by_locale = {name.replace("_", "-"): Words(title=title) for name, title in words.items()}
    return Promotion(id="p", name="p", trigger="enter", words={"en": Words(title="Hello"), **by_locale})


@pytest.mark.parametrize(
    ("locale", "title"),
    [("de-AT", "Servus"), ("de_AT", "Servus"), ("de-DE", "Hallo"), ("de", "Hallo"), ("fr-FR", "Hello"), ("", "Hello")],
)
def test_words_are_the_nearest_to_the_locale(locale: str, title: str) -> None:
    """Exactly this locale, else its language, else English."""
    assert render(_promotion(de="Hallo", de_AT="Servus"), locale, FACTS).title == title


def test_words_are_filled_in() -> None:
    """Things can be named with and without `.name`; what is absent is false and empty, not an error."""
    words = Words(
        title="{{ discount }} off {{ product }}{% if customer %} for {{ customer }}{% endif %}",
        body="{{ product.name }} {{ product.variant }}\n now {{ price }} at {{ store|upper }}",
    )
    rendered = render(Promotion(id="p", name="p", trigger="enter", words={"en": words}), "en", FACTS)
    assert rendered.title == "20% off Green tea"
    assert rendered.body == "Green tea 250 g now $3.49 at MAIN STREET"


def test_a_name_from_outside_is_text() -> None:
    """A product called like a template, or with line breaks, is neither run nor a second line."""
    facts = Facts(product=Named("{{ 7*7 }}\r\nBcc: x"))
    assert render(_promotion(en="{{ product }}"), "en", facts).title == "{{ 7*7 }} Bcc: x"


@pytest.mark.parametrize(
    "template",
    ["{{ prise }}", "{% if store %}{{ 1/0 }}{% endif %}", "{{ product.colour }}", "{{ 'a' + 1 }}", "{{"],
)
def test_broken_words_are_found_before_they_are_used(template: str) -> None:
    """`check_words` names the place; rendering refuses instead of leaving a gap."""
    promotion = _promotion(de=template)
    faults = check_words(promotion)
    assert faults
    assert all(fault.startswith("words.de.title: ") for fault in faults)
    with pytest.raises(InputError):
        render(promotion, "de", FACTS)


def test_a_branch_never_taken_is_checked_too() -> None:
    """An unknown name is found wherever it stands."""
    assert len(check_words(_promotion(en="{% if not product and product %}{{ prise }}{% endif %}"))) == 1
    assert check_words(_promotion(en="{% for letter in discount %}{{ letter }}{% endfor %}")) == []


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ product.__init__.__globals__ }}"])
def test_templates_stay_in_their_sandbox(template: str) -> None:
    """Words can't reach into the program."""
    assert check_words(_promotion(en=template))


@pytest.mark.parametrize(
    ("cents", "locale", "text"),
    [
        (349, "en", "$3.49"),
        (5, "en-GB", "$0.05"),
        (349, "de-AT", "3,49 $"),
        (123456, "en", "$1234.56"),
        (-150, "en", "-$1.50"),
    ],
)
def test_money_is_written_for_the_locale(cents: int, locale: str, text: str) -> None:
    """Two decimals, a point or a comma."""
    assert money(cents, locale) == text


def test_facts_come_from_the_world() -> None:
    """Discounts and prices are written out; an unknown price is empty, not zero."""
    product = Product(sku="tea", name="Tea", segment="tea", price_cents=349)
    store = Store(id="s1", name="Main Street", lat=0, lng=0)
    english = facts_of(product, store, Discount(percent=12.5), "Anna", "en")
    assert (english.discount, english.price, str(english.store)) == ("12.5%", "$3.49", "Main Street")
    german = facts_of(product, store, Discount(percent=12.5), "Anna", "de")
    assert (german.discount, german.price) == ("12,5 %", "3,49 $")
    assert facts_of(None, None, Discount(amount_cents=50), "", "en") == Facts(discount="$0.50")
