"""Every kind of model's feature set."""

from collections.abc import Mapping
from types import MappingProxyType

from models.features.base import FeatureSet, Kind
from models.features.buy_next import BUY_NEXT
from models.features.channel import CHANNEL
from models.features.redeem import REDEEM

SETS: Mapping[Kind, FeatureSet] = MappingProxyType({known.kind: known for known in (REDEEM, BUY_NEXT, CHANNEL)})
