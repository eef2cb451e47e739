"""The sample city: a grid of streets, and buildings with departments and stands in some of its blocks.

Pure, in metres on the plan. A block is `BLOCK_X` by `BLOCK_Y` between the middles of its streets; a store stands at
the south edge of its block with the door on the street. Floor plans aren't in any public data, so these are drawn
here, in four shapes of which none is a plain rectangle.
"""

from typing import NamedTuple

from clients.geo import Frame, Spot

BLOCK_X, BLOCK_Y = 120.0, 95.0
COLUMNS, ROWS = 9, 5
#: In Vienna's third district, where the streets run like this.
FRAME = Frame(lat=48.2008, lng=16.3835, turn_deg=11.0)
#: From the middle of the street to the house fronts.
_PAVEMENT = 9.0
#: Column and row of each store's block.
STORE_BLOCKS = ((1, 0), (4, 1), (7, 0), (0, 3), (3, 4), (7, 3))

Ring = tuple[Spot, ...]

#: Building outlines, anticlockwise; the door is in the middle of the south wall, at (0, 0).
_OUTLINES: tuple[Ring, ...] = (
    # an L, with a yard in the north-east
    tuple(Spot(x, y) for x, y in ((-22, 0), (22, 0), (22, 23), (10, 23), (10, 34), (-22, 34))),
    # a corner house with its corners cut off
    tuple(Spot(x, y) for x, y in ((-22, 4), (-18, 0), (18, 0), (22, 4), (22, 30), (18, 34), (-18, 34), (-22, 30))),
    # a T, wide in front
    tuple(Spot(x, y) for x, y in ((-23, 0), (23, 0), (23, 22), (13, 22), (13, 35), (-13, 35), (-13, 22), (-23, 22))),
    # a slanted back wall
    tuple(Spot(x, y) for x, y in ((-21, 0), (23, 0), (23, 26), (-10, 35), (-21, 35))),
)
#: Department outlines by building shape; every corner lies inside the building.
_FLOORS: tuple[tuple[Ring, ...], ...] = (
    tuple(
        tuple(Spot(x, y) for x, y in ring)
        for ring in (
            ((-20, 8), (-3, 8), (-3, 19), (-20, 19)),
            ((3, 8), (20, 8), (20, 21), (7, 21), (3, 17)),
            ((-20, 22), (-7, 22), (-7, 32), (-20, 32)),
            ((-4, 22), (2, 22), (8, 25), (8, 32), (-4, 32)),
        )
    ),
    tuple(
        tuple(Spot(x, y) for x, y in ring)
        for ring in (
            ((-20, 9), (-4, 7), (-4, 18), (-20, 18)),
            ((4, 7), (20, 9), (20, 18), (4, 18)),
            ((-20, 21), (-3, 21), (-3, 32), (-17, 32), (-20, 29)),
            ((3, 21), (20, 21), (20, 29), (17, 32), (3, 32)),
        )
    ),
    tuple(
        tuple(Spot(x, y) for x, y in ring)
        for ring in (
            ((-21, 7), (-4, 7), (-4, 20), (-21, 20)),
            ((4, 7), (21, 7), (21, 20), (4, 20)),
            ((-11, 23), (11, 23), (11, 29), (7, 33), (-7, 33), (-11, 29)),
        )
    ),
    tuple(
        tuple(Spot(x, y) for x, y in ring)
        for ring in (
            ((-19, 8), (-2, 8), (-2, 18), (-19, 18)),
            ((4, 8), (21, 8), (21, 17), (4, 17)),
            ((-19, 21), (-8, 21), (-8, 33), (-19, 33)),
            ((-4, 21), (20, 20), (20, 24), (-4, 31)),
        )
    ),
)


class Department(NamedTuple):
    outline: Ring
    #: Where products stand, at least 3 m apart.
    stands: tuple[Spot, ...]


class Building(NamedTuple):
    """One store's house, on the plan of the city."""

    outline: Ring
    departments: tuple[Department, ...]
    #: In the street before the door, just inside it, and at the till.
    street: Spot
    door: Spot
    till: Spot


def building(index: int) -> Building:
    """The house of store `index` (0 to 5)."""
    column, row = STORE_BLOCKS[index]
    door = Spot((column + 0.5) * BLOCK_X, row * BLOCK_Y + _PAVEMENT)
    shape = index % len(_OUTLINES)
    floor = [_placed(ring, door) for ring in _FLOORS[shape]]
    return Building(
        outline=_placed(_OUTLINES[shape], door),
        departments=tuple(Department(ring, _stands(ring)) for ring in floor),
        street=door.moved(0, -_PAVEMENT),
        door=door.moved(0, 2),
        till=door.moved(-6, 4.5),
    )


def crossings() -> list[Spot]:
    """Every street crossing, row by row."""
    return [Spot(column * BLOCK_X, row * BLOCK_Y) for row in range(ROWS + 1) for column in range(COLUMNS + 1)]


def streets() -> list[tuple[Spot, Spot]]:
    """The middle line of every street."""
    width, height = COLUMNS * BLOCK_X, ROWS * BLOCK_Y
    across = [(Spot(0, row * BLOCK_Y), Spot(width, row * BLOCK_Y)) for row in range(ROWS + 1)]
    along = [(Spot(column * BLOCK_X, 0), Spot(column * BLOCK_X, height)) for column in range(COLUMNS + 1)]
    return across + along


def centre(ring: Ring) -> Spot:
    """The middle of the ring's bounding box."""
    xs, ys = [spot.x for spot in ring], [spot.y for spot in ring]
    return Spot((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2)


def inside(ring: Ring, spot: Spot) -> bool:
    """Even-odd rule: a ray to the east crosses the outline an odd number of times."""
    crossings_east = False
    for a, b in zip(ring, ring[1:] + ring[:1], strict=True):
        if (a.y > spot.y) != (b.y > spot.y) and spot.x < a.x + (spot.y - a.y) / (b.y - a.y) * (b.x - a.x):
            crossings_east = not crossings_east
    return crossings_east


def _placed(ring: Ring, at: Spot) -> Ring:
    return tuple(spot.moved(at.x, at.y) for spot in ring)


def _stands(ring: Ring) -> tuple[Spot, ...]:
    """A 3.5 m grid over the department, as far as it lies a good metre inside."""
    middle = centre(ring)
    grid = [middle.moved(3.5 * column, 3.5 * row) for row in range(-2, 3) for column in range(-3, 4)]
    reach = (Spot(1.2, 0), Spot(-1.2, 0), Spot(0, 1.2), Spot(0, -1.2))
    return tuple(spot for spot in grid if all(inside(ring, spot.moved(r.x, r.y)) for r in reach))
