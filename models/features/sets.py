"""Every kind of model's feature set."""

from collections.abc import Mapping
from types import MappingProxyType

from models.features.base import FeatureSet, Kind
from models.features.redeem import REDEEM

SETS: Mapping[Kind, FeatureSet] = MappingProxyType({known.kind: known for known in (REDEEM,)})
