"""A disk that is really full, a small file system of its own: nothing half-made, what serves serves on."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.serve.release import read_manifest
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny_release import Release


def on_a_disk_of(size: int, folder: Path, script: str, *arguments: object) -> list[str]:
    """What the script prints, with `folder` on a file system of `size` bytes."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size} none {folder} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    if "unshare: " in result.stderr or "mount: " in result.stderr:
        pytest.skip(f"no small file system can be mounted here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


ADD = """
import sys
from pathlib import Path
import clip_core.files
from clip_core.errors import UserError
from clip_core.serve import releases
serving, made, needed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
serving.mkdir()
filler = serving / "filler"
filler.write_bytes(bytes(needed))
for margin in (clip_core.files.MARGIN, -(10**9)):  # as it is, and as if there had been room when it was looked for
    clip_core.files.MARGIN = margin
    try:
        releases.add(serving, made, keep=5)
        sys.exit("added to a full disk")
    except UserError as error:
        print(error)
    print(*sorted(path.name for path in serving.rglob("*") if path.is_file()))
filler.unlink()
clip_core.files.MARGIN = 0
print(releases.add(serving, made, keep=5).release, releases.current(serving))
"""


def test_a_release_is_added_whole_or_not_at_all_and_room_is_looked_for_first(release: Release, tmp_path: Path) -> None:
    size = 2 * 2**20
    needed = read_manifest(release.folder).num_bytes
    serving = tmp_path / "small" / "serving"
    said = on_a_disk_of(size, serving.parent, ADD, serving, release.folder, size - needed // 2)
    looked, there, full, left, added = said
    assert "MiB are needed; make room" in looked
    assert "the disk is full" in full
    assert there == left == "add.lock filler"
    assert added == f"{release.id} {release.id}"


ROLL_OUT = """
import pickle, sys
from contextlib import suppress
from pathlib import Path
import clip_core.files
clip_core.files.MARGIN = 0
from clip_core.serve import releases
from clip_core.serve.queries import search
from clip_core.serve.rollout import roll_out
from clip_core.serve.triton import connect
from tests.under_load import supervised
serving, both = Path(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())
with supervised(serving, *both) as running:
    client = connect(running.address)
    filler = (serving / "filler").open("wb", buffering=0)
    with suppress(OSError):
        while True:
            filler.write(bytes(4096))
    try:
        roll_out(serving, both[1].id)
        sys.exit("rolled out on a full disk")
    except (OSError, ValueError) as error:
        print(str(error).splitlines()[0])
    running.check()
    print(search(client, ["红色"])[0].release, releases.current(serving))
    (serving / "filler").unlink()
    filler.close()
    running.check()
    roll_out(serving, both[1].id)
    print(search(client, ["红色"])[0].release, releases.current(serving))
    client.close()
"""


def test_a_rollout_that_finds_the_disk_full_leaves_the_old_release_serving(
    tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    (tmp_path / "both").write_bytes(pickle.dumps(tiny_releases))
    small = tmp_path / "small"
    *_, refused, before, after = on_a_disk_of(16 * 2**20, small, ROLL_OUT, small / "serving", tmp_path / "both")
    first, second = tiny_releases
    assert "full" in refused or "No space left" in refused
    assert before == f"{first.id} {first.id}"
    assert after == f"{second.id} {second.id}"
