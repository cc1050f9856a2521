"""Pictures that lie on the web: fetched once, kept by URL; a rerun asks only for those that failed."""

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from clip_core.config.sources import Fetch
from clip_core.errors import UserError

if TYPE_CHECKING:
    import httpx

FETCHED = Path(".work/fetched")
OBVIOUS = Fetch(concurrency=32, timeout_seconds=20.0, max_bytes=2**24, allow_private=False, min_yield=0.1)
TRIES = 3
BACK_OFF = 1.0  # seconds before the second try; twice that before the third
LEFT_AFTER = 3600.0  # seconds: no writer takes that long
ENOUGH = 100  # URLs after which the yield says something


def fetched_at(url: str) -> Path:
    """Where the picture lies once it is fetched."""
    return FETCHED / sha256(url.encode()).hexdigest()


def asked_again() -> Path:
    """A file that each run touches, once there is one: results that lack pictures name it, and are made anew."""
    return FETCHED / "asked-again"


def ask_again() -> None:
    """Begins a run: what failed in the one before will be asked for again."""
    if asked_again().exists():
        os.utime(asked_again())


def fetch(urls: Iterable[str], settings: Fetch | None) -> tuple[dict[str, str], dict[str, int]]:
    """Fetches what is not there yet: the URLs that failed with reasons, and counts.

    Raises UserError when the yield is hopeless; what was fetched by then is kept.
    """
    wanted = list(dict.fromkeys(urls))
    missing = [url for url in wanted if not fetched_at(url).exists()]
    run = Run(settings or OBVIOUS, num_known=len(wanted) - len(missing))
    if missing:
        _tidy_up()
        asyncio.run(run.fetch_all(missing))
    if wanted:
        print(f"fetch: {len(wanted)} URLs, {run.num_known} fetched before, {run.num_fetched} now; {run.failures()}")
    if run.is_hopeless():
        raise UserError(
            f"only {run.num_known + run.num_fetched} of {run.num_known + run.num_tried()} URLs gave a picture, less "
            f"than `data.fetch.min_yield` ({run.settings.min_yield}): {run.failures()}; the first: "
            f"{next(iter(run.failed))[:200]}. See to the network or the column image, or lower min_yield; what was "
            f"fetched is kept."
        )
    fetched = len(wanted) - len(run.failed)
    return run.failed, {"urls": len(wanted), "urls_fetched": fetched, "urls_failed": len(run.failed)} if wanted else {}


class Run:
    """One go at many URLs."""

    def __init__(self, settings: Fetch, num_known: int) -> None:
        self.settings, self.num_known = settings, num_known
        self.num_fetched, self.failed = 0, {}

    def num_tried(self) -> int:
        return self.num_fetched + len(self.failed)

    def is_hopeless(self) -> bool:
        """Whether what succeeded, now and before, is too small a share of what was tried."""
        tried = self.num_known + self.num_tried()
        is_told = self.num_tried() >= ENOUGH
        return is_told and self.num_known + self.num_fetched < self.settings.min_yield * tried

    def failures(self) -> str:
        """How many failed for which reason."""
        counts = Counter(self.failed.values()).most_common()
        return f"{len(self.failed)} failed" + (
            f" ({', '.join(f'{reason} {n}' for reason, n in counts)})" if counts else ""
        )

    async def fetch_all(self, urls: list[str]) -> None:
        """Fetches them, `concurrency` at a time."""
        from clip_core.data.sources.fetch_one import open_transport

        # its threads resolve names and write files
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(self.settings.concurrency))
        waiting = iter(urls)
        async with open_transport(self.settings) as transport:
            num_workers = min(self.settings.concurrency, len(urls))
            await asyncio.gather(*(self._work(waiting, transport) for _ in range(num_workers)))

    async def _work(self, waiting: Iterator[str], transport: "httpx.AsyncHTTPTransport") -> None:
        for url in waiting:
            if self.is_hopeless():
                return
            if reason := await self._fetch(url, transport):
                self.failed[url] = reason
            else:
                self.num_fetched += 1

    async def _fetch(self, url: str, transport: "httpx.AsyncHTTPTransport") -> str | None:
        """Tries it some times; why it failed, or None."""
        from clip_core.data.sources.fetch_one import Failure, get

        reason = ""
        for attempt in range(TRIES):
            try:
                body = await get(transport, url, self.settings, attempt)
            except Failure as failure:
                reason = failure.reason
                if not failure.is_transient:
                    break
                if attempt + 1 < TRIES:
                    await asyncio.sleep(BACK_OFF * 2**attempt)
            else:
                await asyncio.to_thread(_keep, url, body)
                return None
        return reason


def _keep(url: str, body: bytes) -> None:
    """Writes the picture so that nobody sees half of it."""
    place = fetched_at(url)
    try:
        with tempfile.NamedTemporaryFile(dir=_aside(), delete=False) as aside:
            aside.write(body)
            aside.flush()
            os.fsync(aside.fileno())
        Path(aside.name).replace(place)
    except OSError as error:
        raise UserError(
            f"{place}: can not be written: {error.strerror}. Make room and run again: what was fetched is kept."
        ) from None


def _aside() -> Path:
    return FETCHED / "aside"


def _tidy_up() -> None:
    """Makes the folders, and removes what killed processes left half written."""
    _aside().mkdir(parents=True, exist_ok=True)
    asked_again().touch()
    for left in list(_aside().iterdir()):
        with suppress(FileNotFoundError):  # another part's process was faster
            if time.time() - left.stat().st_mtime > LEFT_AFTER:
                left.unlink()
