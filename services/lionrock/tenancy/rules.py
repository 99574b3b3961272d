"""What a Tenant's validators refuse, said once more as the API server of Kubernetes understands it.

A class or field whose form a JSON Schema alone cannot say states a rule beside its validator; tools/tenant_definition.py takes it
over into the resource's schema. The language is the Common Expression Language, `self` is the value that the rule is about. The
API server also bounds what a rule may cost at worst, by the bounds of the lists that it goes over. Source: Kubernetes, "Validation
rules" of custom resource definitions.
"""

from __future__ import annotations

from typing import Any, Final

KEYWORD: Final = "x-kubernetes-validations"


def rules(*stated: tuple[str, str]) -> dict[str, Any]:
    """Return what to state as `json_schema_extra`. stated: each rule with what is told to whom it refuses."""
    return {KEYWORD: [{"rule": rule, "message": message} for rule, message in stated]}


DISTINCT: Final = rules(("self.all(each, self.exists_one(other, other == each))", "states something twice"))
"""Of a list of words. No `x-kubernetes-list-type: set`: of sets the API server makes a union of what two people apply, and so a
grant that neither wrote. Within the items of another list it makes none, and there the tool writes a set, which costs nothing."""
