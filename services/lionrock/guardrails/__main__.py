"""`python -m lionrock.guardrails --config FILE`."""

import asyncio
import sys

from lionrock.chassis.server import Registration, serve
from lionrock.chassis.settings import load_settings
from lionrock.guardrails.policy import PolicyInvalid, load_policies
from lionrock.guardrails.servicer import GuardrailsServicer
from lionrock.guardrails.settings import GuardrailsSettings
from lionrock.guardrails.v1.guardrails_pb2_grpc import add_GuardrailsServiceServicer_to_server

SERVICE = "lionrock.guardrails.v1.GuardrailsService"


async def main() -> None:
    """Load settings and policies, then serve until told to stop."""
    settings = load_settings(GuardrailsSettings, sys.argv[1:])
    try:
        policies = load_policies(settings.policies.directory)
    except PolicyInvalid as error:
        sys.exit(f"lionrock guardrails: {error}")
    servicer = GuardrailsServicer(policies, settings.work)
    try:
        await serve(
            settings,
            "guardrails",
            [Registration(add_GuardrailsServiceServicer_to_server, servicer, SERVICE, frozenset({"gateway"}))],
        )
    finally:
        servicer.close()


if __name__ == "__main__":
    asyncio.run(main())
