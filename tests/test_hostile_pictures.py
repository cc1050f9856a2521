"""Every odd and hostile picture has an outcome, and none takes much memory or time."""

import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.data.jpeg_scans import MAX_SCANS, has_too_many_scans
from clip_core.data.profile import IN_FLIGHT, facts_of, profile_image
from clip_core.image import read_image
from tests.conftest import ROOT
from tests.judged import LIMITS, PARAMS, SMALL, judged
from tests.odd_pictures import ODD
from tests.small_raw import drawing, encoded, pair_row

LARGE = 6320  # pixels of a side: as many as params.yaml allows
PROFILED = """
import sys
from pathlib import Path
from clip_core.data.profile import IN_FLIGHT, facts_of, profile_image
facts = profile_image(Path(sys.argv[1]).read_bytes(), int(sys.argv[2]))
memory = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(facts.get("picture_decodes"), int(memory) // 1024)
"""


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png_that_claims(width: int, height: int) -> bytes:
    """A file of a few bytes that says it is a large picture."""
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of_scans(number: int, side: int = 60) -> bytes:
    """A progressive JPEG whose last scan is written again and again."""
    data = encoded(Image.new("RGB", (side, side), (120, 10, 30)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * number + data[-2:]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
KEPT = "kept"
TOO_SMALL = {"of the model's size": KEPT, "tiny": "picture_side", "one pixel": "picture_side"}
TOO_LONG = {"wide": "picture_side", "tall": "picture_side", "large": "picture_pixels"}
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero bytes": (lambda: b"", "picture_decodes"),
    "text": (lambda: "不是图片".encode(), "picture_decodes"),
    "SVG": (lambda: SVG, "picture_decodes"),
    "half a JPEG": (lambda: encoded(drawing(1, 60, 60), "JPEG")[:-300], "picture_decodes"),
    "half a PNG": (lambda: encoded(drawing(1, 60, 60))[:-60], "picture_decodes"),
    "the header of a JPEG": (lambda: encoded(drawing(1, 60, 60), "JPEG")[:60], "picture_decodes"),
    "more pixels than are allowed": (lambda: encoded(drawing(1, 80, 80)), "picture_pixels"),
    "a bomb": (lambda: png_that_claims(9_000, 9_000), "picture_pixels"),
    "a bomb that Pillow refuses": (lambda: png_that_claims(60_000, 60_000), "picture_decodes"),
    "extreme aspect": (lambda: encoded(drawing(1, 16, 80)), "picture_aspect"),
    "a thousand scans": (lambda: jpeg_of_scans(1_000), "picture_decodes"),
    "ten scans": (lambda: jpeg_of_scans(1), KEPT),
    "a JPEG with another file behind it": (lambda: encoded(drawing(1), "JPEG") + bytes(99) + b"\xff\xda" * 999, KEPT),
} | {f"odd: {name}": (make, (TOO_SMALL | TOO_LONG).get(name, KEPT)) for name, make in ODD.items()}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_every_odd_or_hostile_picture_is_kept_or_rejected_under_its_rule(name: str) -> None:
    make, outcome = HOSTILE[name]
    data = make()
    limits = LIMITS.model_copy(update={"max_bytes": 100_000})
    params = SMALL.model_copy(update={"limits": limits})
    verdict = judged([pair_row("odd", data, "怪图", "train")], {"odd": data}, params=params)
    assert verdict.rejected["reason"].tolist() == ([] if outcome == KEPT else [outcome])
    assert len(verdict.kept) == len(verdict.facts) == (outcome == KEPT)


def test_a_jpeg_decoded_to_scale_breaks_where_one_that_is_decoded_in_full_does() -> None:
    """Fingerprints need few pixels; every coded bit is read all the same."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (400, 500, 3), dtype=np.uint8))
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 2}):
        data = encoded(noise.resize((900, 800)), "JPEG", **options)
        draw = np.random.default_rng(2)
        ends = [*draw.integers(2, len(data), 30).tolist(), len(data) - 1, len(data) - 2, len(data) - 3, len(data)]
        cuts = [data[:end] for end in ends]
        flips = [bytearray(data) for _ in range(30)]
        for flipped in flips:
            flipped[draw.integers(0, len(data))] ^= 1 << int(draw.integers(8))
        outcomes = set()
        for broken in [*cuts, *map(bytes, flips)]:
            try:
                decodes = bool(read_image(broken).size)
            except ValueError:
                decodes = False
            assert profile_image(broken, 10**7)["picture_decodes"] == decodes
            outcomes.add(decodes)
        assert outcomes == {True, False}


def test_a_large_jpeg_has_the_fingerprint_of_its_smaller_copies() -> None:
    """Decoding to scale must not tell a picture from its copy of another size, as near-duplicates are told."""
    blocks = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((1600, 1200), Image.Resampling.BICUBIC)
    facts = [
        profile_image(encoded(picture.resize(size), "JPEG", quality=90), 10**7)
        for size in ((1600, 1200), (800, 600), (400, 300), (160, 120))
    ]
    one = np.frombuffer(facts[-1]["thumbnail"], np.uint8).astype(int)
    for other in facts[:-1]:
        assert np.abs(np.frombuffer(other["thumbnail"], np.uint8) - one).mean() <= 3
        assert (other["difference_hash"] ^ facts[-1]["difference_hash"]).bit_count() <= 4


def test_scans_are_counted_in_a_jpeg_and_nowhere_else() -> None:
    assert not has_too_many_scans(jpeg_of_scans(MAX_SCANS - 20)) and has_too_many_scans(jpeg_of_scans(MAX_SCANS + 1))
    plain = encoded(drawing(1, 60, 60), "JPEG")
    thumbnail = b"\xff\xe1" + (2 + 500).to_bytes(2) + b"\xff\xda" * 250  # a segment's content is no marker
    assert not has_too_many_scans(plain[:2] + thumbnail + plain[2:])
    assert (
        not has_too_many_scans(b"\xff\xd8")
        and not has_too_many_scans(b"\xff\xd8\xff\xc2\x00")
        and not has_too_many_scans(SVG)
    )


@pytest.mark.parametrize(
    ("make", "decodes"),
    [
        (
            lambda: encoded(
                Image.new("RGBA", (LARGE, LARGE), (1, 2, 3, 4)), "WEBP", lossless=True, quality=0, method=0
            ),
            True,
        ),
        (lambda: jpeg_of_scans(20_000, LARGE), False),
        (lambda: png_that_claims(60_000, 60_000), False),
    ],
    ids=["transparent", "scans", "bomb"],
)
def test_the_worst_files_take_less_than_two_gibibytes_and_a_minute(
    make: Callable[[], bytes], decodes: bool, tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(make())
    command = [sys.executable, "-W", "ignore", "-c", PROFILED, path, str(PARAMS.limits.max_pixels)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert done.stdout.split()[0] == str(decodes)
    assert int(done.stdout.split()[1]) < 2048 and time.monotonic() - began < 60


def test_pictures_come_in_order_and_few_are_in_memory_at_a_time() -> None:
    asked, given = 0, []
    most = IN_FLIGHT * (os.cpu_count() or 1) + 1

    def images() -> Iterator[tuple[str, bytes]]:
        nonlocal asked
        for asked in range(1, 101):
            yield f"{asked:03d}", encoded(drawing(asked))

    for facts in facts_of(images(), 10**6):
        given.append(facts["image_id"])
        assert asked - len(given) < most
    assert given == [f"{number:03d}" for number in range(1, 101)]
