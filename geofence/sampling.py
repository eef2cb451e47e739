"""How probable it is that a customer is inside a fence, given a fix and its accuracy.

The error of a fix is taken as a two-dimensional Gaussian, the same in all directions, of which 68 % lie within the
accuracy radius: sigma = accuracy / sqrt(-2 ln 0.32) = accuracy / 1.5096. The probability is the share of it that falls
into the fence, measured with 256 points: point k lies at radius sigma * sqrt(-2 ln(1 - (k + 1/2) / 256)) (equal shares
of the distribution) and angle k times the golden angle (evenly spread). That is right to about 0.01 for circles,
slivers and holes alike, and always the same for the same fix.

Most fixes need less work than that, for the same answer. For a circle only the distance to its centre matters: the
points are laid around the fix with the centre straight ahead, on a plane, and the law of cosines tells which are in
the circle. (The plane is wrong by less than 1 part in 10,000 for the largest circle.) And where a polygon holds the
outermost point's whole circle, 3.53 sigma or 2.34 accuracies around the fix, every point is inside.

For a circle of radius R around the fix itself the exact value is 1 - exp(-R^2 / (2 sigma^2)); at distance s from a
straight edge it is Phi(s / sigma). Tests hold the samples against both.
"""

import math

import numpy as np

from geofence.shapes import Disc, Shape
from geofence.sphere import Floats, distance_m, offset

SAMPLES = 256
#: Standard deviation along one axis, per metre of 68 % radius.
SIGMA_PER_ACCURACY = 1 / math.sqrt(-2 * math.log(1 - 0.68))

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_STEPS: Floats = np.arange(SAMPLES, dtype=np.float64)
_BEARINGS_RAD: Floats = _STEPS * _GOLDEN_ANGLE
_RADII: Floats = np.sqrt(-2 * np.log1p(-(_STEPS + 0.5) / SAMPLES))
_RADII_SQUARED: Floats = _RADII**2
_TWICE_AHEAD: Floats = 2 * _RADII * np.cos(_BEARINGS_RAD)
_OUTERMOST = float(_RADII[-1])


def probability_inside(shape: Shape, lat: float, lng: float, accuracy_m: float) -> float:
    """The probability, 0..1, that a fix of this accuracy (68 % radius) came from inside the shape."""
    if accuracy_m <= 0:
        return float(shape.contain(np.array([lat]), np.array([lng]))[0])
    sigma_m = accuracy_m * SIGMA_PER_ACCURACY
    if isinstance(shape, Disc):
        return _share_of_disc(shape.radius_m / sigma_m, distance_m(shape.lat, shape.lng, lat, lng) / sigma_m)
    if shape.surely_holds(lat, lng, _OUTERMOST * sigma_m):
        return 1.0
    lats, lngs = offset(lat, lng, _BEARINGS_RAD, _RADII * sigma_m)
    return float(shape.contain(lats, lngs).mean())


def _share_of_disc(radius: float, apart: float) -> float:
    """The share of the points inside a disc whose centre is `apart` from the fix; both lengths in sigmas."""
    if apart + _OUTERMOST <= radius:
        return 1.0
    beyond_squared = _RADII_SQUARED - apart * _TWICE_AHEAD
    return int(np.count_nonzero(beyond_squared <= radius * radius - apart * apart)) / SAMPLES
