"""The page's files, and the paths under which a daemon's HTTP endpoint serves them.

Nothing on the page comes from elsewhere, and its policy says so to the browser: scripts and
styles are files of this package, and none stands in the text of the page.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flatship_service.http import Route
from flatship_service.page.viewers import Viewers

if TYPE_CHECKING:
    from aiohttp import web

FOLDER: Final = Path(__file__).parent / "static"
FILES: Final = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(viewers: Viewers) -> Sequence[Route]:
    """What an HttpEndpoint is to serve so that there is a page."""
    files = [Route(path, _File(*named).answer) for path, named in FILES.items()]
    return [*files, Route("/events", viewers.events)]


class _File:
    """One file, read once."""

    def __init__(self, name: str, kind: str) -> None:
        self._body = (FOLDER / name).read_bytes()
        self._tag = hashlib.sha256(self._body).hexdigest()[:16]
        self._headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-cache",  # may be kept, and is asked for again
            "ETag": f'"{self._tag}"',
        }

    async def answer(self, request: "web.Request") -> "web.StreamResponse":
        from aiohttp import web  # noqa: PLC0415

        known = any(tag.value == self._tag for tag in request.if_none_match or ())
        if known:
            return web.Response(status=304, headers=self._headers)
        return web.Response(body=self._body, headers=self._headers)
