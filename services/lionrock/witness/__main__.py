"""`python -m lionrock.witness [new-key | keys] --config FILE`."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from lionrock.chassis.http_server import serve_http
from lionrock.chassis.settings import load_settings
from lionrock.tlog.keys import Signer, VerifierKey
from lionrock.witness.app import witness_app
from lionrock.witness.failures import CannotStart
from lionrock.witness.keys import load_keys, new_keys
from lionrock.witness.settings import WitnessSettings
from lionrock.witness.state import open_state
from lionrock.witness.witness import Witness


async def main(settings: WitnessSettings, signers: Sequence[Signer]) -> None:
    """Open the state of the keys, then serve. Raises CannotStart before anything listens."""
    verifier_keys = [str(signer.verifier_key) for signer in signers]
    logs = {origin: [VerifierKey.parse(key) for key in keys] for origin, keys in settings.logs.items()}
    with (
        closing(open_state(settings.state_file, verifier_keys)) as state,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="witness") as worker,
    ):

        async def say_keys(port: int) -> None:
            del port
            keys = [f"{signer.verifier_key.name}+{signer.verifier_key.key_id.hex()}" for signer in signers]  # the rest is long
            logging.getLogger("lionrock.witness").info("cosigning", extra={"keys": keys, "logs": sorted(logs)})

        await serve_http(witness_app(Witness(state, signers, logs), worker), settings, "witness", on_ready=say_keys)


def run(arguments: Sequence[str]) -> None:
    """Do what the first word says; without one, serve."""
    command = arguments[0] if arguments and arguments[0] in ("new-key", "keys") else None
    settings = load_settings(WitnessSettings, arguments if command is None else arguments[1:])
    if command == "new-key":
        signers = new_keys(settings.name, settings.signatures, settings.key_file, settings.state_file)
    else:
        signers = load_keys(settings.key_file, settings.name)
    if command is None:
        asyncio.run(main(settings, signers))
    else:
        for signer in signers:
            print(signer.verifier_key)


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except (CannotStart, OSError) as error:
        sys.exit(f"lionrock witness: {error}")
