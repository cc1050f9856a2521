"""An npm whose registry is a shelf: a folder of tiny packages."""

import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from clip_core.data.sources.npm_packages import Package
from clip_core.files import sha256_file

# Copies what it is asked for from $SHELF and notes it; stands in for npm and the registry.
NPM = f"""#!{sys.executable}
import os, shutil, sys
from collections.abc import Mapping
from pathlib import Path
name, _, version = sys.argv[sys.argv.index("pack") :][-3].rpartition("@")
file = name.removeprefix("@").replace("/", "-") + "-" + version + ".tgz"
with open(os.environ["SHELF"] + "/asked", "a") as asked:
    asked.write(file + "\\n")
if not Path(os.environ["SHELF"], file).exists():
    sys.exit("npm error code ENOTFOUND\\nnpm error network request failed")
shutil.copy(Path(os.environ["SHELF"], file), sys.argv[-1])
"""


def open_shelf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty shelf in `folder`, and the npm that takes from it, alone on the path."""
    shelf, binaries = folder / "shelf", folder / "bin"
    shelf.mkdir()
    binaries.mkdir()
    (binaries / "npm").write_text(NPM)
    (binaries / "npm").chmod(0o755)
    monkeypatch.setenv("SHELF", str(shelf))
    monkeypatch.setenv("PATH", str(binaries))
    return shelf


def disc(colour: str) -> dict:
    """An Iconify picture."""
    return {"body": f'<circle cx="8" cy="8" r="6" fill="{colour}"/>'}


def pack(shelf: Path, package: str, members: Mapping[str, object]) -> str:
    """Puts a package on the shelf, as npm would pack it, and gives its row of the table of pinned packages."""
    made = Package(package, "1.0.0", "")
    with tarfile.open(shelf / made.file_name, "w:gz") as archive:
        for name, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    sha256 = sha256_file(shelf / made.file_name)
    return f'[[packages]]\nname = "{package}"\nversion = "1.0.0"\nsha256 = "{sha256}"\n'


def asked(shelf: Path) -> list[str]:
    """What npm was asked for, in order."""
    return (shelf / "asked").read_text().split()
