"""The gateway's end: no request that it has taken is lost."""

import signal
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from clip_core.serve.shapes import MODEL
from tests.served import of, serving
from tests.tiny_release import Release


def test_ending_it_under_load_loses_no_request(release: Release, tmp_path: Path) -> None:
    asked: list[int] = []
    failed: list[str] = []
    told = threading.Event()
    question = {"model": MODEL, "input": list(release.truth.texts[:9])}

    def ask(url: str) -> None:
        """Asks all the time, as a balancer does that heeds what it is told: no more once it is to go elsewhere."""
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            while True:
                try:
                    answer = client.post("/v1/embeddings", json=question)
                except httpx.HTTPError as error:
                    failed.append(repr(error))
                    return
                asked.append(answer.status_code)
                if answer.headers.get("Connection") == "close":
                    told.set()
                    return

    with serving(tmp_path, *of(tmp_path / "serving", release), "--drain", "2") as (url, process):
        host, port = urlsplit(url).hostname, urlsplit(url).port
        slow = socket.create_connection((host, port))  # what it asks is not all said when the rest has ended
        body = b'{"text": "x"}'
        slow.sendall(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body[:3])
        clients = [threading.Thread(target=ask, args=(url,)) for _ in range(8)]
        for client in clients:
            client.start()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert told.wait(20)
        assert httpx.get(f"{url}/livez", trust_env=False).status_code == 200
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 503  # so nobody new is sent here
        for client in clients:
            client.join()
        time.sleep(2.5)
        slow.sendall(body[3:])
        assert slow.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        assert process.wait(60) == 0
    assert failed == []
    assert len(asked) >= len(clients) and set(asked) == {200}, asked
    print(f"{len(asked)} requests")
