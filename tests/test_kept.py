"""Results that take long to make: what is written stays, and nobody makes the same twice."""

import threading
from pathlib import Path

import pytest

from clip_core.kept import KEPT, keep_in_pieces


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_was_written_before_an_end_is_found_again_and_counts_as_no_result() -> None:
    def make(folder: Path) -> None:
        number = len(list(folder.iterdir()))
        (folder / f"piece-{number}").touch()
        if number < 2:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            keep_in_pieces("kind", "key", make)
        assert not (KEPT / "kind" / "key").exists()
    folder = keep_in_pieces("kind", "key", make)
    assert sorted(path.name for path in folder.iterdir()) == ["piece-0", "piece-1", "piece-2"]
    assert [path.name for path in folder.parent.iterdir()] == ["key"]
    assert keep_in_pieces("kind", "key", lambda _: pytest.fail("made twice")) == folder


def test_who_wants_the_same_waits_for_who_makes_it(capsys: pytest.CaptureFixture[str]) -> None:
    is_made, may_end, made = threading.Event(), threading.Event(), []

    def make(folder: Path) -> None:
        made.append(folder)
        is_made.set()
        may_end.wait(60)

    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(keep_in_pieces("kind", "key", make)), daemon=True)
        for _ in range(3)
    ]
    threads[0].start()
    is_made.wait(60)
    for thread in threads[1:]:
        thread.start()
    while capsys.readouterr().out.count("another process makes it; waiting") < 1:
        pass
    assert not found
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert found == [KEPT / "kind" / "key"] * 3
    assert len(made) == 1
