"""DVC stage: `params.yaml` is known, in range and its files are there, or no stage starts; what each stage reaches."""

import json
from pathlib import Path

from stages.command import CHECKED, PIPELINES, run


def main(out: Path | None = None, params_file: Path = Path("params.yaml")) -> None:
    """Writes into `out` a file for each stage: the hashes of the code that it reaches, and the versions that decide.

    A stage depends on its own file alone: DVC runs it again when that changes, and for its own params. Without `out` it
    checks and writes nothing, as `make run` does before DVC reads the keys that dvc.yaml names.
    """
    from clip_core.all_params import check_files, load_params
    from clip_core.code import locked_versions, reached_by
    from clip_core.files import replacing_folder

    check_files(load_params(params_file))
    if out is None:
        return
    assert out == CHECKED, f"stages look for their file in {CHECKED}"
    locked = locked_versions(Path("requirements.lock"))
    with replacing_folder(out) as folder:
        for module in modules_of_stages():
            reached = reached_by(module)
            versions = {package: locked[package] for package in reached.versions}
            facts = json.dumps({"code": reached.code, "versions": versions}, indent=1)
            (folder / f"{module.rpartition('.')[2]}.json").write_text(facts + "\n", encoding="utf-8")


def modules_of_stages() -> set[str]:
    """The modules that the pipelines run, but this one."""
    from clip_core.code import ROOT
    from clip_core.params_file import read_yaml

    stages = [stage for pipeline in PIPELINES for stage in read_yaml(ROOT / pipeline)["stages"].values()]
    return {stage.get("do", stage)["cmd"].split()[2] for stage in stages} - {"stages.check"}


if __name__ == "__main__":
    run(main)
