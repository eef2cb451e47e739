"""Display positions as fences: standing at a product is being in a small circle around it.

Such a circle is far smaller than the error of satellite positioning, so only precise sources (beacon, Wi-Fi ranging, QR
code) ever enter it: see `tracker`.
"""

from collections import Counter

from nearcast.world import Circle, Fence, Product


def display_fences(product: Product) -> list[Fence]:
    """One fence per display, in the order of the displays; the id's number counts the displays in its own store.

    A display is left at twice its radius: the general margin of 10 m would reach across several aisles. All else it has
    from the fence around it, if it names one.
    """
    counts: Counter[str] = Counter()
    fences = []
    for display in product.displays:
        fences.append(
            Fence(
                id=f"{display.store}:{product.sku}:{counts[display.store]}",
                store=display.store,
                kind="product",
                geometry=Circle(center=(display.lng, display.lat), radius_m=display.radius_m),
                name=product.name,
                parent=display.parent,
                sku=product.sku,
                floor=display.floor,
                beacons=display.beacons,
                exit_margin_m=min(display.radius_m, 10.0),
            )
        )
        counts[display.store] += 1
    return fences
