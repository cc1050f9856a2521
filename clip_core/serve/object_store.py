"""The releases below a URL of an object store, or of a folder: whatever fsspec knows.

files/<sha256>        the files of all releases, each once
releases/<id>.json    their manifests, each written when all its files are there
"""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from fsspec.core import url_to_fs
from pydantic import ValidationError

from clip_core.errors import UserError
from clip_core.serve.release import RELEASE_ID, Manifest, is_itself


class ObjectStore:
    """What lies below a URL; UserError when its store refuses, or can not be reached."""

    def __init__(self, url: str) -> None:
        self.url = url
        with self._told():
            self.fs, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        self.fs.auto_mkdir = True  # where the URL is a folder; an object store has none
        self.root = root.rstrip("/")

    def holds(self, name: str, num_bytes: int) -> bool:
        """Whether an object of this size is there; one that was cut off is smaller."""
        with self._told(), suppress(FileNotFoundError):
            return self.fs.size(f"{self.root}/{name}") == num_bytes
        return False

    def send(self, file: Path, name: str) -> None:
        with self._told():
            self.fs.put_file(str(file), f"{self.root}/{name}")

    def fetch(self, name: str, target: Path) -> None:
        """Writes the object to `target`; nothing where there is none."""
        with self._told(), suppress(FileNotFoundError):
            self.fs.get_file(f"{self.root}/{name}", str(target))

    def delete(self, name: str) -> None:
        with self._told(), suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{name}")

    def releases(self) -> list[str]:
        """The ids of those that were pushed, the last one first."""
        with self._told(), suppress(FileNotFoundError):
            names = [name for name in self.fs.ls(f"{self.root}/releases", detail=False) if name.endswith(".json")]
            return [PurePosixPath(name).stem for name in sorted(names, key=self.fs.modified, reverse=True)]
        return []

    def newest(self) -> str:
        """The one that was pushed last; UserError when there is none."""
        if not (there := self.releases()):
            raise UserError(f"{self.url}: no release there yet; `python -m clip_core.serve.remote push` sends one")
        return there[0]

    def manifest(self, release: str) -> Manifest:
        """The manifest of a release; UserError when none is there, or one that is not the release's."""
        name, text = f"releases/{release}.json", None
        if RELEASE_ID.fullmatch(release):
            with self._told(), suppress(FileNotFoundError):
                text = self.fs.cat_file(f"{self.root}/{name}")
        if text is None:
            there = ", ".join(self.releases()) or "none"
            raise UserError(f"{self.url}: no release {release} there; there are: {there}")
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise UserError(f"{self.url}/{name}: not the manifest of a release: {error}") from None
        if manifest.release != release or not is_itself(manifest):
            raise UserError(f"{self.url}/{name}: not what release {release} was proved with; push it again")
        return manifest

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except Exception as error:  # each kind of store has errors of its own
            raise UserError(f"{self.url}: {type(error).__name__}: {error}") from error
