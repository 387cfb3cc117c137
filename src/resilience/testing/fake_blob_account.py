"""What Azurite lacks of a storage account, played before it: slow rehydration, holds, a secondary that lags.

It keeps what Azure documents: "Copy Blob" and "Rehydrate an archived blob to an online tier", "Store business-critical
blob data with immutable storage", "Azure Storage redundancy".
"""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import format_datetime

from aiohttp import web
from attrs import define, field

from .http_faults import HttpProxy, error

SECONDARY = "-secondary/"
_HELD = "BlobImmutableDueToPolicy"


@define
class FakeBlobAccount(HttpProxy):
    """A storage account before an Azurite; keys are paths below the account, with the container.

    - A copy out of the Archive tier is pending until `thaw`: it lies in that tier itself, and cannot be read.
      With `failed` it ends so, instead.
    - What is `held`, or `immutable` until a moment, can neither be removed nor replaced. Who asks is told so of each
      ("Get Blob Properties", "List Blobs" with `include`), of a hold of the whole container, if it is `silent`, not.
    - What is in `behind` has not come to the secondary yet.
    """

    held: set[str] = field(factory=set, init=False)
    immutable: dict[str, datetime] = field(factory=dict, init=False)
    silent: bool = field(default=False, init=False)
    behind: set[str] = field(factory=set, init=False)
    failed: str = field(default="", init=False)
    pending: dict[str, str] = field(factory=dict, init=False)
    urgent: set[str] = field(factory=set, init=False)

    def thaw(self) -> None:
        """Let the hours pass that rehydration takes."""
        self.pending.clear()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """See `HttpProxy.answer`."""
        path = request.path.split("/", 2)[-1]
        if SECONDARY in request.path and path in self.behind:
            return error(404, "BlobNotFound")
        if path in {*self.held, *self.immutable} and request.method in ("PUT", "DELETE"):
            return error(409, _HELD)
        if request.query.get("comp") == "list" and not self.silent:
            return await self._listed(request, path)
        if "x-ms-rehydrate-priority" in request.headers:
            return await self._copied(request, path)
        if path in self.pending and request.method == "GET":
            return error(409, "BlobArchived")
        if path in self.pending and request.method == "HEAD":
            return await self._frozen(request, self.pending[path])
        if path in {*self.held, *self.immutable} and request.method == "HEAD" and not self.silent:
            return await self._described(request, path)
        return None

    async def _listed(self, request: web.BaseRequest, container: str) -> web.StreamResponse:
        told = request.query.get("include", "").split(",")

        def marked(found: re.Match[str]) -> str:
            path = f"{container}/{found['name']}"
            hold = "<LegalHold>true</LegalHold>" if "legalhold" in told and path in self.held else ""
            if "immutabilitypolicy" in told and (until := self.immutable.get(path)):
                hold += f"<ImmutabilityPolicyUntilDate>{format_datetime(until, usegmt=True)}"
                hold += "</ImmutabilityPolicyUntilDate><ImmutabilityPolicyMode>unlocked</ImmutabilityPolicyMode>"
            return f"{found[0]}{hold}"

        async with self.ask(request) as (status, headers, content):
            body = re.sub(r"<Name>(?P<name>[^<]*)</Name>.*?<Properties>", marked, content.decode(), flags=re.DOTALL)
            return web.Response(status=status, headers=headers, body=body.encode())

    async def _described(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        async with self.ask(request) as (status, headers, _):
            if path in self.held:
                headers["x-ms-legal-hold"] = "true"
            if (until := self.immutable.get(path)) is not None:
                headers["x-ms-immutability-policy-until-date"] = format_datetime(until, usegmt=True)
                headers["x-ms-immutability-policy-mode"] = "unlocked"
            return web.Response(status=status, headers=headers)

    async def _copied(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        async with self.ask(request) as (status, headers, content):
            if status == 202:
                self.pending[path] = request.headers["x-ms-access-tier"].lower()
                self.urgent |= {path} if request.headers["x-ms-rehydrate-priority"] == "High" else set()
                headers["x-ms-copy-status"] = "pending"
            return web.Response(status=status, headers=headers, body=content)

    async def _frozen(self, request: web.BaseRequest, to: str) -> web.StreamResponse:
        async with self.ask(request) as (status, headers, _):
            waiting = {
                "x-ms-access-tier": "Archive",
                "x-ms-archive-status": f"rehydrate-pending-to-{to}",
                "x-ms-copy-status": "failed" if self.failed else "pending",
                "x-ms-copy-status-description": self.failed,
            }
            return web.Response(status=status, headers=headers | waiting)
