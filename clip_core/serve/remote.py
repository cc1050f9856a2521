"""Releases in an object store, for servers that share no disk with the pipeline.

    python -m clip_core.serve.remote push URL       # the newest that was not refused; URL RELEASE: that one
    python -m clip_core.serve.remote pull URL       # the one pushed last; URL RELEASE: that one
    python -m clip_core.serve.remote remove URL RELEASE

The URL is s3://bucket/folder, a mounted folder, or another that fsspec knows.
"""

import argparse
import shutil
from pathlib import Path

from clip_core.errors import UserError, told_to_the_user
from clip_core.files import link_file, replacing_file, sha256_file
from clip_core.project import serving_folder
from clip_core.serve import releases
from clip_core.serve.object_store import ObjectStore
from clip_core.serve.release import MANIFEST, read_manifest, write_manifest
from clip_core.serve.rollout import newest

PULLED = Path("pulled")  # in the folder of releases: what a pull has fetched so far


def push(remote: ObjectStore, serving: Path, release: str) -> int:
    """Sends what is not there of a proved release, the manifest last; gives the number of files sent."""
    folder, num_sent = releases.verified(serving, release), 0
    releases.refuse_deleted(serving, folder)
    for digest, name in {digest: name for name, digest in read_manifest(folder).files.items()}.items():
        if not remote.holds(f"files/{digest}", (folder / name).stat().st_size):
            remote.send(folder / name, f"files/{digest}")
            num_sent += 1
    remote.send(folder / MANIFEST, f"releases/{release}.json")  # also where it is there: it is the newest again
    return num_sent


def pull(remote: ObjectStore, serving: Path, release: str, keep: int | None) -> int:
    """Adds a release of the remote to the folder `serving`; gives the number of files fetched.

    Each file is held against the manifest. Those that releases here have are linked, and those that a killed pull has
    fetched stay. UserError when a file is not there, or not the one that was proved, and what `releases.add` raises.
    """
    with releases.only_pull(serving):
        manifest, pulled = remote.manifest(release), serving / PULLED
        folder, here, num_fetched = pulled / release, _files_of(serving), 0
        for other in pulled.glob("*"):
            if other != folder:  # of a pull that was killed and is not wanted any more
                shutil.rmtree(other)
        for name, digest in manifest.files.items():
            place, mine = folder / name, here.get(digest)
            here[digest] = place  # the same bytes under another name
            if place.exists():
                continue
            with replacing_file(place) as aside:
                if mine and mine.exists() and sha256_file(mine) == digest:
                    link_file(mine, aside)
                    continue
                remote.fetch(f"files/{digest}", aside)
                num_fetched += 1
                if not aside.exists() or sha256_file(aside) != digest:
                    raise UserError(
                        f"{remote.url}/files/{digest}: missing or changed, {name} of release {release}; delete what is "
                        "there, then push the release again"
                    )
        write_manifest(folder, manifest)
        try:
            releases.add(serving, folder, keep)
        finally:
            shutil.rmtree(pulled)
    return num_fetched


def remove(remote: ObjectStore, release: str) -> None:
    """Deletes a release and the files that no other there has, the manifest last: killed, it is called again."""
    others = [remote.manifest(one) for one in remote.releases() if one != release]
    shared = {digest for other in others for digest in other.files.values()}
    for digest in sorted({*remote.manifest(release).files.values()} - shared):
        remote.delete(f"files/{digest}")
    remote.delete(f"releases/{release}.json")


def _files_of(serving: Path) -> dict[str, Path]:
    """The files of the releases that are here, by what their sha256 should be."""
    folders = [releases.folder_of(serving, release) for release in releases.added(serving)]
    return {digest: folder / name for folder in folders for name, digest in read_manifest(folder).files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.serve.remote",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("push", "pull", "remove"))
    parser.add_argument("url", metavar="URL")
    parser.add_argument("release", nargs="?", metavar="RELEASE", help="its id")
    parser.add_argument("--serving", type=Path, help="the folder of releases; default: the project's")
    parser.add_argument("--keep", type=int, metavar="NUM", help="of a pull: so many newest stay; default: all")
    arguments = parser.parse_args()
    with told_to_the_user(OSError):
        remote, release = ObjectStore(arguments.url), arguments.release
        if arguments.command == "remove":
            if release is None:
                raise UserError("remove URL RELEASE: which release is to go?")
            remove(remote, release)
            print(f"release {release} is gone from {remote.url}")
            return
        serving = serving_folder(arguments.serving)
        if arguments.command == "push":
            release = release or newest(serving)
            num_sent = push(remote, serving, release)
            print(f"release {release} is in {remote.url}; files that were not there: {num_sent}")
            return
        release = release or remote.newest()
        num_fetched = pull(remote, serving, release, arguments.keep)
        print(f"{releases.announcement(serving, release)}; files fetched: {num_fetched}")


if __name__ == "__main__":
    main()
