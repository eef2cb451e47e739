"""Which promotions a moment may lead to, found without looking at those that it can't.

An index over the promotions of one trigger: by the stores or fences that they are for, then by the things that they
name. What it finds holds every promotion that fits, and some that don't: `offers.candidates` looks at each.
"""

from collections.abc import Iterable, Mapping, Sequence

from nearcast.customer import Customer
from nearcast.moments import Moment
from nearcast.world import Promotion

#: A promotion that names more stores, fences or things is looked at for all of them: it is for nearly everywhere.
_NAMED = 64


class _Group:
    """The promotions for one place, as their numbers in the order of ids."""

    __slots__ = ("anything", "named", "named_by", "owned_by")

    def __init__(self) -> None:
        #: For nothing in particular, or for too many things to list.
        self.anything: list[int] = []
        #: For things that they name; by the name of the SKU or the segment. One of each name may be meant.
        self.named: list[int] = []
        self.named_by: dict[str, list[int]] = {}
        #: The same, but only for whoever has the thing in the cart or on the wishlist.
        self.owned_by: dict[str, list[int]] = {}

    def add(self, number: int, promotion: Promotion) -> None:
        names = dict.fromkeys((*promotion.what.skus, *promotion.what.segments))
        if not 0 < len(names) <= _NAMED:
            self.anything.append(number)
            return
        by_name = self.named_by
        if promotion.who.in_cart or promotion.who.on_wishlist:
            by_name = self.owned_by
        else:
            self.named.append(number)
        for name in names:
            by_name.setdefault(name, []).append(number)


class Reach:
    """The promotions of one trigger, in the order of their ids."""

    def __init__(self, promotions: Sequence[Promotion]) -> None:
        self._promotions = promotions
        self._anywhere = _Group()
        self._at_store: dict[str, _Group] = {}
        self._at_fence: dict[str, _Group] = {}
        for number, promotion in enumerate(promotions):
            for group in self._groups_of(promotion):
                group.add(number, promotion)

    def _groups_of(self, promotion: Promotion) -> Iterable[_Group]:
        where = promotion.where
        for names, groups in ((where.fences, self._at_fence), (where.stores, self._at_store)):
            if 0 < len(names) <= _NAMED:
                return [groups.setdefault(name, _Group()) for name in dict.fromkeys(names)]
        return [self._anywhere]

    def promotions(self, moment: Moment, customer: Customer, segments: Mapping[str, str]) -> list[Promotion]:
        """Every promotion that may fit, in the order of their ids. `segments` are those of all SKUs."""
        groups = [self._anywhere]
        if moment.store is not None and moment.store in self._at_store:
            groups.append(self._at_store[moment.store])
        if self._at_fence:
            places = (moment.fence or "", *moment.around)
            groups += [self._at_fence[place] for place in places if place in self._at_fence]
        found: set[int] = set()
        for group in groups:
            found.update(group.anything)
            if moment.sku is None:
                found.update(group.named)
            else:
                for name in (moment.sku, segments.get(moment.sku, "")):
                    found.update(group.named_by.get(name, ()))
        owned = [group.owned_by for group in groups if group.owned_by]
        if owned:
            things = {*customer.cart, *customer.wishlist} if moment.sku is None else {moment.sku}
            names = {*things, *[segments.get(thing, "") for thing in things]}
            for by_name in owned:
                for name in by_name.keys() & names:
                    found.update(by_name[name])
        return [self._promotions[number] for number in sorted(found)]
