"""A server that streams by the word of the test."""

from __future__ import annotations

import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dedicate_runtime.api.sse import HEAD_PAUSE_S

_END = object()
# A test that has gone wrong must not leave a thread behind for ever.
PATIENCE_S = 600


class Upstream:
    """Answers every request with a stream of server-sent events, each one released by `send`."""

    def __init__(self, address="127.0.0.1"):
        self._events = queue.Queue()
        self.paths = []
        self.num_body_bytes = 0
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                upstream.paths.append(self.path)
                upstream.num_body_bytes = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                # As the runtime does, and for its reason.
                time.sleep(HEAD_PAUSE_S)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while (event := upstream._events.get(timeout=PATIENCE_S)) is not _END:
                    self._write(event.encode())
                self._write(b"")

            def _write(self, data):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

            def log_message(self, *_arguments):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_arguments):
                """A proxy that cuts a stream leaves a broken pipe, which is what some tests are about."""

        self._server = Server((address, 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exception):
        self.end()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def send(self, word):
        self._events.put(f"data: {word}\n\n")

    def end(self):
        self._events.put(_END)
