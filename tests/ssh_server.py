"""An SSH server on loopback that gives its user the files of this machine."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import asyncssh


@contextmanager
def ssh_server(folder: Path) -> Generator[tuple[int, Path]]:
    """Its port, and the key that it knows, which lies in `folder`."""
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    key = folder / "key"
    user.write_private_key(key)
    user.write_public_key(folder / "key.pub")
    loop = asyncio.new_event_loop()
    started = loop.run_until_complete(
        asyncssh.listen(
            "127.0.0.1",
            server_host_keys=[host],
            authorized_client_keys=str(folder / "key.pub"),
            sftp_factory=True,
        )
    )
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield started.get_port(), key
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        started.close()
        loop.close()
