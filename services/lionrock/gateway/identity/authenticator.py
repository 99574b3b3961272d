"""The one way in: a certificate's id, a bearer token, or both, become a principal, or nothing does.

Knows which kind of credential is which, that two of them must belong to one tenant, and when a refusal is said. Does not know
wires: the listener says what its transport verified (`spiffe_id`) and what the caller wrote (`bearer`, which nobody has checked).

A token that nobody vouches for is refused REFUSAL_AFTER_S after it came, whatever was wrong with it. How long it took to find that
out would otherwise tell whether its issuer, or its key, is one that we know. A key that is newer than the last fetch is fetched in
that time, and the token looked at once more before its end. No more than MAX_REFUSALS_WAITING wait like this: who floods the
gateway with bad tokens is turned away at once, whatever is wrong with them, and holds no places that others need.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from lionrock.gateway.identity.api_keys import PREFIX, holder, read
from lionrock.gateway.identity.failures import CredentialMissingError, RefusalsFullError, TokenInvalidError, Why
from lionrock.gateway.identity.issuer_keys import Keyring
from lionrock.gateway.identity.live_keys import LiveKeys
from lionrock.gateway.identity.tokens import KeyMissing, person
from lionrock.gateway.tenants import Principal, TenantDirectory, TenantName, UnknownPrincipalError, is_person

REFUSAL_AFTER_S: Final = 0.1
MAX_REFUSALS_WAITING: Final = 64
_SECOND_LOOK_S: Final = 0.01
"""So long before the refusal a token whose key was missing is looked at again."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What a caller presents.

    `spiffe_id`: of the certificate that TLS verified, None without one. `bearer`: what follows "Bearer " in the authorization
    header, None without one; an empty one is presented and wrong.
    """

    spiffe_id: str | None = None
    bearer: str | None = None


class Authenticator:
    """Authenticates callers. One instance a gateway; safe for any number of concurrent calls of one event loop."""

    def __init__(
        self,
        directory: TenantDirectory,
        keyring: Keyring,
        api_keys: LiveKeys | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`keyring` holds the keys of the directory's issuers; `api_keys`: None where none are issued. `wall_clock`: since 1970."""
        self._directory = directory
        self._keyring = keyring
        self._api_keys = api_keys
        self._wall_clock = wall_clock
        self._refusals_waiting = 0

    async def authenticate(self, presented: Presented) -> Principal:
        """Return who calls. With a certificate and a token it is the token's person, of the certificate's tenant.

        Raises CredentialMissingError, TokenInvalidError, TokenExpiredError, UnknownPrincipalError, RefusalsFullError,
        KeysUnavailableError: all of them CredentialError.
        """
        beside = None if presented.spiffe_id is None else self._directory.principal(presented.spiffe_id)
        if presented.bearer is not None:
            holder = await self._bearer(presented.bearer, None if beside is None else beside.tenant.name)
            if beside is None or not is_person(beside.actor):
                return holder  # a workload's certificate is that of a front end, which many people share
            return replace(holder, other_names=holder.other_names | {beside.actor})
        if beside is None:
            raise CredentialMissingError("neither a certificate nor a bearer token was presented")
        return beside

    async def _bearer(self, token: str, within: TenantName | None) -> Principal:
        loop = asyncio.get_running_loop()
        refused_at = loop.time() + REFUSAL_AFTER_S
        try:
            return self._holder(token, within)
        except TokenInvalidError as error:
            refused = error
        if refused.why is not Why.NOT_ACCEPTED:
            raise refused
        if self._refusals_waiting >= MAX_REFUSALS_WAITING:
            raise RefusalsFullError("too many tokens are not accepted at the moment") from None
        self._refusals_waiting += 1
        try:
            if isinstance(refused, KeyMissing):
                self._keyring.missed(refused.location)
                await asyncio.sleep(refused_at - _SECOND_LOOK_S - loop.time())
                try:
                    return self._holder(token, within)
                except TokenInvalidError as error:
                    if error.why is not Why.NOT_ACCEPTED:
                        raise
            # Everything that depends on the token is done: from here on one refusal is as another.
            await asyncio.sleep(refused_at - loop.time())
        finally:
            self._refusals_waiting -= 1
        raise refused

    def _holder(self, token: str, within: TenantName | None) -> Principal:
        if not token.startswith(PREFIX):
            return self._person(token, within)
        presented = read(token)
        if presented is None:
            raise TokenInvalidError(Why.MALFORMED)
        if self._api_keys is None:
            raise TokenInvalidError(Why.NOT_ACCEPTED)
        key = self._api_keys.key(*presented, self._wall_clock())
        tenant = self._directory.tenant(key.tenant)
        if tenant is None or (within is not None and tenant.name != within):
            raise TokenInvalidError(Why.NOT_ACCEPTED)
        found = holder(key, tenant)
        if found is None:
            raise UnknownPrincipalError("the tenant grants nothing of what this key may do any more")
        return found

    def _person(self, token: str, within: TenantName | None) -> Principal:
        return person(token, self._directory, self._keyring.find, self._wall_clock(), within)


@asynccontextmanager
async def authenticating(
    directory: TenantDirectory, keys_unavailable: Callable[[], None], api_keys: LiveKeys | None = None
) -> AsyncIterator[Authenticator]:
    """Fetch the keys of the directory's issuers, and authenticate callers while they are kept fresh.

    `keys_unavailable` is told of each fetch that failed. `api_keys` is followed by whoever has it.
    """
    keyring = Keyring(lambda: directory.key_locations, keys_unavailable)
    async with keyring.following():
        yield Authenticator(directory, keyring, api_keys)
