"""yt-dlp restricted to looking recordings up, within limits on what it may read and request.

yt-dlp itself follows 30 redirects, reads a page to its end however long it is, and has neither
option. Any page may be behind an address, so one without an end would fill the memory.
"""

import io
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests.sessions
from yt_dlp import YoutubeDL
from yt_dlp.networking.common import Response
from yt_dlp.networking.exceptions import HTTPError

from pipeline.core.settings import NetworkParams
from pipeline.corpus.fetch import requirements
from pipeline.corpus.fetch.failures import UnavailableError

REQUESTS = 30  # of one look-up; YouTube takes about ten
PATIENCE = 10  # times timeout_s that a look-up may take while data keep arriving
CHUNK = 1 << 14  # bytes read at a time
requests.sessions.DEFAULT_REDIRECT_LIMIT = 5  # of the sessions that yt-dlp opens


class LookUp(YoutubeDL):
    """Finds recordings; not for use by several threads.

    Cookies are kept in memory: given a path, each thread would overwrite the user's file.
    """

    def __init__(self, network: NetworkParams) -> None:
        self._network = network
        self._begin()
        super().__init__(_options(network))

    def _begin(self) -> None:
        self._requests_left = REQUESTS
        self._bytes_left = self._network.look_up_mb * 1e6
        self._deadline = time.monotonic() + PATIENCE * self._network.timeout_s

    def find(self, url: str) -> dict[str, Any] | None:
        """Return what yt-dlp finds at an address, with whatever exceptions it raises.

        Raises:
            UnavailableError: it would take too many requests, bytes or seconds.
        """
        self._begin()
        info: dict[str, Any] | None = self.extract_info(url, download=False)
        return info

    def urlopen(self, req: Any) -> Response:
        """Make a request of the look-up; see `YoutubeDL.urlopen`."""
        self._requests_left -= 1
        if self._requests_left < 0:
            raise UnavailableError("bad_address", f"finding it takes more than {REQUESTS} requests")
        try:
            return self._limited(super().urlopen(req))
        except HTTPError as error:
            self._limited(error.response)
            raise

    def _limited(self, response: Response) -> Response:
        response.fp = _Counted(response.fp, self._count)
        return response

    def _count(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            limit = f"network.look_up_mb = {self._network.look_up_mb:g} MB"
            raise UnavailableError("bad_address", f"its page is longer than {limit}")
        if time.monotonic() > self._deadline:
            limit_s = PATIENCE * self._network.timeout_s
            raise UnavailableError("transient", f"its page does not end within {limit_s:.0f} s")


class _Counted:
    """The body of a response; `count` is called with the size of each chunk read."""

    def __init__(self, body: Any, count: Callable[[int], None]) -> None:
        self._body = body
        self._count = count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def read(self, size: int | None = None, **options: Any) -> bytes:
        """Return at most `size` bytes, all if it is None."""
        if size is None:
            return b"".join(iter(lambda: self.read(CHUNK, **options), b""))
        chunk: bytes = self._body.read(min(size, CHUNK), **options)
        try:
            self._count(len(chunk))
        except UnavailableError:
            self._body.close()
            raise
        return chunk


def _options(network: NetworkParams) -> dict[str, Any]:
    silent = logging.getLogger("yt_dlp")  # the exceptions repeat all that it logs of a failure
    silent.setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "format": "bestaudio/best",
        "socket_timeout": network.timeout_s,
        "extract_flat": "in_playlist",  # a page that lists recordings is not one
        "cachedir": False,
        "js_runtimes": {name: {} for name in requirements.JS_RUNTIMES},
        "color": "never",
        "logger": silent,
        "noprogress": True,
    }
    if network.cookies:
        options["cookiefile"] = io.StringIO(Path(network.cookies).read_text(encoding="utf-8"))
    if network.proxy:
        options["proxy"] = network.proxy
    return options
