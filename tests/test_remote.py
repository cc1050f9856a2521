"""A release goes to an object store and is served elsewhere: half of one, or another's bytes, never."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from hashlib import sha256
from pathlib import Path

import pytest

from clip_core.data.tombstones import FILE, add_tombstones, tombstones_for
from clip_core.errors import UserError
from clip_core.serve import releases
from clip_core.serve.object_store import ObjectStore
from clip_core.serve.release import STATES_ID, read_manifest, verify
from clip_core.serve.remote import PULLED, pull, push, remove
from tests.conftest import ENVIRONMENT, ROOT, run_in
from tests.s3_server import KEY, SECRET, s3_server
from tests.tiny_release import Release, a_serving

# Dies when it has moved so many files.
KILLED = """
import os, signal, sys
from pathlib import Path
from clip_core.serve import remote
from clip_core.serve.object_store import ObjectStore

what, url, serving, release, num_left = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])
verb = {"push": "send", "pull": "fetch"}[what]
really = getattr(ObjectStore, verb)


def move(self, *arguments):
    global num_left
    if not num_left:
        os.kill(os.getpid(), signal.SIGKILL)
    num_left -= 1
    really(self, *arguments)


setattr(ObjectStore, verb, move)
getattr(remote, what)(ObjectStore(url), serving, release, *([None] if what == "pull" else []))
"""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """The buckets of a server that the environment names."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with s3_server(folder) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", KEY), ("SECRET_ACCESS_KEY", SECRET), ("ENDPOINT_URL", address)):
            patch.setenv(f"AWS_{name}", value)
            patch.setitem(ENVIRONMENT, f"AWS_{name}", value)
        yield folder


@pytest.fixture
def here(tmp_path: Path, release: Release) -> Path:
    """A folder of releases."""
    return a_serving(tmp_path / "here", release)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """That of another machine."""
    return tmp_path / "there"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The folder of an object store."""
    return tmp_path / "shelf"


@pytest.fixture
def remote(shelf: Path) -> ObjectStore:
    return ObjectStore(f"file://{shelf}")


def num_files(release: Release) -> int:
    return len(set(read_manifest(release.folder).files.values()))


def kill(what: str, url: str, serving: Path, release: str, after: int) -> None:
    command = [sys.executable, "-c", KILLED, what, url, str(serving), release, str(after)]
    process = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr


def test_what_was_pushed_to_s3_is_pulled_and_listed_on_another_machine(
    s3: Path, here: Path, there: Path, release: Release
) -> None:
    def command(module: str, serving: Path, *arguments: str) -> str:
        asked = ["-m", f"clip_core.serve.{module}", "--serving", str(serving), *arguments]
        return run_in(ROOT, sys.executable, *asked).stdout.strip()

    url, num = "s3://bucket/clip", num_files(release)
    assert command("remote", here, "push", url) == f"release {release.id} is in {url}; files that were not there: {num}"
    pulled = command("remote", there, "pull", url)
    assert pulled == f"release {release.id} serves (`make serve`); files fetched: {num}"
    assert command("releases", there).split()[0] == release.id
    assert verify(releases.folder_of(there, release.id)) == verify(release.folder)
    shelf = s3 / "bucket" / "clip"
    assert {path.name for path in shelf.iterdir()} == {"files", "releases"}
    assert all(sha256(path.read_bytes()).hexdigest() == path.name for path in (shelf / "files").iterdir())


def test_a_file_that_is_there_is_neither_sent_nor_fetched_again(
    tmp_path: Path, there: Path, shelf: Path, remote: ObjectStore, tiny_releases: tuple[Release, Release]
) -> None:
    here, (first, second) = a_serving(tmp_path / "here", *tiny_releases), tiny_releases
    files = [set(read_manifest(one.folder).files.values()) for one in tiny_releases]
    assert push(remote, here, first.id) == len(files[0])
    assert pull(remote, there, first.id, keep=None) == len(files[0])
    sent = {path: path.stat().st_mtime_ns for path in (shelf / "files").iterdir()}
    assert push(remote, here, second.id) == len(files[1] - files[0])
    assert pull(remote, there, second.id, keep=None) == len(files[1] - files[0])
    assert sent.items() <= {path: path.stat().st_mtime_ns for path in (shelf / "files").iterdir()}.items()
    assert releases.added(there) == [second.id, first.id]
    assert push(remote, here, first.id) == 0
    assert remote.newest() == first.id
    assert not (there / PULLED).exists()


def test_a_push_that_is_killed_is_seen_by_nobody_and_the_next_one_sends_the_rest(
    s3: Path, here: Path, there: Path, tmp_path: Path, release: Release
) -> None:
    url = "s3://bucket/killed"
    kill("push", url, here, release.id, after=5)
    sent = sorted((s3 / "bucket" / "killed" / "files").iterdir())
    assert len(sent) == 5
    with pytest.raises(UserError, match=f"s3://bucket/killed: no release {release.id} there; there are: none"):
        pull(ObjectStore(url), there, release.id, keep=None)
    cut = max(sent, key=lambda path: path.stat().st_size)
    (tmp_path / "cut").write_bytes(cut.read_bytes()[:-1])
    ObjectStore(url).send(tmp_path / "cut", f"files/{cut.name}")  # as if it was killed in the midst of it
    kill("push", url, here, release.id, after=num_files(release) - 4)  # all are there but the manifest
    assert ObjectStore(url).releases() == []
    assert push(ObjectStore(url), here, release.id) == 0
    pull(ObjectStore(url), there, release.id, keep=None)
    assert releases.added(there) == [release.id]


def test_a_pull_that_is_killed_adds_nothing_and_the_next_one_goes_on_with_what_it_has(
    here: Path, there: Path, shelf: Path, remote: ObjectStore, release: Release
) -> None:
    push(remote, here, release.id)
    (there / PULLED / ("0" * 16) / "of another").mkdir(parents=True)
    kill("pull", remote.url, there, release.id, after=5)
    assert releases.added(there) == []
    assert {path.name for path in (there / PULLED).iterdir()} == {release.id}
    fetched = [path for path in (there / PULLED).rglob("*") if path.is_file()]
    assert len(fetched) == 5
    for path in fetched:
        (shelf / "files" / sha256(path.read_bytes()).hexdigest()).unlink()
    assert pull(remote, there, release.id, keep=None) == num_files(release) - 5
    assert verify(releases.folder_of(there, release.id)).release == release.id
    assert not (there / PULLED).exists()


def edited(change: Callable[[dict[str, str], str], object]) -> Callable[[Path, str], None]:
    """A damage to the files that the manifest names."""

    def damage(shelf: Path, release: str) -> None:
        file = shelf / "releases" / f"{release}.json"
        manifest = json.loads(file.read_text())
        change(manifest["files"], release)
        file.write_text(json.dumps(manifest))

    return damage


def object_of(shelf: Path, release: str) -> Path:
    files = json.loads((shelf / "releases" / f"{release}.json").read_text())["files"]
    return shelf / "files" / files["models/text_core/1/model.onnx"]


def tamper(shelf: Path, release: str) -> None:
    file = object_of(shelf, release)
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def state_another_id(files: dict[str, str], _release: str) -> None:
    other = sha256(b"0123456789abcdef\n").hexdigest()
    files.update({name: other for name in files if Path(name).name == STATES_ID})


def rename(name: str) -> Callable[[dict[str, str], str], None]:
    return lambda files, _release: files.update({name: files.pop("models/text_core/1/model.onnx")})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (tamper, r"files/[0-9a-f]{64}: missing or changed, models/text_core/1/model.onnx of release .* then push"),
        (lambda shelf, release: object_of(shelf, release).unlink(), "missing or changed, models/text_core"),
        (edited(lambda files, _: files.update({"new": "0" * 64})), "not what release .* was proved with; push it"),
        (edited(state_another_id), "not what release .* was proved with; push it again"),
        (edited(rename("../../outside")), "no name of a file in the release's folder"),
        (edited(rename("models/../../../outside")), "no name of a file in the release's folder"),
        (edited(rename("/tmp/outside")), "no name of a file in the release's folder"),
        (edited(lambda files, _: files.update({"new": "../releases/x"})), "not the manifest of a release"),
        (lambda shelf, release: (shelf / "releases" / f"{release}.json").write_text('{"for'), "not the manifest"),
        (lambda shelf, release: (shelf / "releases" / f"{release}.json").unlink(), "no release .* there are: none"),
    ],
)
def test_what_is_not_the_release_to_the_byte_is_refused(
    damage: Callable[[Path, str], object],
    said: str,
    here: Path,
    there: Path,
    shelf: Path,
    remote: ObjectStore,
    release: Release,
) -> None:
    push(remote, here, release.id)
    damage(shelf, release.id)
    with pytest.raises(UserError, match=said):
        pull(remote, there, release.id, keep=None)
    assert releases.added(there) == []
    assert {path.name for path in there.iterdir()} <= {PULLED.name, "pull.lock"}


def test_another_release_under_its_name_is_refused(
    tmp_path: Path, there: Path, shelf: Path, remote: ObjectStore, tiny_releases: tuple[Release, Release]
) -> None:
    here, (first, second) = a_serving(tmp_path / "here", *tiny_releases), tiny_releases
    for one in tiny_releases:
        push(remote, here, one.id)
    shutil.copy(shelf / "releases" / f"{first.id}.json", shelf / "releases" / f"{second.id}.json")
    with pytest.raises(UserError, match=f"{second.id}.json: not what release {second.id} was proved with"):
        pull(remote, there, second.id, keep=None)


def test_what_a_deletion_request_names_is_neither_sent_nor_kept(
    here: Path, there: Path, shelf: Path, remote: ObjectStore, release: Release
) -> None:
    push(remote, here, release.id)
    there.mkdir()
    for serving in (here, there):
        add_tombstones(serving / FILE, tombstones_for(release.store.image_ids[0], ["image_id"]))
    with pytest.raises(UserError, match="deletion requests name"):
        pull(remote, there, release.id, keep=None)
    assert releases.added(there) == [] and not (there / PULLED).exists()
    shutil.rmtree(shelf)
    with pytest.raises(UserError, match="deletion requests name"):
        push(remote, here, release.id)
    assert not shelf.exists()


def test_a_release_that_is_removed_takes_along_what_no_other_one_has(
    tmp_path: Path, there: Path, shelf: Path, remote: ObjectStore, tiny_releases: tuple[Release, Release]
) -> None:
    here, (first, second) = a_serving(tmp_path / "here", *tiny_releases), tiny_releases
    for one in tiny_releases:
        push(remote, here, one.id)
    remove(remote, first.id)
    left = {path.name for path in (shelf / "files").iterdir()}
    assert left == set(read_manifest(second.folder).files.values())
    assert remote.releases() == [second.id]
    with pytest.raises(UserError, match=f"no release {first.id} there; there are: {second.id}"):
        pull(remote, there, first.id, keep=None)
    pull(remote, there, second.id, keep=None)


def test_a_store_that_refuses_is_named_with_its_reason(
    s3: Path, here: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="nope://x: ValueError: Protocol not known: nope"):
        ObjectStore("nope://x")
    with pytest.raises(UserError, match=r"s3://no-bucket/x: no release there yet; .*remote push"):
        ObjectStore("s3://no-bucket/x").newest()
    with pytest.raises(UserError, match="s3://no-bucket/x: FileNotFoundError: "):
        push(ObjectStore("s3://no-bucket/x"), here, release.id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(UserError, match="s3://bucket/x: PermissionError: "):
        push(ObjectStore("s3://bucket/x"), here, release.id)


def test_two_pulls_into_one_folder_do_not_meet(here: Path, there: Path, remote: ObjectStore, release: Release) -> None:
    push(remote, here, release.id)
    with releases.only_pull(there), pytest.raises(UserError, match="another pull is running"):
        pull(remote, there, release.id, keep=None)
