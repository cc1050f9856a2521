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
            (
                "clip_core/train/loss.py",
                "return features if width == features.shape[1] else normalize(features[:, :width], dim=-1)",
                f"return features if width == features.shape[1] else normalize(features[:, :width]{dim})",
            )
            for dim in ("", ", dim=(1)")
        ],
        SAME + "features have two dimensions, so the last is dimension 1, which is the default",
    ),
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
