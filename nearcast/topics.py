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

PRODUCTS = "stores.products"
STOCK = "stores.stock"
PLACES = "stores.places"
PROMOTIONS = "products.promotions"

#: Catalogue changes, keyed by the thing changed. Read by every engine, applied to the shared world.
CATALOGUE_TOPICS = (PRODUCTS, STOCK, PLACES, PROMOTIONS)
