"""A web site on the loopback interface whose recordings fail in all the ways of real ones.

The first word of a recording's name says how it behaves: `ok-a.wav` is served, `n404-a.wav` is not
found, and so on (`Site.answer`).
"""

import contextlib
import re
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Site(ThreadingHTTPServer):
    """Serves the files of a folder; counts requests and bytes by name."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests = Counter[str]()
        self.bytes_sent = 0
        self.drops = 0
        self.ended = threading.Event()
        self.delay_s = 0.0  # before every answer
        self.look_up_s = 0.0  # before an answer that is not of a range
        self.retry_after = ""  # header of refusals
        self.times: list[float] = []  # of the requests
        self.headers: list[dict[str, str]] = []  # of the requests

    @property
    def template(self) -> str:
        """URL template of a source."""
        return f"http://127.0.0.1:{self.server_port}/{{recording_id}}.wav"

    def handle_error(self, request, client_address) -> None:
        """Ignore clients that hang up early."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, format, *args) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = Path(self.path).name
        self.server.requests[name] += 1
        self.server.times.append(time.monotonic())
        self.server.headers.append(dict(self.headers))
        time.sleep(
            self.server.delay_s + (self.server.look_up_s if "Range" not in self.headers else 0)
        )
        with contextlib.suppress(ConnectionError):
            self.answer(name, name.split("-")[0].removesuffix(".wav"))

    def answer(self, name: str, kind: str) -> None:
        count = self.server.requests[name]
        if re.fullmatch(r"n\d{3}", kind):  # always this status
            self.refuse(int(kind[1:]))
        elif (match := re.fullmatch(r"s(\d{3})x(\d)", kind)) and count <= int(match[2]):
            self.refuse(int(match[1]))  # the first requests only
        elif kind == "html":
            self.send_body(b"<html><head><title>x</title></head><body>No video</body></html>",
                           "text/html")  # fmt: skip
        elif kind == "endless":
            self.send_endless_page()
        elif kind == "loop":
            self.redirect(self.path)
        elif kind == "tofile" or (kind == "mediatofile" and "Range" in self.headers):
            self.redirect(self.file_url)
        elif kind == "manifest":
            lines = "#EXTM3U", "#EXT-X-TARGETDURATION:99", "#EXTINF:99,", self.file_url
            self.send_body("\n".join([*lines, "#EXT-X-ENDLIST", ""]).encode(), "audio/mpegurl")
        elif kind == "video":
            self.send_body(
                f"<html><video src='{self.file_url}'></video></html>".encode(), "text/html"
            )
        elif (match := re.fullmatch(r"media(\d{3})", kind)) and "Range" in self.headers:
            self.send_error(int(match[1]))  # yt-dlp finds it, FFmpeg is refused
        elif kind == "reset":
            self.hang_up()
        elif kind == "hang" and "Range" in self.headers:
            time.sleep(5)
        elif kind == "stall":  # never answers
            self.server.ended.wait(60)
            self.hang_up()
        elif kind == "drip" and "Range" in self.headers:
            self.send_drops(self.server.folder / name)
        else:
            self.send_file(self.server.folder / name, kind)

    @property
    def file_url(self) -> str:
        """Address of a recording on this machine, which no site may have read."""
        return (self.server.folder / "ok-a.wav").as_uri()

    def redirect(self, address: str) -> None:
        self.send_response(302)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_endless_page(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html><body>")
        while True:  # until the reader hangs up
            self.wfile.write(b" " * (1 << 16))
            self.server.bytes_sent += 1 << 16

    def refuse(self, status: int) -> None:
        self.send_response(status)
        if self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, path: Path, kind: str) -> None:
        if not path.exists():
            self.send_error(404)
            return
        content = path.read_bytes()
        start, end = 0, len(content)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and kind != "norange":
            start = int(match[1])
            end = min(int(match[2]) + 1, end) if match[2] else end
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        if kind != "norange":
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "audio/x-wav")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if kind == "trunc":
            end = min(end, len(content) // 2)
        for first in range(start, end, 1 << 16):
            block = content[first : min(first + (1 << 16), end)]
            self.wfile.write(block)
            self.server.bytes_sent += len(block)
            if kind == "slow":
                time.sleep(0.02)
        if kind == "trunc":
            self.hang_up()

    def send_drops(self, path: Path) -> None:
        """Send a file so slowly that it never ends, yet without a time-out."""
        content = path.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for byte in content:
            self.wfile.write(bytes([byte]))
            self.server.drops += 1
            time.sleep(0.1)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send_body(self, body: bytes, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serve(folder: Path):
    """Run a site until the block ends."""
    site = Site(folder)
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.ended.set()
        site.shutdown()
        thread.join()
        site.server_close()
