"""The test of many pairs of shape and cap together: columns of shapes by their number."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from geofence.rings import Ring
from geofence.shapes import Area, CapTest, Disc, Geometries, Shape, areas_test_caps, discs_test_caps
from geofence.sphere import Bools, Floats

Numbers = NDArray[np.int64]


class CapsOfMany:
    """Immutable."""

    __slots__ = ("_areas", "_discs", "_is_area", "_is_disc", "_rings")

    def __init__(self, shapes: Sequence[Shape | Ring]) -> None:
        discs = [(shape.lat, shape.lng, shape.radius_m) if isinstance(shape, Disc) else (0, 0, 0) for shape in shapes]
        self._discs: Floats = np.array(discs, dtype=np.float64)
        self._is_disc: Bools = np.array([isinstance(shape, Disc) for shape in shapes], dtype=np.bool_)
        self._is_area: Bools = np.array([isinstance(shape, Area) for shape in shapes], dtype=np.bool_)
        areas = [shape.geometry if isinstance(shape, Area) else None for shape in shapes]
        self._areas: Geometries = np.array(areas, dtype=np.object_)
        self._rings = {number: shape for number, shape in enumerate(shapes) if isinstance(shape, Ring)}

    def test(self, numbers: Numbers, lats: Floats, lngs: Floats, radius_rad: float) -> CapTest:
        """What shape `numbers[i]` says to a cap of this radius around position i."""
        result = CapTest(np.zeros(len(numbers), dtype=np.bool_), np.zeros(len(numbers), dtype=np.bool_))
        (on,) = self._is_disc[numbers].nonzero()
        if on.size:
            lat, lng, radius_m = self._discs[numbers[on]].T
            found = discs_test_caps(lat, lng, radius_m, lats[on], lngs[on], radius_rad)
            result.inside[on], result.touching[on] = found
        (on,) = self._is_area[numbers].nonzero()
        if on.size:
            areas = self._areas[numbers[on]]
            result.inside[on], result.touching[on] = areas_test_caps(areas, lats[on], lngs[on], radius_rad)
        for number, ring in self._rings.items():
            (on,) = (numbers == number).nonzero()
            if on.size:
                result.inside[on], result.touching[on] = ring.test_caps(lats[on], lngs[on], radius_rad)
        return result
