"""What a killed DVC leaves behind is mended before the next one begins: `python -m flows.healing`."""

import re
from contextlib import suppress
from pathlib import Path

from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write
from clip_core.project import project_root
from flows.git import git

CONFLICT = "<<<<<<< "


def heal(root: Path) -> list[str]:
    """Mends locks and `dvc.lock`; tells what it mended."""
    return clear_stale_locks(root) + mend_lock_file(root)


def clear_stale_locks(root: Path) -> list[str]:
    """Takes out of DVC's lock what processes that are gone left in it; tells of each whose and on what it was.

    DVC asks only whether some process has the number, and after a restart of the machine any other may have it.
    """
    from dvc.repo import Repo
    from dvc.rwlock import _edit_rwlock

    cleared = []

    def is_stale(path: str, holder: dict) -> bool:
        if is_running(**holder):
            return False
        cleared.append(f"DVC's lock is cleared: {path}: process {holder['pid']} ({holder['cmd']}) is gone")
        return True

    with Repo(str(root)) as repo:
        hardlink = repo.config["core"].get("hardlink_lock", False)
        with _edit_rwlock(repo.tmp_dir, repo.fs, hardlink) as lock:
            lock["write"] = {path: holder for path, holder in lock["write"].items() if not is_stale(path, holder)}
            readers = {path: [h for h in holders if not is_stale(path, h)] for path, holders in lock["read"].items()}
            lock["read"] = {path: holders for path, holders in readers.items() if holders}
    return cleared


def mend_lock_file(root: Path) -> list[str]:
    """Takes git's `dvc.lock` where a DVC was killed while it wrote that file, which it does in place.

    Nothing is lost: DVC's run cache has what stages have made since, and the next `dvc repro` takes it from there.
    """
    from dvc.dvcfile import Lockfile
    from dvc.repo import Repo
    from dvc.utils.serialize import ParseError
    from dvc.utils.strictyaml import YAMLValidationError

    file = root / "dvc.lock"
    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        try:
            Lockfile(repo, str(file.resolve())).load()
        except (ParseError, YAMLValidationError):
            if CONFLICT in file.read_text(encoding="utf-8", errors="replace"):
                return []  # of a merge, which is the user's to resolve
            aside = root / ".work" / "half-written-dvc.lock"
            aside.parent.mkdir(exist_ok=True)
            file.rename(aside)
            with suppress(UserError):  # git has none
                atomic_write(file, git(root, "show", "HEAD:./dvc.lock") + "\n")
            return [f"{file}: was half-written and lies in {aside}; the last commit's, if any, has taken its place"]
    return []


def is_running(pid: int, cmd: str) -> bool:
    """Whether process `pid` is still the one whose sys.argv, joined, was `cmd`."""
    import psutil  # comes with DVC

    # The program stands differently in the two: `python -m dvc repro` is /.../dvc/__main__.py repro in sys.argv.
    arguments = re.split(r"(?<=dvc|\.py) ", cmd, maxsplit=1)[-1]
    try:
        return f" {' '.join(psutil.Process(pid).cmdline())}".endswith(f" {arguments}")
    except psutil.NoSuchProcess:  # or a zombie
        return False
    except psutil.AccessDenied:  # another user's: it may be
        return True


if __name__ == "__main__":
    with told_to_the_user():
        for mended in heal(project_root()):
            print(mended)
