"""Set-up of the local Triton server: `python -m clip_core.serve.install` makes `.triton/`, where `triton_home` says.

The server comes from PyPI's nvidia-pytriton. Its Python stub needs numpy<2 (under numpy 2 it computes wrong numbers
without a word), so `.triton/` is an overlay environment: the packages of triton.lock first, the main one's behind them.
"""

import fcntl
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from clip_core.errors import UserError, told_to_the_user
from clip_core.files import replacing_folder, sha256_file
from clip_core.uv import uv

CLONE = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("triton.lock")  # the pins, with hashes
NEEDED_BYTES = 1_000_000_000  # 150 MB of wheels, unpacked 500 MB
PACKAGES = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")


def triton_home() -> Path:
    """Where the local Triton server is installed: in the clone, or where clip_core is a package, in its environment.

    Several may share one through $CLIP_TRITON_HOME.
    """
    beside = CLONE if (CLONE / "pyproject.toml").exists() else Path(sys.prefix)
    return Path(os.environ.get("CLIP_TRITON_HOME") or beside / ".triton").absolute()


def libpython_folder() -> Path:
    """The folder of the shared libpython, which Triton's stub loads; ValueError where Python has none."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    for folder in (sysconfig.get_config_var("LIBDIR") or "", Path(sys.base_prefix, "lib")):
        if ".so" in name and Path(folder, name).exists():
            return Path(folder)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise UserError(
        f"this Python ({sys.base_prefix}) has no shared libpython, which Triton's Python stub loads. "
        f"On Debian: apt-get install libpython{version}. With pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared "
        f"pyenv install --force {version}. Or let uv bring one: uv venv --managed-python --python {version} .venv"
    )


def install() -> Path:
    """Makes the overlay unless it is there and up to date; an interrupted run leaves nothing half made."""
    home = triton_home()
    wanted = _wanted()
    if is_installed(home, wanted):
        return home
    libpython_folder()  # refused before the download
    home.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home.parent).free
    if free < NEEDED_BYTES:
        raise UserError(f"{home.parent}: {free // 2**20} MiB free, Triton needs {NEEDED_BYTES // 2**20}; make room")
    lock = os.open(home.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another set-up may be at it
        if not is_installed(home, wanted):
            print("installing the local Triton server (150 MB) ...", flush=True)
            with replacing_folder(home) as folder:
                _fill(folder)
                (folder / "installed.json").write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    finally:
        os.close(lock)
    return home


def is_installed(home: Path, wanted: dict[str, str] | None = None) -> bool:
    """Whether `home` holds what this Python and this triton.lock ask for."""
    try:
        return json.loads((home / "installed.json").read_text(encoding="utf-8")) == (wanted or _wanted())
    except (OSError, ValueError):
        return False


def _wanted() -> dict[str, str]:
    return {
        "lock": sha256_file(LOCK),
        "python": sys.version.split()[0],
        "packages": sysconfig.get_path("purelib"),  # of the main environment
    }


def _fill(folder: Path) -> None:
    """Makes the overlay environment and Triton's Python backend in `folder`."""
    environment = folder / "environment"
    uv("venv", "--quiet", "--relocatable", "--python", sys.executable, str(environment))
    uv(
        *("pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
        *("--python", str(environment / "bin" / "python"), "--requirements", str(LOCK)),
    )
    packages = environment / PACKAGES
    behind = packages / "zz_main.pth"  # zz: behind the overlay's own
    behind.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    server = packages / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    stub = server / "python_backend_stubs" / PACKAGES.parts[1].removeprefix("python") / "triton_python_backend_stub"
    for file in [*(server / "backends" / "python").iterdir(), stub]:
        if file.is_file():
            shutil.copy2(file, backend)
    for file in (server / "bin" / "tritonserver", backend / stub.name):
        file.chmod(0o755)


def main() -> None:
    with told_to_the_user(OSError):
        print(f"Triton: {install()}")


if __name__ == "__main__":
    main()
