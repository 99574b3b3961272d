"""A field that is known and not offered: refused by name with its reason, unless its value asks for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNSUPPORTED = "unsupported_parameter"


@dataclass(frozen=True)
class Refused:
    """Marks a field of a request. `neutral`: values, besides null, that say what is done in any case."""

    why: str
    neutral: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept null and the neutral values."""
        del source, handler
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Show what is accepted."""
        del schema, handler
        return {"enum": [None, *self.neutral], "description": f"Not supported: {self.why}."}

    def _check(self, value: Any) -> Any:
        if value is None or any(type(value) is type(neutral) and value == neutral for neutral in self.neutral):
            return None
        raise PydanticCustomError(UNSUPPORTED, "{why}", {"why": self.why})
