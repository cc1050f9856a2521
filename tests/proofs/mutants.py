"""A hundred small mistakes in data, loss, optimizer, metrics and bootstrap: the tests notice at least 85 %."""

import tempfile
from collections import Counter
from pathlib import Path

from tests.conftest import new_project
from tests.mutants import Judge, Mutant, sampled

AT_MOST, SEED = 100, 1
LEAST_KILLED = 0.85
TESTS = {
    "clip_core/data/sampler.py": ["tests/test_sampler.py"],
    "clip_core/data/captions.py": ["tests/test_captions.py"],
    "clip_core/data/curate.py": ["tests/test_curate.py"],
    "clip_core/data/near.py": ["tests/test_near.py"],
    "clip_core/train/loss.py": ["tests/test_loss.py", "tests/test_grad_cache.py"],
    "clip_core/train/optimizer.py": ["tests/test_training.py"],
    "clip_core/evaluate/retrieval.py": ["tests/test_retrieval.py"],
    "clip_core/evaluate/bootstrap.py": ["tests/test_bootstrap.py"],
}
# What a person who has read a survivor says of it: file, the line before, the line after -> judgement.
SAME = "the same program: "
JUDGED: dict[tuple[str, str, str], str] = {
    (
        "clip_core/data/captions.py",
        "for image, kind, caption, group in zip(*(pairs[column].tolist() for column in columns), strict=True):",
        "for image, kind, caption, group in zip(*(pairs[column].tolist() for column in columns), strict=False):",
    ): SAME + "columns of one table are equally long",
    (
        "clip_core/data/captions.py",
        "if point < 0:",
        "if ((point) <= (0)):",
    ): SAME + "a random number meets the border with a probability of 2**-53",
    **dict.fromkeys(
        [
            ("clip_core/train/loss.py", "LOGITS_AT_ONCE = 2**21  # 8 MiB", f"LOGITS_AT_ONCE = {size}  # 8 MiB")
            for size in ("2**(22)", "((2) * (21))")
        ],
        SAME + "in blocks of another size",
    ),
    **dict.fromkeys(
        [
            (
                "clip_core/train/loss.py",
                "return features if width == features.shape[1] else normalize(features[:, :width], dim=-1)",
                f"return features if width == features.shape[1] else normalize(features[:, :width]{dim})",
            )
            for dim in ("", ", dim=(1)")
        ],
        SAME + "features have two dimensions, so the last is dimension 1, which is the default",
    ),
    (
        "clip_core/data/near.py",
        "BRIGHTNESSES = 2**18  # more than there are sums over a thumbnail",
        "BRIGHTNESSES = (3)**18  # more than there are sums over a thumbnail",
    ): SAME + "any bound above the largest sum does",
    (
        "clip_core/data/near.py",
        "self._is_alone = ((sizes == 1) & (np.diff(self._firsts) == 1))[self._value_of]",
        "self._is_alone = ((sizes == 1) & (np.diff(self._firsts) == (0)))[self._value_of]",
    ): SAME + "only slower: who is alone is compared with itself",
    (
        "clip_core/data/near.py",
        'np.searchsorted(self._keys, keys + min(brightness + MOST, BRIGHTNESSES - 1), side="right"),',
        'np.searchsorted(self._keys, keys + max(brightness + MOST, BRIGHTNESSES - 1), side="right"),',
    ): SAME + "only slower: the quarters of more pictures are compared",
    (
        "clip_core/data/near.py",
        'by_darkness = np.argsort(darkest, kind="stable")',
        "by_darkness = np.argsort(darkest)",
    ): SAME + "pairs of equally dark pictures come in another order and are sorted afterwards",
    **{
        (
            "clip_core/data/near.py",
            "return thumbnails.reshape(-1, 2, half, 2, half, 3).sum((2, 4), dtype=np.int16).reshape(-1, 12)",
            f"return thumbnails.reshape({shape}, half, 3).sum((2, 4), dtype=np.int16).reshape(-1, 12)",
        ): SAME + why
        for shape, why in (
            ("-(2), 2, half, 2", "numpy takes any negative number for the size that is left"),
            (
                "-1, (1), half, 2",
                "the rows are divided at the same places, and the last reshape brings them together again",
            ),
            ("-1, 2, half, (1)", "bands instead of quarters rule out what is not alike as truly"),
        )
    },
    (
        "clip_core/data/near.py",
        "return thumbnails.reshape(-1, 2, half, 2, half, 3).sum((2, 4), dtype=np.int16).reshape(-1, 12)",
        "return thumbnails.reshape(-1, 2, half, 2, half, 3).sum((2, 4)).reshape(-1, 12)",
    ): SAME + "in 64 bits, which takes more memory",
    **{
        ("clip_core/data/near.py", f"{before}.sum(1, dtype=np.int32){after}", f"{before}.sum(1){after}"): SAME
        + "without a type numpy adds in 64 bits, which is slower and the same number"
        for before, after in (
            ("places = places[np.abs(self._quarters[places] - self._quarters[place])", " <= MOST]"),
            ("same = (difference", " <= MOST) & (difference.max(1) <= LARGEST_DIFFERENCE)"),
            ("brightness = quarters", ""),
            ("for one, other in near(values, low.sum(1, dtype=np.int32), high", ", distance):"),
        )
    },
    (
        "clip_core/train/loss.py",
        "for rows in blocks(len(images), len(all_texts)):",
        "for rows in blocks(len(all_texts), len(images)):",
    ): SAME + "other blocks of the same rows on one process, where both are equally many",
    **dict.fromkeys(
        [
            (
                "clip_core/train/loss.py",
                "factor = gradients[0] * num_ranks() / (2 * len(all_texts))",
                "factor = ((gradients[0]) / (num_ranks())) / (2 * len(all_texts))",
            ),
            *(
                ("clip_core/train/optimizer.py", "clip_grads_with_norm_(shared, max_norm, norm)", after)
                for after in (
                    "clip_grads_with_norm_(shared, norm, max_norm)",
                    "clip_grads_with_norm_(max_norm, shared, norm)",
                )
            ),
            (
                "clip_core/train/optimizer.py",
                "norm = torch.hypot(norm, of_shared.full_tensor() if isinstance(of_shared, DTensor) else of_shared)",
                "pass",
            ),
        ],
        "takes two processes to see: tests/test_distributed.py, which is not asked here",
    ),
    (
        "clip_core/evaluate/retrieval.py",
        "ahead, clearly_ahead = np.zeros((2, len(query_features)), dtype=np.int64)",
        "ahead, clearly_ahead = np.zeros((2, len(query_features)))",
    ): SAME + "counts below 2**53 are exact in floats",
    (
        "clip_core/evaluate/retrieval.py",
        "right = np.concatenate([np.asarray(places, dtype=np.int64) for places in relevant])",
        "right = np.concatenate([np.asarray(places) for places in relevant])",
    ): SAME + "places are int64 unless a query has none, which is refused before",
    (
        "clip_core/evaluate/bootstrap.py",
        "most = max(1, MAX_DRAWS // num_units)",
        "most = min(1, MAX_DRAWS // num_units)",
    ): SAME + "the same draws, one resample at a time",
}


def prove() -> dict:
    """How many were killed, and each that was not, with what is said of it."""
    mutants, possible = sampled(list(TESTS), AT_MOST, SEED)
    outcomes: dict[Mutant, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        judge = Judge(new_project(Path(scratch)), TESTS)
        for number, mutant in enumerate(mutants, 1):
            outcomes[mutant] = judge(mutant)
            print(f"{number:3} of {len(mutants)} {outcomes[mutant]:8} {mutant}", flush=True)
    counts = Counter(outcomes.values())
    noticed = (len(mutants) - counts["survived"]) / len(mutants)
    assert noticed >= LEAST_KILLED, f"only {noticed:.0%} of {len(mutants)} mutants were killed"
    return {
        "possible": possible,
        "seed": SEED,
        "mutants": len(mutants),
        "killed": counts["killed"],
        "timeouts": counts["timeout"],  # counted as killed: nobody waits for them
        "survived": counts["survived"],
        "share_killed": round(noticed, 3),
        "by_file": {
            file: dict(Counter(outcome for mutant, outcome in outcomes.items() if mutant.file == file))
            for file in TESTS
        },
        "survivors": [described(mutant) for mutant, outcome in outcomes.items() if outcome == "survived"],
    }


def described(mutant: Mutant) -> dict:
    judgement = JUDGED.get((mutant.file, mutant.before, mutant.after))
    return {
        "file": mutant.file,
        "line": mutant.line,
        "before": mutant.before,
        "after": mutant.after,
        "judgement": judgement,
    }
