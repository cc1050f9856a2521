"""Serving on a real Triton: right answers, clear refusals, one repository for CPU and GPU, nothing left behind."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from clip_core.config.deploy import Triton as TritonParams
from clip_core.serve import live
from clip_core.serve.assemble import MODELS, PUBLIC, Gallery, assemble, read_config
from clip_core.serve.gallery import TRITON
from clip_core.serve.install import PACKAGES, triton_home
from clip_core.serve.queries import encode_images, encode_texts, search
from clip_core.serve.release import link_tree, read_manifest
from clip_core.serve.triton import Server, Triton, connect, shared_memory, triton_server
from tests.conftest import ENVIRONMENT, ROOT
from tests.odd_pictures import ODD
from tests.tiny_release import TOP_K, Release, processes_that_name, triton_of


def test_served_features_are_torchs(triton: Server, release: Release) -> None:
    with closing(connect(triton.address)) as client:
        texts = encode_texts(client, release.truth.texts)
        images = encode_images(client, [release.store.image_bytes(i) for i in range(len(release.store))])
    np.testing.assert_allclose(texts, release.truth.text_features, atol=1e-5)
    np.testing.assert_allclose(images, release.truth.image_features, atol=1e-5)


def test_each_model_is_loaded_once_so_that_what_was_probed_is_what_serves(
    triton: Server, release: Release, narrow_release: Release
) -> None:
    loaded = Counter(re.findall(r"successfully loaded '(\w+)'", triton.log.read_text()))
    assert loaded == Counter([*PUBLIC, *(f"{model}_{one.id}" for one in (release, narrow_release) for model in MODELS)])


@pytest.mark.parametrize("encoding", ["PNG", "JPEG", "WEBP"])
def test_every_encoding_is_read_as_in_training(encoding: str, triton: Server, release: Release) -> None:
    from clip_core.inference.predictor import load

    image = encoded(Image.effect_mandelbrot((50, 70), (-2, -1, 1, 1), 50), encoding)
    with closing(connect(triton.address)) as client:
        served = encode_images(client, [image])
    np.testing.assert_allclose(served, load(release.model).encode_images([image]), atol=1e-5)


def test_pictures_of_every_kind_are_read_as_in_training(triton: Server, release: Release) -> None:
    from clip_core.inference.predictor import load

    pictures = [make() for make in ODD.values()]
    with closing(connect(triton.address)) as client:
        served = encode_images(client, pictures)
    np.testing.assert_allclose(served, load(release.model).encode_images(pictures), atol=1e-5)


@pytest.mark.filterwarnings("ignore:texts longer than")
def test_texts_of_every_length_are_read_as_in_training(triton: Server, release: Release) -> None:
    from clip_core.inference.predictor import load

    texts = ["猫", "“红色”圆形", "ｆｕｌｌ　ｗｉｄｔｈ，红色！", "a red circle 红色圆形", "红色方块" * 15]
    with closing(connect(triton.address)) as client:
        served = encode_texts(client, texts)
    np.testing.assert_allclose(served, load(release.model).encode_texts(texts), atol=1e-5)


def test_search_finds_what_torch_finds(triton: Server, release: Release) -> None:
    with closing(connect(triton.address)) as client:
        found = search(client, release.truth.texts)
    true = release.truth.text_features @ release.truth.image_features.T
    for answer, scores in zip(found, true, strict=True):
        assert len(answer.ids) == TOP_K
        places = [release.truth.image_ids.index(image_id) for image_id in answer.ids]
        np.testing.assert_allclose(answer.scores, scores[places], atol=1e-5)
        np.testing.assert_allclose(answer.scores, -np.sort(-scores)[:TOP_K], atol=1e-5)
        assert answer.release == release.id


def test_a_width_is_served_with_features_and_index_of_that_width(triton: Server, narrow_release: Release) -> None:
    from clip_core.inference.predictor import load

    texts, store = narrow_release.truth.texts, narrow_release.store
    pictures = [store.image_bytes(i) for i in range(len(store))]
    with closing(connect(triton.address)) as client:
        text_features = encode_texts(client, texts, f"clip_text_{narrow_release.id}")
        image_features = encode_images(client, pictures, f"clip_image_{narrow_release.id}")
        found = search(client, texts, f"clip_search_{narrow_release.id}")
    predictor = load(narrow_release.model, width=4)
    assert text_features.shape == (len(texts), 4)
    assert np.load(narrow_release.index / "features.npy").shape == (len(pictures), 4)
    np.testing.assert_allclose(text_features, predictor.encode_texts(texts), atol=1e-5)
    np.testing.assert_allclose(image_features, predictor.encode_images(pictures), atol=1e-5)
    best = -np.sort(-(text_features @ image_features.T))[:, :TOP_K]
    np.testing.assert_allclose([answer.scores for answer in found], best, atol=1e-5)
    assert {answer.release for answer in found} == {narrow_release.id}
    assert read_manifest(narrow_release.folder).weights == predictor.weights_id != load(narrow_release.model).weights_id


def encoded(image: Image.Image, encoding: str) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, encoding)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row of nothing."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


BAD_TEXTS = {
    "empty": (b"", "the text is empty"),
    "blank": (" \u3000\n".encode(), "the text is empty"),
    "meaningless": (b"\0\0", "the text is empty"),
    "too long": ("猫".encode() * 6000, "18000 bytes; 16384 are allowed"),
    "half a character": ("猫".encode()[:2], "not valid UTF-8"),
}
BAD_IMAGES = {
    "not an image": (b"hello", "not a picture in one of the formats PNG, JPEG, WEBP, GIF, BMP, TIFF"),
    "empty": (b"", "not a picture"),
    "a PPM": (encoded(Image.new("RGB", (8, 8)), "PPM"), "not a picture in one of the formats"),
    "truncated": (encoded(Image.effect_noise((64, 64), 50), "PNG")[:500], "broken picture"),
    "a bomb": (png_header(30_000, 30_000), "too many pixels"),
    "too big": (b"\xff\xd8\xff" + bytes(16 * 2**20), "16777219 bytes; 16777216 are allowed"),
}


@pytest.mark.parametrize("model", ["clip_text", "clip_search"])
@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_text_that_is_none_is_refused_with_the_reason(case: str, model: str, triton: Server) -> None:
    text, reason = BAD_TEXTS[case]
    status, message = refusal(triton, model, "TEXT", [b"ok", text])
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert reason in message
    assert "item 1" in message


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_picture_that_is_none_is_refused_with_the_reason(case: str, triton: Server) -> None:
    image, reason = BAD_IMAGES[case]
    status, message = refusal(triton, "clip_image", "IMAGE", [image])
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert reason in message
    assert "item 0" in message


def test_a_bad_request_does_not_harm_those_beside_it(triton: Server, release: Release) -> None:
    from concurrent.futures import ThreadPoolExecutor

    true = dict(zip(release.truth.texts, release.truth.text_features, strict=True))

    def ask(number: int) -> bool:
        if number % 4 == 0:
            return refusal(triton, "clip_text", "TEXT", [b" "])[0] == "StatusCode.INVALID_ARGUMENT"
        text = release.truth.texts[number % len(true)]
        with closing(connect(triton.address)) as client:
            return bool(np.allclose(encode_texts(client, [text])[0], true[text], atol=1e-5))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(160)))


def refusal(server: Server, model: str, name: str, items: list[bytes]) -> tuple[str, str]:
    from tritonclient.grpc import InferInput
    from tritonclient.utils import InferenceServerException

    question = InferInput(name, [len(items), 1], "BYTES")
    question.set_data_from_numpy(np.array(items, dtype=object).reshape(-1, 1))
    with closing(connect(server.address)) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(model, [question])
    return str(caught.value.status()), caught.value.message()


def test_search_refuses_when_encoder_and_index_differ(release: Release, tmp_path: Path) -> None:
    with triton_of(release, folder=tmp_path) as triton:
        stated = triton.server.live / f"text_preprocess_{release.id}" / "1" / "release.txt"
        stated.unlink()  # a link
        stated.write_text("0123456789abcdef\n")
        for name in ("clip_search", "text_preprocess"):
            triton.unload(f"{name}_{release.id}")
        live.load(triton, release.folder, release.id)
        status, message = refusal(triton.server, "clip_search", "TEXT", ["红色".encode()])
    assert status == "StatusCode.UNAVAILABLE"
    assert f"this model is of release {release.id}, clip_text of 0123456789abcdef" in message


def test_an_index_of_other_weights_is_not_assembled(tiny_releases: tuple[Release, Release], tmp_path: Path) -> None:
    first, second = tiny_releases
    galleries = {"test": Gallery(first.store.folder, second.index)}
    made_by, holds = second.truth.weights_id, first.truth.weights_id
    with pytest.raises(ValueError, match=f"made by weights {made_by}, but .* holds {holds}"):
        assemble(first.onnx, galleries, first.golden, TOP_K, TRITON, tmp_path)


def test_a_gallery_that_the_release_has_not_is_refused_by_name(triton: Server, release: Release) -> None:
    with closing(connect(triton.address)) as client:
        named = search(client, release.truth.texts[:2], gallery="test")
        assert named[0].ids == search(client, release.truth.texts[:1])[0].ids
        with pytest.raises(ValueError, match="no gallery other: one of test is searched at a time"):
            search(client, release.truth.texts[:2], gallery="other")


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_cpu_and_gpu_configurations_say_the_same_but_what_params_let_each_take(
    precision: Literal["fp16"] | None, release: Release, tmp_path: Path
) -> None:
    galleries = {"test": Gallery(release.store.folder, release.index)}
    machine = TritonParams(towers=2, threads=3, preparers=4, tensorrt=precision)
    assemble(release.onnx, galleries, release.golden, TOP_K, machine, tmp_path)
    for tower in ("text", "image"):
        model = tmp_path / "models" / f"{tower}_core"
        gpu, cpu = read_config(model / "config.pbtxt"), read_config(model / "configs" / "cpu_python.pbtxt")
        differ = {name.name for name in gpu.DESCRIPTOR.fields if getattr(gpu, name.name) != getattr(cpu, name.name)}
        assert differ - {"optimization"} == {"backend", "instance_group", "parameters"}
        assert (gpu.backend, cpu.backend) == ("onnxruntime", "python")
        assert [(one.count, one.Kind.Name(one.kind)) for one in (*gpu.instance_group, *cpu.instance_group)] == [
            (2, "KIND_GPU"),
            (2, "KIND_CPU"),
        ]
        assert cpu.parameters["intra_op_thread_count"].string_value == "3"
        accelerators = gpu.optimization.execution_accelerators.gpu_execution_accelerator
        assert [(one.name, one.parameters["precision_mode"]) for one in accelerators] == (
            [("tensorrt", "FP16")] if precision else []
        )
        prepare = read_config(tmp_path / "models" / f"{tower}_preprocess" / "config.pbtxt")
        assert prepare.instance_group[0].count == 4
        for config in (gpu, cpu, prepare):
            queue = config.dynamic_batching.default_queue_policy
            assert queue.timeout_action == queue.REJECT and queue.max_queue_size and queue.default_timeout_microseconds


def test_a_gpu_servers_onnx_files_fit_its_configurations(release: Release) -> None:
    import onnx

    for model in ("text_core", "image_core"):
        config = read_config(release.folder / "models" / model / "config.pbtxt")
        graph = onnx.load(release.folder / "models" / model / "1" / "model.onnx").graph
        assert [tensor.name for tensor in graph.input] == [tensor.name for tensor in config.input]
        assert [tensor.name for tensor in graph.output] == [tensor.name for tensor in config.output]


def test_every_version_folder_holds_a_file(release: Release) -> None:
    for model in MODELS:
        assert any(file.is_file() for file in (release.folder / "models" / model / "1").iterdir()), model


def test_two_servers_run_side_by_side_and_leave_nothing(triton: Server, release: Release, tmp_path: Path) -> None:
    ours = f"clip-{os.getpid()}-"
    before = shared_memory(ours)
    with triton_of(release, folder=tmp_path) as other:
        assert other.server.address != triton.address
        assert processes_that_name(str(tmp_path))
        assert len(shared_memory(ours)) > len(before)
        assert search(other.client, ["红色"])[0].release == release.id
    assert not processes_that_name(str(tmp_path))
    assert shared_memory(ours) == before
    with closing(connect(triton.address)) as client:
        assert search(client, ["红色"])


def test_its_shared_memory_is_for_this_user_alone(triton: Server) -> None:
    segments = [Path("/dev/shm", name) for name in shared_memory(f"clip-{os.getpid()}-")]
    assert segments
    assert {segment.stat().st_mode & 0o077 for segment in segments} == {0}


OWNER = """
import sys, time
from contextlib import closing
from pathlib import Path
from typing import Literal
from clip_core.config.deploy import Triton as TritonParams
from clip_core.serve import live
from clip_core.serve.triton import Triton, triton_server
release, folder, release_id = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
(folder / "live").mkdir()
with triton_server(folder / "live", folder / "log") as server, closing(Triton(server)) as triton:
    live.load(triton, release, release_id)
    live.publish(triton, release_id, 1)
    print(server.address, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_server_ends_with_its_owner(number: signal.Signals, release: Release, tmp_path: Path) -> None:
    owner, _ = start_owner(release, tmp_path)
    assert shared_memory(f"clip-{owner.pid}-")
    os.kill(owner.pid, number)
    owner.wait(30)
    deadline = time.monotonic() + 30
    while processes_that_name(f"{tmp_path}/live") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_that_name(f"{tmp_path}/live")
    assert not shared_memory(f"clip-{owner.pid}-")


def test_a_release_serves_with_the_code_that_it_brings_wherever_the_server_runs(
    release: Release, tmp_path: Path
) -> None:
    from tests.under_load import changed

    def change(folder: Path) -> None:
        code = folder / "models/text_preprocess/1/code/clip_core/serve/triton_models.py"
        text = code.read_text().replace("the text is empty", "nothing to read here")
        code.unlink()
        code.write_text(text)

    other = changed(release, tmp_path / "other", change)
    with triton_of(other, folder=tmp_path / "served") as triton:
        _, message = refusal(triton.server, "clip_text", "TEXT", [b" "])
    assert "nothing to read here" in message


def test_a_triton_elsewhere_serves_the_models_of_a_release_as_they_lie_there(release: Release, tmp_path: Path) -> None:
    link_tree(release.folder / "models", tmp_path / "live")
    with triton_server(tmp_path / "live", tmp_path / "log") as server, closing(Triton(server)) as triton:
        for name in PUBLIC:
            triton.load(name)
        assert search(triton.client, release.truth.texts[:1])[0].release == release.id


def start_owner(release: Release, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that holds a server, and the server's address."""
    command = [sys.executable, "-c", OWNER, str(release.folder), str(folder), release.id]
    owner = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    address = owner.stdout.readline().strip()
    assert ":" in address
    return owner, address


def test_a_stub_that_gets_numbers_wrong_is_refused(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(triton_home(), home, symlinks=True, copy_function=os.link)
    shutil.rmtree(home / "environment" / PACKAGES / "numpy")
    (home / "environment" / PACKAGES / "numpy").symlink_to(Path(np.__file__).parent)  # numpy 2
    monkeypatch.setenv("CLIP_TRITON_HOME", str(home))
    with (
        pytest.raises(ValueError, match=f"stub computes wrong numbers under numpy {np.__version__}"),
        triton_of(release, folder=tmp_path / "served"),
    ):
        pass


def test_a_folder_that_triton_can_not_read_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"项目/live: Triton .* ASCII paths alone"),
        triton_server(tmp_path / "项目" / "live", tmp_path / "log"),
    ):
        pass


def test_no_server_is_a_message() -> None:
    with pytest.raises(ValueError, match=r"no Triton server answers at 127\.0\.0\.1:9 .*make serve"):
        connect("127.0.0.1:9")


def test_a_server_that_takes_calls_and_answers_none_is_given_up_at_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    from clip_core.serve import triton

    monkeypatch.setattr(triton, "CALL_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(ValueError, match="no Triton server answers"):
            connect(f"127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 30  # without the deadline: for ever


# What a second client would send to run code as us, to look into others' requests, or to stop the service.
ATTACKS = {
    "load a model with its own code": lambda client: client.load_model(
        "theirs", config=json.dumps({"backend": "python", "max_batch_size": 0}), files={"file:1/model.py": b"import os"}
    ),
    "load": lambda client: client.load_model("clip_text"),
    "unload": lambda client: client.unload_model("clip_text"),
    "list the repository": lambda client: client.get_model_repository_index(),
    "register shared memory": lambda client: client.register_system_shared_memory("theirs", "/psm_0", 1024),
    "list shared memory": lambda client: client.get_system_shared_memory_status(),
    "unregister shared memory": lambda client: client.unregister_system_shared_memory(),
    "trace to a file": lambda client: client.update_trace_settings(settings={"trace_file": "theirs"}),
    "log to a file": lambda client: client.update_log_settings({"log_file": "theirs"}),
}


@pytest.mark.parametrize("key", [None, "0" * 32], ids=["without a key", "with a wrong key"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_who_has_not_the_key_changes_nothing(attack: str, key: str | None, triton: Server, release: Release) -> None:
    from functools import partial

    from tritonclient.utils import InferenceServerException

    with closing(connect(triton.address)) as client:
        if key:
            for name in ("load_model", "unload_model", "get_model_repository_index"):
                setattr(client, name, partial(getattr(client, name), headers={"triton-grpc-protocol-clip-admin": key}))
        with pytest.raises(InferenceServerException, match="This protocol is restricted"):
            ATTACKS[attack](client)
        assert search(client, release.truth.texts[:1])[0].release == release.id
