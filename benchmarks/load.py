"""How long it takes, and how much memory, until a model answers; and to bring weights in and out."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.command import read_options
from benchmarks.models import ROOT, Model, model_at, prepare
from benchmarks.noise import now, other_cores
from benchmarks.report import GIB, keep, machine

# Each a program: it says when its imports are done, and leaves a model that is ready.
OURS = (
    "import clip_core.inference.predictor, clip_core.inference.torch_towers; imported(); "
    "clip_core.load({weights!r}, 'cpu', '%s')"
)
ONNX = "import clip_core.inference.onnx_predictor; imported(); clip_core.load({weights!r}, runtime='onnx')"
PROGRAMS = {
    "clip_core": OURS % "fp32",
    "clip_core bf16": OURS % "bf16",
    "clip_core onnx": ONNX,
    "cn_clip": "import cn_clip.clip, benchmarks.models as b; imported(); b.model_at({folder!r}).load_in_cn_clip('cpu')",
    "transformers": "from transformers import ChineseCLIPModel as C; imported(); C.from_pretrained({transformers!r})",
}
CLOCK = "import time; start = time.perf_counter(); imported = lambda: print('IMPORTED', time.perf_counter() - start); "
PRETRAINED = ("-m", "clip_core.model.pretrained")


class Done(NamedTuple):
    seconds: float  # of the whole process
    importing: float  # until its imports were done
    peak: int  # bytes of memory
    other_cores: float


def main() -> None:
    """Runs every program in turn, several times, each in a process of its own."""
    options = read_options("load", repeats=3)
    model = model_at(prepare(options.model, options.work))
    with tempfile.TemporaryDirectory(dir=options.work) as out:
        commands = {name: command for name, command in _commands(model, Path(out)).items() if options.only in name}
        found = _measure(commands, Path(out), options.repeats, options.threads)
    result = {
        "model": options.model,
        "weights_gib": (model.weights / "model.safetensors").stat().st_size / GIB,
        **machine(options.threads),
        "rows": {name: [one._asdict() for one in done] for name, done in found.items()},
    }
    keep(f"load-{options.model}", result, options.results)


def _commands(model: Model, out: Path) -> dict[str, tuple[str, ...]]:
    places = {
        "folder": str(model.weights.parent),
        "weights": str(model.weights),
        "transformers": str(model.transformers),
    }
    loads = {f"load: {name}": ("-c", CLOCK + program.format(**places)) for name, program in PROGRAMS.items()}
    export = (*PRETRAINED, "export", str(model.weights))
    return {
        **loads,
        "import: OFA-Sys .pt": (*PRETRAINED, "import", str(model.released), str(out / "weights")),
        "export: ofa": (*export, str(out / "ofa.pt"), "--format", "ofa"),
        "export: transformers": (*export, str(out / "transformers"), "--format", "transformers"),
        "export: onnx": ("-m", "clip_core.serve.export", str(model.weights), str(out / "onnx")),
    }


def _measure(commands: dict[str, tuple[str, ...]], out: Path, repeats: int, threads: int) -> dict[str, list[Done]]:
    found: dict[str, list[Done]] = {name: [] for name in commands}
    for repeat in range(repeats + 1):  # the first fills the page cache and makes the ONNX export
        for name, command in commands.items():
            shutil.rmtree(out)  # exports replace nothing
            out.mkdir()
            done = _run(command, threads)
            if repeat:
                found[name].append(done)
                print(f"{name}: {done.seconds:.1f} s, {done.peak / GIB:.2f} GiB", file=sys.stderr, flush=True)
    return found


def _run(command: tuple[str, ...], threads: int) -> Done:
    start = now([os.getpid()])
    clock = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=output,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - clock
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise RuntimeError(f"{command} ended with exit code {process.returncode}:\n{said}")
    end = now([os.getpid()])
    spent = usage.ru_utime + usage.ru_stime  # of the process that ended, which /proc no longer shows
    others = other_cores(start, end._replace(own=end.own + spent))
    importing = [float(line.split()[1]) for line in said.splitlines() if line.startswith("IMPORTED")]
    return Done(seconds, importing[0] if importing else 0.0, usage.ru_maxrss * 1024, others)


if __name__ == "__main__":
    main()
