"""The wheel: what is in it, and that what it installs works from an empty folder, with what its extra names alone."""

import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Generator
from pathlib import Path
from zipfile import ZipFile

import grimp
import pytest
from packaging.requirements import Requirement

from clip_core.data.store import Store
from clip_core.model.weights import save_weights
from clip_core.serve.assemble import PUBLIC
from clip_core.text import build_tokenizer
from tests.conftest import ENVIRONMENT, ROOT, run_in
from tests.page_server import FOUND, StandIn, Supervised, add_gallery, page_of, standing_in
from tests.tiny import MADE, tiny_clip

RELEASE = "0123456789abcdef"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What people import or run with each extra.
USES = {
    "client": ["clip_core.serve.client"],
    "bulk": ["clip_core.serve.bulk"],
    "torch": ["clip_core.inference.predictor", "clip_core.model.pretrained.__main__"],
    "serve": [f"clip_core.serve.{name}" for name in ("gallery", "gateway", "remote", "rollout", "releases")]
    + ["clip_core.inference.onnx_predictor"],
    "pipeline": [],  # everything
}
IMPORTED_AS = {
    "ruamel-yaml": "ruamel",
    "pillow": "PIL",
    "resvg-py": "resvg_py",
    "prometheus-client": "prometheus_client",
}
COMES_WITH = {  # other packages, which are named
    *("pydantic_core", "starlette", "google", "triton_python_backend_utils"),  # pydantic, fastapi, Triton
    *("packaging", "psutil", "networkx", "dvc_data", "markupsafe"),  # transformers, DVC, Prefect, Jinja
}
OTHERWISE = {  # imported by functions that nobody calls without it
    "serve": {"faiss", "grimp", "opentelemetry"},  # an approximate index, the code that a stage reaches, traces
    "pipeline": {"faiss", "opentelemetry"},
}
NO_IMPORTS = {"sqlalchemy", "uv"}  # a pin of what Prefect brings, and a command


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`uv build` without a network; uv has the build backend in itself."""
    folder = tmp_path_factory.mktemp("dist")
    run_in(ROOT, "uv", "build", "--offline", "--quiet", "--out-dir", str(folder))  # the wheel is made of the sdist
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with `clip-core[client]` and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    run_in(folder, "uv", "venv", "--offline", "--quiet", "--python", sys.executable, ".")
    run_in(folder, "uv", "pip", "install", "--offline", "--quiet", "--python", "bin/python", f"{wheel}[client]")
    return folder / "bin" / "python"


def packages_of(python: Path) -> Path:
    return python.parents[1] / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, gallery: Store) -> Generator[str]:
    """The page's address, before a Triton that always finds the same."""
    releases, triton = tmp_path_factory.mktemp("releases"), StandIn()
    add_gallery(releases, RELEASE, "test", gallery.folder)
    ids = gallery.pairs.image_id.unique()[:2].tolist()
    triton.answer = lambda inputs, context: {**FOUND, "ids": ids, "release": RELEASE}
    with standing_in(triton) as address, page_of(Supervised(address), releases) as client:
        yield str(client.base_url).rstrip("/")


def test_the_wheel_holds_the_package_with_its_data_its_licence_and_nothing_else(wheel: Path) -> None:
    tracked = run_in(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "clip_core").stdout.split()
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (licence,) = [name for name in names if name.endswith("licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    inside = {name for name in names if not name.startswith("clip_core-")}
    assert inside == {name for name in tracked if (ROOT / name).is_file()}
    assert {"clip_core/py.typed", "clip_core/serve/page.html", "clip_core/serve/triton.lock"} <= inside
    assert {name.partition("/")[2] for name in names - inside} == {
        *("WHEEL", "METADATA", "RECORD", "licenses/LICENSE", "licenses/NOTICE")
    }
    assert wheel.stat().st_size < 2**20


def test_the_licence_is_apache_2_in_full() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert text.lstrip().startswith("Apache License\n")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text and "APPENDIX:" in text


def test_the_client_alone_finds_pictures_from_an_empty_folder(python: Path, url: str, tmp_path: Path) -> None:
    assert len(list(packages_of(python).glob("*.dist-info"))) == 1
    found = run_in(tmp_path, str(python), "-m", "clip_core.serve.client", "一只猫", "--top", "2", "--url", url)
    assert [line.split()[0] for line in found.stdout.splitlines()] == ["0.9000", "0.1000"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "extra"),
    [
        (["-m", "clip_core.serve.bulk", "--help"], "bulk"),
        (["-m", "clip_core.serve.gateway", "--help"], "serve"),
        (["-m", "clip_core.model.pretrained", "--help"], "torch"),
        (["-c", "import clip_core; clip_core.load('weights')"], "torch"),
        (["-c", "import clip_core; clip_core.load('weights', runtime='onnx')"], "serve"),
    ],
)
def test_what_lacks_its_packages_names_the_extra_that_has_them(
    asked: list[str], extra: str, python: Path, tmp_path: Path
) -> None:
    *before, last = run_in(tmp_path, str(python), *asked, check=False).stdout.splitlines()
    assert re.fullmatch(rf"(error|.*UserError): No module named '\w+'; install clip-core\[{extra}\]", last)
    assert before == [] or "-c" in asked


@pytest.mark.slow
def test_with_its_packages_the_wheel_loads_a_model_and_finds_its_files_from_an_empty_folder(
    python: Path, tmp_path: Path
) -> None:
    (packages_of(python) / "zz_others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    tokenizer = build_tokenizer(["一只猫", "ok"])
    save_weights(tiny_clip(tokenizer), tokenizer, tmp_path / "weights", MADE)
    (tmp_path / "empty").mkdir()
    code = """
import sys, clip_core
from pathlib import Path
from clip_core.serve.assemble import PUBLIC
from clip_core.serve.install import LOCK, triton_home
from clip_core.serve.page import PAGE
m = clip_core.load("../weights")
print(Path(clip_core.__file__).is_relative_to(sys.prefix), LOCK.exists(), PAGE.exists(), *PUBLIC)
print(triton_home() == Path(sys.prefix, ".triton"), m.encode_texts(["一只猫", "ok"]).shape)
"""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "CLIP_TRITON_HOME"}
    command = [str(python), "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"True True True {' '.join(PUBLIC)}", "True (2, 8)"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("extra", USES)
def test_an_extra_names_the_packages_that_its_commands_import(extra: str) -> None:
    graph = grimp.build_graph(
        *("clip_core", "stages", "flows"),
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )
    reached = set().union(*(graph.find_upstream_modules(name) | {name} for name in USES[extra] or graph.modules))
    packages = {name.partition(".")[0] for name in reached if graph.is_module_squashed(name)}
    imported = packages - sys.stdlib_module_names - COMES_WITH - OTHERWISE.get(extra, set())
    assert imported <= named("ray" if extra == "pipeline" else extra)  # which is asked for where it is missing
    if extra == "pipeline":  # and none is named for nothing
        assert named("ray") == imported | NO_IMPORTS


def named(extra: str) -> set[str]:
    """The packages of an extra, and of those in it, by the names under which code imports them."""
    found: set[str] = set()
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:
            found |= set().union(*map(named, requirement.extras))
        else:
            found.add(IMPORTED_AS.get(requirement.name.replace(".", "-"), requirement.name))
    return found
