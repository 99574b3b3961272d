"""A watch of the API in a thread of its own: every state that the API server shows of some objects, as soon as it is shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import kubernetes.client
import urllib3

from .objects import Manifest

OnEvent = Callable[[str, Manifest], None]


class Watch:
    """Calls `on_event` with ADDED, MODIFIED or DELETED and the object, first for what is there, until close()."""

    def __init__(self, client: kubernetes.client.ApiClient, path: str, on_event: OnEvent, *, labels: str = "") -> None:
        """Begin. client: its own for as long as it watches. path: of a collection, e.g. /api/v1/pods. labels: a selector."""
        self._client = client
        self._path = path
        self._on_event = on_event
        self._labels = labels
        self._failure: Exception | None = None
        self._closing = False
        self._opening = threading.Lock()
        listed = json.loads(self._get({}).data)
        for found in listed["items"]:
            on_event("ADDED", found)
        self._version: str = listed["metadata"]["resourceVersion"]
        self._response = self._open()
        self._thread = threading.Thread(target=self._follow, name=f"watch {path}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it. Raises what broke it before: a watch that went silent would prove nothing."""
        with self._opening:
            self._closing = True
            with suppress(RuntimeError):  # the server may have ended it already
                self._response.shutdown()
        self._thread.join(10)
        self._response.close()
        if self._failure is not None:
            raise self._failure

    def _open(self) -> urllib3.BaseHTTPResponse:
        return self._get({"watch": "true", "resourceVersion": self._version})

    def _get(self, fields: dict[str, str]) -> urllib3.BaseHTTPResponse:
        pool: Any = self._client.rest_client.pool_manager
        selector = {"labelSelector": self._labels} if self._labels else {}
        response: urllib3.BaseHTTPResponse = pool.request(
            "GET",
            self._client.configuration.host + self._path,
            fields={**selector, **fields},
            preload_content="watch" not in fields,
            timeout=urllib3.Timeout(connect=10, read=None),
        )
        if response.status != 200:
            raise RuntimeError(f"{self._path} answered {response.status}")
        return response

    def _follow(self) -> None:
        try:
            while not self._closing:
                for line in self._lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"the watch of {self._path} ended: {event['object'].get('message')}")
                    self._on_event(event["type"], event["object"])
                    self._version = event["object"]["metadata"]["resourceVersion"]
                with self._opening:  # an API server ends watches that are slow; from the last version on, nothing is missed
                    if not self._closing:
                        self._response = self._open()
        except Exception as error:  # noqa: BLE001 - close() raises it, where somebody hears it
            if not self._closing:
                self._failure = error

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self._response.stream(65536, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line for line in lines if line)
