"""The detectors that policies can name.

Knows: which detectors ship. Does not know: policies, streams.
"""

from types import MappingProxyType
from typing import Final

from lionrock.guardrails.detectors.contact import EMAIL, PHONE
from lionrock.guardrails.detectors.detector import CONTEXT_LENGTH, Detector, Hit, Shape
from lionrock.guardrails.detectors.identity import HKID, RESIDENT_ID
from lionrock.guardrails.detectors.payment import CARD

DETECTORS: Final = MappingProxyType({d.name: d for d in (HKID, RESIDENT_ID, CARD, PHONE, EMAIL)})

__all__ = ["CONTEXT_LENGTH", "DETECTORS", "Detector", "Hit", "Shape"]
