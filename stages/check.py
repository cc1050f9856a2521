"""DVC stage: every key of `params.yaml` is known and in its range and its files are there, or no stage starts."""

from pathlib import Path

from stages.command import run


def main(out: Path | None = None, params_file: Path = Path("params.yaml")) -> None:
    """Writes `out`, the same whatever the values are: what follows depends on it, but runs for its own params alone.

    Without `out` it checks and writes nothing, as `make run` does before DVC reads the keys that dvc.yaml names.
    """
    from clip_core.files import atomic_write
    from clip_core.params_file import check_files, load_params

    check_files(load_params(params_file))
    if out:
        atomic_write(out, "checked\n")


if __name__ == "__main__":
    run(main)
