"""Approves and signs the certificate requests of Ray pods, and writes refusals where whoever asks `kubectl get csr` sees them.

Knows the API's conditions and the authority's Secret; who may have what is `signing_requests`. A request is approved by one write
and signed by the next, each only if nobody changed it since it was judged; a request that was approved but not signed, because the
operator ended in between, is judged again. With a signer of others (cert-manager) it only approves.
"""

from __future__ import annotations

import base64
import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lionrock.chassis.devca import DevelopmentCa
from lionrock.operator.api_errors import ApiError, NotFound
from lionrock.operator.api_resources import SECRET
from lionrock.operator.certificate_signer import sign
from lionrock.operator.cluster import Cluster, Object
from lionrock.operator.informers import Change
from lionrock.operator.signing_requests import Denied, Facts, Granted, NotYet, judge
from lionrock.operator.work_queue import ShutDown, WorkQueue

log = logging.getLogger("lionrock.operator")

AUTHORITY_FRESH_S: Final = 60.0
PATIENCE_S: Final = 60.0
LOOK_AGAIN_S: Final = 0.5
_ENDS: Final = frozenset({"Denied", "Failed"})


class AuthorityUnusable(Exception):
    """The Secret with the mesh's authority is missing or does not hold one that can sign."""


@dataclass(frozen=True, slots=True)
class AuthoritySecret:
    """Where the built-in authority is: a Secret with ca.key and ca.crt."""

    namespace: str
    name: str
    trust_domain: str


class Authority:
    """The built-in authority, read again from time to time: a new one may have been made."""

    def __init__(self, cluster: Cluster, where: AuthoritySecret, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._where = where
        self._clock = clock
        self._loaded: tuple[float, DevelopmentCa] | None = None

    def load(self) -> DevelopmentCa:
        """Return the authority. Raises AuthorityUnusable, ApiError."""
        now = self._clock()
        if self._loaded is not None and now - self._loaded[0] < AUTHORITY_FRESH_S:
            return self._loaded[1]
        where = f"the Secret {self._where.namespace}/{self._where.name}"
        try:
            data = self._cluster.read(SECRET, self._where.namespace, self._where.name).get("data") or {}
            files = [base64.b64decode(data[name], validate=True) for name in ("ca.key", "ca.crt")]
            authority = DevelopmentCa.load(files[0], files[1], self._where.trust_domain)
        except (KeyError, NotFound):
            raise AuthorityUnusable(f"{where} is missing, or has no ca.key or ca.crt") from None
        except ValueError:
            raise AuthorityUnusable(f"{where} holds no authority of this trust domain that is valid now") from None
        self._loaded = (now, authority)
        return authority


class Approver:
    """Brings one request at a time to its end. Not thread-safe."""

    def __init__(
        self,
        cluster: Cluster,
        facts: Facts,
        authority: Authority | None,
        observe: Callable[[Object], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put it together. authority None: another signer signs. observe is told every request as it was written."""
        self._cluster = cluster
        self._facts = facts
        self._authority = authority
        self._observe = observe
        self._clock = clock
        self._waiting_since: dict[str, float] = {}

    def handle(self, request: Object) -> float | None:
        """Approve, sign, deny or leave a request. Returns when to look again, in seconds. Raises ApiError, AuthorityUnusable."""
        name = str(request["metadata"]["name"])
        conditions = {str(each.get("type")) for each in (request.get("status") or {}).get("conditions") or ()}
        signed = bool((request.get("status") or {}).get("certificate"))
        if conditions & _ENDS or signed or ("Approved" in conditions and self._authority is None):
            self._waiting_since.pop(name, None)
            return None
        verdict = judge(request, self._facts)
        if isinstance(verdict, NotYet):
            since = self._waiting_since.setdefault(name, self._clock())
            if self._clock() - since < PATIENCE_S:
                return LOOK_AGAIN_S
            verdict = verdict.otherwise
        self._waiting_since.pop(name, None)
        match verdict:
            case Denied():
                # Approving is final for the API server; what was approved and must not be signed has failed instead.
                kind, subresource = ("Failed", "status") if "Approved" in conditions else ("Denied", "approval")
                self._write(request, subresource, _condition(kind, verdict.reason, verdict.message))
                log.warning("certificate request %s refused: %s: %s", name, verdict.reason, verdict.message)
            case Granted():
                self._grant(request, verdict, approved="Approved" in conditions)
        return None

    def forget(self, name: str) -> None:
        """Drop what is remembered of a request that is gone."""
        self._waiting_since.pop(name, None)

    def _grant(self, request: Object, verdict: Granted, *, approved: bool) -> None:
        authority = None if self._authority is None else self._authority.load()
        if not approved:
            message = "the pod runs, and the names are its own"
            request = self._write(request, "approval", _condition("Approved", "PodOfModel", message))
        if authority is None:
            return
        try:
            certificate = sign(authority, verdict.requested, dt.timedelta(seconds=verdict.lifetime_s))
        except ValueError:
            self._write(request, "status", _condition("Failed", "NotSigned", "the authority could not sign the request"))
            return
        self._write(request, "status", certificate=certificate)

    def _write(
        self,
        request: Mapping[str, Any],
        subresource: str,
        condition: Mapping[str, Any] | None = None,
        certificate: bytes | None = None,
    ) -> Object:
        status = dict(request.get("status") or {})
        if condition is not None:
            status["conditions"] = [*(status.get("conditions") or ()), condition]
        if certificate is not None:
            status["certificate"] = base64.b64encode(certificate).decode()
        written = self._cluster.replace({**request, "status": status}, subresource)
        self._observe(written)
        return written


def _condition(kind: str, reason: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


class ApproverLoop:
    """Handles requests one after the other in a thread of its own, for as long as `may_act` says so."""

    def __init__(
        self,
        approver: Approver,
        requests: Callable[[], list[Object]],
        get: Callable[[str], Object | None],
        may_act: Callable[[], bool],
        queue: WorkQueue[str],
    ) -> None:
        """Put it together. requests, get: of the informer, all and by name."""
        self._approver = approver
        self._requests = requests
        self._get = get
        self._may_act = may_act
        self._queue = queue
        self._thread = threading.Thread(target=self._run, name="approver", daemon=True)

    def start(self) -> None:
        """Begin to handle requests."""
        self._thread.start()

    def take(self, change: Change) -> None:
        """Handle what an informer reported."""
        body = change.after or change.before
        assert body is not None, "a change has a before or an after"
        self._queue.add(str(body["metadata"]["name"]))

    def look_at_everything(self) -> None:
        """Handle all requests that there are, as after a hand-over."""
        for request in self._requests():
            self._queue.add(str(request["metadata"]["name"]))

    def stop(self, drain_s: float) -> bool:
        """Take no more and finish the one that was begun. Returns whether it ended in time."""
        drained = self._queue.shut_down(drain_s)
        self._thread.join(drain_s if drained else 0)
        return drained

    def _run(self) -> None:
        while True:
            try:
                name = self._queue.take()
            except ShutDown:
                return
            if name is not None:
                self._handle(name)

    def _handle(self, name: str) -> None:
        request = self._get(name)
        if request is None or not self._may_act():
            self._approver.forget(name)
            self._queue.succeed(name)
            return
        try:
            again_after_s = self._approver.handle(request)
        except (ApiError, AuthorityUnusable) as error:
            retry_after_s = error.retry_after_s if isinstance(error, ApiError) else None
            delay_s = self._queue.fail(name, at_least_s=retry_after_s or 0.0)
            log.warning("certificate request %s: %s; again in %.2f s", name, error, delay_s)
        except Exception:
            log.exception("certificate request %s could not be handled", name)
            self._queue.fail(name)
        else:
            self._queue.succeed(name, again_after_s=again_after_s)
