"""/v1 before a real Triton: the field's own client, search, classification, and what is said of bad requests."""

import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema
import numpy as np
import pytest

from clip_core.inference.calibration import Calibration
from clip_core.inference.predictor import load
from clip_core.inference.prompts import classifier, templates_of, unit
from clip_core.serve import edge, queries
from clip_core.serve.keys import Keys, add_key
from clip_core.serve.shapes import MODEL
from clip_core.serve.triton import connect
from clip_core.serve.upstream import Upstream
from tests.page_server import Supervised, page_of
from tests.tiny_release import Release

if TYPE_CHECKING:
    from clip_core.serve.triton import Server

CALIBRATION = Calibration(weights="any", slope=12.0, intercept=-6.0, num_candidates=36, matches=1.5)
LABELS = ["红色圆形", "蓝色方块", "猫"]


@pytest.fixture(scope="module")
def releases(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the release that Triton serves, calibrated."""
    folder = tmp_path_factory.mktemp("releases")
    (folder / release.id).mkdir()
    for part in ("models", "galleries"):
        (folder / release.id / part).symlink_to(release.folder / part)
    (folder / release.id / "calibration.json").write_text(CALIBRATION.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def api(triton: "Server", releases: Path) -> Generator[httpx.Client]:
    with page_of(Supervised(triton.address), releases) as client:
        yield client


def picture(release: Release, place: int) -> bytes:
    return release.store.image_bytes(place)


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def embed(api: httpx.Client, given: Any, **more: Any) -> httpx.Response:
    return api.post("/v1/embeddings", json={"model": MODEL, "input": given, **more})


def search(api: httpx.Client, **question: Any) -> dict:
    answer = api.post("/v1/search", json=question)
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(answer: httpx.Response, status: int, kind: str) -> str:
    body = answer.json()
    assert (answer.status_code, body["error"]["type"]) == (status, kind), body
    assert body == {
        "error": {"message": body["error"]["message"], "type": kind, "param": None, "code": None},
        "id": answer.headers["X-Request-Id"],
    }
    return body["error"]["message"]


# Embeddings.


def test_the_openai_client_works_unchanged(
    api: httpx.Client, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai = pytest.importorskip("openai", reason="no package openai; the next test has the JSON that it sends")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = openai.OpenAI(base_url=f"{api.base_url}/v1", api_key="any", max_retries=0)
    texts = list(release.truth.texts[:3])
    for more in ({}, {"encoding_format": "float"}):
        made = client.embeddings.create(model=MODEL, input=[*texts, url_of(picture(release, 5))], **more)
        features = np.array([one.embedding for one in made.data])
        np.testing.assert_allclose(features[:3], release.truth.text_features[:3], atol=1e-4)
        np.testing.assert_allclose(features[3], release.truth.image_features[5], atol=1e-4)
        assert (made.model, [one.index for one in made.data]) == (release.id, [0, 1, 2, 3])
    assert [one.id for one in client.models.list()] == [MODEL, release.id]
    with pytest.raises(openai.BadRequestError, match=r"input\[1\]: the text is empty") as caught:
        client.embeddings.create(model=MODEL, input=["猫", " "])
    assert caught.value.type == "input" and caught.value.request_id


@pytest.mark.parametrize("encoding_format", [None, "float", "base64"])
def test_the_json_is_just_what_openais_client_sends_and_reads(
    encoding_format: str | None, api: httpx.Client, release: Release
) -> None:
    text = release.truth.texts[0]
    answer = embed(api, text, **({"encoding_format": encoding_format} if encoding_format else {})).json()
    (made,) = answer.pop("data")
    assert answer == {"object": "list", "model": release.id, "usage": {"prompt_tokens": 0, "total_tokens": 0}}
    features = made.pop("embedding")
    if encoding_format == "base64":
        features = np.frombuffer(base64.b64decode(features), dtype="<f4")
    assert made == {"object": "embedding", "index": 0}
    np.testing.assert_allclose(features, release.truth.text_features[0], atol=1e-4)


def test_texts_and_pictures_come_back_in_their_order_however_many(api: httpx.Client, release: Release) -> None:
    truth = release.truth
    given: list[str] = []
    expected = []
    for number in range(150):  # more than Triton takes at once
        if number % 3:
            place = number % len(truth.texts)
            given.append(truth.texts[place])
            expected.append(truth.text_features[place])
        else:
            place = number % len(truth.image_ids)
            given.append(url_of(picture(release, place)))
            expected.append(truth.image_features[place])
    made = embed(api, given).json()["data"]
    np.testing.assert_allclose([one["embedding"] for one in made], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "more", "status", "said"),
    [
        (["猫", "狗", "  "], {}, 400, "input[2]: the text is empty"),
        (["猫"] * 70 + [""], {}, 400, "input[70]: the text is empty"),
        (["猫", url_of(b"no picture")], {}, 400, "input[1]: not a picture in one of the formats"),
        ("data:image/png;base64,====", {}, 400, "input[0]: not base64: "),
        ("data:image/png;base64,猫猫猫猫", {}, 400, "input[0]: not base64: "),
        ("猫" * 6000, {}, 400, "input[0]: the text has 18000 bytes; 16384 are allowed"),
        ([], {}, 400, "input."),
        (["猫"] * 2049, {}, 400, "input."),
        ([[1, 2]], {}, 400, "input."),  # tokens
        ("猫", {"dimensions": 3}, 400, "dimensions: 3 are not to be had; the features have 8"),
        ("猫", {"encoding_format": "int8"}, 400, "encoding_format: "),
        ("猫", {"model": "text-embedding-3-small"}, 400, "model: "),
        ("猫", {"model": 16 * "0"}, 409, f"release {16 * '0'} does not serve (any more): "),
        ("猫", {"modell": "x"}, 400, "modell: "),
    ],
)
def test_what_can_not_be_embedded_is_named(
    given: Any, more: dict[str, Any], status: int, said: str, api: httpx.Client
) -> None:
    assert problem(embed(api, given, **more), status, "input").startswith(said)


def test_a_release_may_be_asked_for(api: httpx.Client, release: Release) -> None:
    assert embed(api, "猫", model=release.id, dimensions=8, user="me").status_code == 200


def test_texts_and_pictures_of_different_releases_are_never_mixed(
    triton: "Server", releases: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, rollouts = Upstream._ask, [b"a" * 16, b"b" * 16]

    async def ask(self: Upstream, model: str, *rest: Any) -> list[np.ndarray]:
        features, made_by = await really(self, model, *rest)
        if model == "clip_image" and rollouts:  # a rollout between the two questions
            made_by = np.full_like(made_by, rollouts.pop())
        return [features, made_by]

    monkeypatch.setattr(Upstream, "_ask", ask)
    with page_of(Supervised(triton.address), releases) as api:
        given = ["猫", url_of(picture(release, 0))]
        assert embed(api, given).json()["model"] == release.id  # asked again
        assert not rollouts
        rollouts += [b"c" * 16] * 3
        answer = embed(api, given)
        assert (problem(answer, 503, "overload"), answer.headers["Retry-After"]) == ("a rollout is under way", "1")


# Search.


def test_a_text_finds_what_clip_search_finds_with_the_calibrated_probability(
    api: httpx.Client, triton: "Server", release: Release
) -> None:
    text = release.truth.texts[2]
    with closing(connect(triton.address)) as client:
        (expected,) = queries.search(client, [text])
    answer = search(api, text=text)
    assert (answer["release"], answer["gallery"], answer["num_pictures"]) == (release.id, "test", 36)
    assert [hit["image_id"] for hit in answer["hits"]] == expected.ids
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], expected.scores, atol=1e-4)
    probabilities = CALIBRATION.probability(expected.scores, 36)
    np.testing.assert_allclose([hit["probability"] for hit in answer["hits"]], probabilities, atol=1e-3)
    place = release.store.image_ids.index(expected.ids[0])
    assert api.get(answer["hits"][0]["image"]).content == picture(release, place)


@pytest.mark.parametrize("limit", [1, 7, 10, 36])
def test_pages_one_after_the_other_are_the_full_ranking(limit: int, api: httpx.Client, release: Release) -> None:
    found, offset, served, num_pages = [], 0, None, 0
    while offset is not None:
        num_pages += 1
        answer = search(api, text="红色圆形", limit=limit, offset=offset, release=served)
        found += answer["hits"]
        offset, served = answer["next_offset"], answer["release"]
    assert num_pages == -(-36 // limit)
    truth = release.truth
    scores = truth.image_features @ load(release.model).encode_texts(["红色圆形"])[0]
    assert sorted(hit["image_id"] for hit in found) == sorted(truth.image_ids)
    of_ids = dict(zip(truth.image_ids, scores, strict=True))
    np.testing.assert_allclose([of_ids[hit["image_id"]] for hit in found], np.sort(scores)[::-1], atol=2e-4)
    assert search(api, text="红色圆形", offset=36)["hits"] == []


def test_a_picture_finds_itself_and_no_probability_is_claimed(api: httpx.Client, release: Release) -> None:
    best = search(api, image=url_of(picture(release, 7)), limit=1)["hits"][0]
    assert best["score"] == pytest.approx(1, abs=1e-4)
    assert best["probability"] is None


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1, 3), (0.2, 0.1)])
def test_a_text_and_a_picture_find_what_resembles_their_weighted_mean(
    weights: tuple[float, float], api: httpx.Client, release: Release
) -> None:
    truth = release.truth
    wanted = unit(weights[0] * truth.text_features[4] + weights[1] * truth.image_features[30])
    answer = search(
        api,
        text=truth.texts[4],
        image=url_of(picture(release, 30)),
        text_weight=weights[0],
        image_weight=weights[1],
        limit=36,
    )
    scores = dict(zip(truth.image_ids, truth.image_features @ wanted, strict=True))
    assert {hit["image_id"]: hit["score"] for hit in answer["hits"]} == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize("limit", [2, 36])
def test_a_filter_leaves_the_ranking_of_the_pictures_that_are_as_it_says(
    limit: int, api: httpx.Client, release: Release
) -> None:
    everything = search(api, text="红色圆形", limit=36)["hits"]
    for wanted in ({"family": "red"}, {"family": "blue", "source": "test"}, {"family": "red", "source": None}):
        right = [hit["image_id"] for hit in everything if f"-{wanted['family']}-" in hit["image_id"]]
        right = right if wanted.get("source", "test") else []
        found, offset = [], 0
        while offset is not None:
            answer = search(api, text="红色圆形", filter=wanted, limit=limit, offset=offset)
            assert answer["num_pictures"] == len(right) == (6 if wanted.get("source", "") is not None else 0)
            found, offset = found + answer["hits"], answer["next_offset"]
        assert [hit["image_id"] for hit in found] == right
        scores = np.array([hit["score"] for hit in found])
        expected = CALIBRATION.probability(scores, max(1, len(right)))  # among those that were searched
        np.testing.assert_allclose([hit["probability"] for hit in found], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("path", "name", "rest"),
    [
        ("search", "image", {}),
        ("search", "image", {"text": "红色圆形", "image_weight": 3, "limit": 5, "filter": {"family": "red"}}),
        ("classify", "image", {"labels": LABELS}),
        ("embeddings", "input", {"model": MODEL}),
    ],
)
def test_a_picture_as_the_body_is_answered_as_its_data_url(
    path: str, name: str, rest: dict, api: httpx.Client, release: Release
) -> None:
    data = picture(release, 3)
    uploaded = api.post(
        f"/v1/{path}", params={"question": json.dumps(rest)}, content=data, headers={"Content-Type": "image/png"}
    )
    assert uploaded.status_code == 200, uploaded.text
    assert uploaded.json() == api.post(f"/v1/{path}", json=rest | {name: url_of(data)}).json()


@pytest.mark.parametrize(
    ("question", "body", "said"),
    [
        ("[]", b"x", "question: a JSON object is wanted"),
        ("{", b"x", "question: a JSON object is wanted"),
        ("[" * 5_000, b"x", "question: a JSON object is wanted"),
        ('{"limit": "5"}', b"x", "limit: "),
        ("{}", b"", "image: "),
        ("{}", b"GIF89a", "image: "),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_an_upload_that_can_not_be_searched_with_is_refused_by_name(
    question: str, body: bytes, said: str, api: httpx.Client
) -> None:
    answer = api.post("/v1/search", params={"question": question}, content=body, headers={"Content-Type": "image/png"})
    assert problem(answer, 400, "input").startswith(said)


def test_half_a_question_beside_a_body_of_json_is_not_dropped_silently(api: httpx.Client) -> None:
    answer = api.post("/v1/search", params={"question": '{"limit": 1}'}, json={"text": "猫"})
    assert problem(answer, 400, "input").startswith("question: goes with a picture as the body")


@pytest.mark.parametrize(
    ("question", "status", "kind", "said"),
    [
        ({}, 400, "input", "text, image: one of them is wanted, or both"),
        ({"text": "\t"}, 400, "input", "text: the text is empty"),
        ({"text": "猫", "image": url_of(b"GIF89a")}, 400, "input", "image: "),
        ({"image": "http://127.0.0.1/x.png"}, 400, "input", "image: String should match pattern"),
        ({"text": "猫", "gallery": "dogs"}, 404, "not_found", "no release"),
        ({"text": "猫", "limit": 0}, 400, "input", "limit: "),
        ({"text": "猫", "offset": 1000}, 400, "input", "offset: "),
        ({"text": "猫", "text_weight": 0}, 400, "input", "text_weight: "),
        ({"text": "猫", "text_weight": 1e308}, 400, "input", "text_weight: "),
        ({"text": "猫", "release": "0" * 16}, 409, "input", "release 0000000000000000 does not serve"),
        (
            {"text": "猫", "filter": {"colour": "red"}},
            400,
            "input",
            "filter: colour: this gallery's metadata: family, s",
        ),
        ({"text": "猫", "filter": {"family": ["red"]}}, 400, "input", "filter."),
    ],
)
def test_a_search_that_can_not_be_is_refused_by_name(
    question: dict, status: int, kind: str, said: str, api: httpx.Client
) -> None:
    assert problem(api.post("/v1/search", json=question), status, kind).startswith(said)


# Classification.


@pytest.mark.parametrize("templates", [None, ["{}", "一张{}的图片"]], ids=["ours", "given"])
def test_a_picture_is_classified_as_by_the_classifier_of_the_evaluation(
    templates: list[str] | None, api: httpx.Client, release: Release
) -> None:
    question = {"image": url_of(picture(release, 3)), "labels": LABELS}
    answer = api.post("/v1/classify", json=question | ({"templates": templates} if templates else {})).json()
    matrix = classifier(load(release.model).encode_texts, LABELS, templates or templates_of("general"))
    scores = matrix @ release.truth.image_features[3]
    judged = {one["label"]: one for one in answer["labels"]}
    assert answer["release"] == release.id
    assert [one["score"] for one in answer["labels"]] == sorted((one["score"] for one in judged.values()), reverse=True)
    assert [judged[label]["score"] for label in LABELS] == pytest.approx(scores.tolist(), abs=1e-4)
    expected = CALIBRATION.probability(scores, len(LABELS))
    assert [judged[label]["probability"] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-3)
    odds = expected / (1 - expected)
    assert [judged[label]["share"] for label in LABELS] == pytest.approx((odds / odds.sum()).tolist(), abs=1e-3)


def test_without_a_calibration_no_probability_is_claimed(
    triton: "Server", releases: Path, release: Release, tmp_path: Path
) -> None:
    (tmp_path / release.id).symlink_to(release.folder)
    with page_of(Supervised(triton.address), tmp_path) as api:
        answer = api.post("/v1/classify", json={"image": url_of(picture(release, 3)), "labels": LABELS}).json()
        assert {(one["probability"], one["share"]) for one in answer["labels"]} == {(None, None)}
        assert {hit["probability"] for hit in search(api, text="猫")["hits"]} == {None}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"labels": []}, "labels: "),
        ({"labels": ["猫", " "], "templates": ["{}"]}, "labels[1] in templates[0]: the text is empty"),
        ({"labels": ["猫"], "templates": ["一只猫"]}, "templates.0: "),
        ({"labels": ["猫"] * 200}, "labels times templates: 2400 texts; 2048 are allowed"),
    ],
)
def test_labels_that_can_not_be_judged_are_named(more: dict, said: str, api: httpx.Client, release: Release) -> None:
    question = {"image": url_of(picture(release, 3)), **more}
    assert problem(api.post("/v1/classify", json=question), 400, "input").startswith(said)


# What is said of itself.


def test_every_example_in_openapi_is_answered_as_openapi_says(api: httpx.Client) -> None:
    description = api.get("/openapi.json").json()
    schemas = description["components"]["schemas"]

    def check(body: Any, reference: dict) -> None:
        jsonschema.Draft202012Validator({**reference, "components": {"schemas": schemas}}).validate(body)

    answered = 0
    for path, methods in description["paths"].items():
        if "post" not in methods:
            continue
        operation = methods["post"]
        asked = operation["requestBody"]["content"]["application/json"]["schema"]
        (example,) = schemas[asked["$ref"].rpartition("/")[2]]["examples"]
        check(example, asked)
        answer = api.post(path, json=example)
        assert answer.status_code == 200, answer.text
        check(answer.json(), operation["responses"]["200"]["content"]["application/json"]["schema"])
        refused = api.post(path, json={"no": "such"})
        check(refused.json(), operation["responses"]["4XX"]["content"]["application/json"]["schema"])
        answered += 1
    assert answered == 3
    assert not [path for path in description["paths"] if path.startswith(("/api", "/images"))]


def test_whatever_openapi_allows_or_forbids_is_answered_as_it_says(
    triton: "Server", releases: Path, tmp_path: Path
) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.core.result import Ok

    key = add_key(tmp_path / "keys.json", "schemathesis", 10**6)
    ours = {"Authorization": f"Bearer {key}"}
    statuses: dict[str, set[int]] = {}

    def check(case: Any) -> None:
        answer = case.call(headers=ours)
        statuses.setdefault(case.operation.label, set()).add(answer.status_code)
        # What JSON Schema allows may still be no picture, or a label without a letter.
        case.validate_response(answer, excluded_checks=[schemathesis.checks.positive_data_acceptance], headers=ours)

    with page_of(Supervised(triton.address), releases, keys=Keys(tmp_path / "keys.json")) as api:
        schema = schemathesis.openapi.from_url(f"{api.base_url}/openapi.json", headers=ours)
        for operation in [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]:
            for mode in list(schemathesis.GenerationMode)[: 2 if operation.method == "post" else 1]:
                cases = given(case=operation.as_strategy(generation_mode=mode))
                limits = settings(
                    max_examples=15,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                limits(cases(check))()
    for path in ("embeddings", "search", "classify"):
        assert {200, 400} <= statuses.pop(f"POST /v1/{path}") <= {200, 400, 401, 409}
    assert statuses == {f"GET {path}": {200} for path in ("/v1/models", "/livez", "/readyz", "/metrics")}


def test_what_the_query_may_not_have_is_refused_and_not_passed_over(api: httpx.Client, release: Release) -> None:
    kind = {"Content-Type": "image/png"}
    answer = api.post("/v1/search", content=picture(release, 0), headers=kind, params={"limit": "3"})
    assert problem(answer, 400, "input") == "question: is all that the query may have, not 'limit'"


# Bad bodies.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 120_000,  # which ends Triton 2.51, were it asked by HTTP
        b'{"a":' * 50_000,
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": "x", "limit": NaN}',
        b'{"text": "x", "limit": ' + b"9" * 5000 + b"}",
        b'{"text": "x", "text_weight": 1e999}',
        b'{"text": ["x"]}',
        b"null",
        b"\x00" * 100,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_is_no_question_is_refused(body: bytes, api: httpx.Client) -> None:
    answer = api.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    problem(answer, 400, "input")
    assert search(api, text="猫", limit=1)["hits"]


def test_a_body_too_large_is_refused_and_of_all_together_too(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"text": "' + b" " * edge.MAX_API_BODY + b'"}'
    assert "larger than 25165824 bytes" in problem(api.post("/v1/search", content=body), 413, "input")
    monkeypatch.setattr(edge, "MAX_BODIES", 1000)
    refused = api.post("/v1/search", json={"text": "猫" * 500})
    assert "too many large bodies" in problem(refused, 503, "overload")
    assert refused.headers["Retry-After"] == "1"
    assert search(api, text="猫", limit=1)["hits"]  # what was held is held no more


def test_who_sends_too_slowly_or_hangs_up_costs_nobody_anything(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "BODY_SECONDS", 0.5)
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    address = (api.base_url.host, api.base_url.port)
    with socket.create_connection(address) as slow:
        slow.sendall(head)
        assert slow.makefile("rb").readline().startswith(b"HTTP/1.1 408")
    for _ in range(20):
        with socket.create_connection(address) as caller:
            caller.sendall(head + b'"text": "x"}')  # a question as it is, but less than was announced
    lost = 'clip_gateway_requests_total{key="",route="none",status="0"} 20.0'
    deadline = time.monotonic() + 10
    while lost not in api.get("/metrics").text:
        assert time.monotonic() < deadline
    assert search(api, text="猫", limit=1)["hits"]


def test_large_pictures_delay_no_probe(api: httpx.Client) -> None:
    largest = url_of(b"\x89PNG" + bytes(16 * 2**20 - 4))
    worst, stopped = [0.0], threading.Event()

    def probe() -> None:
        with httpx.Client(base_url=api.base_url, trust_env=False) as client:
            while not stopped.is_set():
                started = time.perf_counter()
                assert client.get("/livez").status_code == 200
                worst.append(time.perf_counter() - started)
                time.sleep(0.005)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        for _ in range(5):
            assert "input[0]: " in problem(embed(api, largest), 400, "input")
    finally:
        stopped.set()
        thread.join()
    print(f"the slowest of {len(worst)} probes: {max(worst):.3f} s")
    assert max(worst) < 1.0  # 0.05 on cores of one's own


def test_who_hangs_up_before_being_heard_is_no_fault_of_the_server(
    api: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"model": MODEL, "input": ["猫"]}).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for _ in range(50):
        with socket.create_connection((api.base_url.host, api.base_url.port or 80)) as caller:
            caller.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets the connection
    assert api.get("/livez").status_code == 200
    assert "internal error" not in caplog.text and "failed" not in caplog.text
