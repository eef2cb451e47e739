"""The topics of the event log.

Every topic listed in `CUSTOMER_TOPICS` is keyed by customer and has the same number of partitions, so one worker
owns partition *p* of all of them and sees a customer's events of each topic in order.
"""

LOCATIONS = "customers.locations"
CARTS = "customers.carts"
PURCHASES = "customers.purchases"
ACTIONS = "customers.actions"
#: Written by nearcast itself: receipts, due timers, stitched profiles.
FEEDBACK = "nearcast.feedback"

CUSTOMER_TOPICS = (LOCATIONS, CARTS, PURCHASES, ACTIONS, FEEDBACK)

STORES = "stores.profiles"
FENCES = "stores.fences"
PRODUCTS = "stores.products"
STOCK = "stores.stock"
PROMOTIONS = "products.promotions"

#: Catalogue changes, keyed by the id of the thing changed; an empty value removes it. Applied to the shared world.
CATALOGUE_TOPICS = (STORES, FENCES, PRODUCTS, STOCK, PROMOTIONS)

#: Written by nearcast for others to read, keyed by customer: what was sent to customers, and what was taken back.
SENT = "customers.promotions"

#: For so long the coordinates of a fix are kept anywhere, in ms.
POSITIONS_KEPT_MS = 15 * 60_000
