"""A real HTTP server that speaks as much of OpenAI's API as a load needs, well or badly.

Run as `python tests/openai_server.py PORT BEHAVIOUR [NUM_GOOD]`: the first NUM_GOOD completions are
answered well whatever the behaviour. Text is the same word for every token.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

WORD = " hello"
TOKEN_S = 0.002
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


class Handler(BaseHTTPRequestHandler):
    behaviour, num_good, numbers = "good", 0, count()

    def do_GET(self) -> None:
        self._send(200, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self._send(404, b"{}")
        elif next(self.numbers) < self.num_good or self.behaviour == "good":
            self._complete(body)
        elif self.behaviour == "error":
            self._send(500, b"{}")
        elif self.behaviour == "garbage":
            self._send(200, b"data: <html>no JSON</html>\n\n")
        elif self.behaviour == "hang":
            time.sleep(600)
        elif self.behaviour == "die":
            print(OUT_OF_MEMORY, flush=True)
            os._exit(1)

    def _complete(self, body: dict[str, object]) -> None:
        num_tokens = int(str(body["max_tokens"]))
        if not body.get("stream"):
            time.sleep(num_tokens * TOKEN_S)
            text = WORD * num_tokens
            self._send(200, json.dumps({"choices": [{"text": text}]}).encode())
            return
        self.send_response(200)
        self.end_headers()
        for _ in range(num_tokens):
            time.sleep(TOKEN_S)
            self._event({"choices": [{"text": WORD}]})
        usage = {"prompt_tokens": 10, "completion_tokens": num_tokens}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict[str, object]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Handler.behaviour = sys.argv[2]
    Handler.num_good = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
