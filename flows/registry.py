"""The model registry: each release that was accepted is a version, a git tag `clip@v1.0.0` that holds its model card.

python -m flows.registry                      # the versions
python -m flows.registry v1.0.0               # its model card
python -m flows.registry --register RELEASE   # what the promotion does by itself

The tag stands on a commit whose dvc.lock names the release: so DVC finds it (`artifacts` in dvc.yaml), and keeps it.
Card and facts lie in `serving/versions/<version>/`, too.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from tyro.conf import Positional

from clip_core.errors import UserError, told_to_the_user
from clip_core.files import replacing_folder
from clip_core.project import RELEASE, project_root, serving_folder
from clip_core.serve import lineage, releases
from flows.git import git

TAG = "clip@"  # as the artifact in dvc.yaml
VERSION = re.compile(r"v\d+\.\d+\.\d+")  # the only ones that DVC finds
GROUPS = {
    "all": "all queries",
    "seen": "concepts seen in training",
    "unseen": "concepts never seen",
    "unseen_words": "words never seen",
    "zero_shot": "classes by their names",
}
SHARES = ("recall", "accuracy")  # what the names of the metrics have that a card shows


def main(version: Positional[str | None] = None, register: str | None = None, serving: Path | None = None) -> None:
    """Lists the versions, prints the model card of one, or registers a release.

    Args:
        version: whose card is printed; with --register that of the new one, by default the next.
        register: the id of a release that was promoted or has served.
        serving: the folder of releases; by default the project's.
    """
    folder, project = serving_folder(serving), project_root()
    if register:
        print(f"release {register} is {TAG}{add(folder, project, register, version)}")
    elif version:
        print(card_of(project, version))
    else:
        print("\n".join(listed(folder, project)))


def add(serving: Path, project: Path, release: str, version: str | None = None) -> str:
    """Makes a version of the release, by default the next, and gives it; nothing is done when it is one already.

    Raises UserError where the release was not accepted, or the version is another's.
    """
    known, facts = versions(project), lineage.of(serving, release)
    if already := [one for one, its in known.items() if its == release and version in (None, one)]:
        return already[0]
    if not was_accepted(serving, release):
        raise UserError(
            f"release {release} was not accepted; `python -m flows.promote --release {release}` judges it, "
            f"`make rollout RELEASE={release}` makes it public nevertheless"
        )
    version = version or f"v{1 + max((int(one[1:].partition('.')[0]) for one in known), default=0)}.0.0"
    if version in known or not VERSION.fullmatch(version):
        wrong = f"is release {known[version]} already" if version in known else "is none"
        raise UserError(f"version {version} {wrong}; name another such as v2.0.0, or none: then it is the next")
    commit = commit_with(project, facts)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    decided = serving / "decisions" / f"{release}.json"
    decision = json.loads(decided.read_text(encoding="utf-8")) if decided.exists() else None
    facts = {"tag": f"{TAG}{version}", "registered": now, "tagged": commit, **facts, "decision": decision}
    with replacing_folder(serving / "versions" / version) as aside:
        (aside / "version.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(model_card(facts), encoding="utf-8")
        message = f"release {release}\n\n{model_card(facts)}"
        git(project, "tag", "--annotate", "--cleanup=verbatim", "-m", message, facts["tag"], commit)
    return version


def was_accepted(serving: Path, release: str) -> bool:
    """Whether the promotion's last word on it was yes, or somebody has had it serve, who then decided."""
    events = {event.event for event in releases.history(serving) if event.release == release}
    return "serves" in events or ("promoted" in events and release not in releases.refused(serving))


def commit_with(project: Path, facts: dict) -> str:
    """The commit whose dvc.lock names the release: what it was made with, HEAD, or a new one of the files as they are.

    The new one is on no branch, and nothing else in the project changes.
    """
    digest = facts["stages"]["deploy"]["outs"][str(RELEASE)]
    for commit in (facts["commit"].rstrip("+"), "HEAD"):
        with suppress(UserError):  # a commit, or its dvc.lock, that is not there
            if digest in git(project, "show", f"{commit}:./dvc.lock"):
                return git(project, "rev-parse", commit)
    if digest not in (project / "dvc.lock").read_text(encoding="utf-8"):
        raise UserError(
            f"release {facts['release']}: neither dvc.lock nor that of commit {facts['commit']} names it; "
            f"check out the commit whose dvc.lock has {digest} and register it there"
        )
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        git(project, "read-tree", "HEAD", **index)
        git(project, "add", "--update", ".", **index)
        git(project, "add", "dvc.lock", **index)  # of a project whose first run it was
        tree = git(project, "write-tree", **index)
    return git(project, "commit-tree", tree, "-p", "HEAD", "-m", f"release {facts['release']} as it was registered")


def versions(project: Path) -> dict[str, str]:
    """The release of each version, by git's tags, the oldest first."""
    form = "--format=%(refname:strip=2) %(contents:subject)"
    lines = git(project, "for-each-ref", "--sort=version:refname", form, f"refs/tags/{TAG}*").splitlines()
    known = (line.removeprefix(TAG).split(" ", 1) for line in lines)
    return {version: told.removeprefix("release ") for version, told in known if VERSION.fullmatch(version)}


def listed(serving: Path, project: Path) -> Iterator[str]:
    """A line for each version."""
    there, now = releases.added(serving), releases.current(serving)
    known = versions(project)
    for version, release in known.items():
        state = "serves" if release == now else "there" if release in there else "removed"
        yield f"{TAG}{version}  {release}  {state}"
    if not known:
        yield "no version yet: a release becomes one when it is promoted"


def card_of(project: Path, version: str) -> str:
    """The model card, from the tag, so that a clone has it, too."""
    if version not in (known := versions(project)):
        raise UserError(f"no version {version}; there are: {', '.join(known) or 'none'}")
    return git(project, "tag", "--list", "--format=%(contents:body)", f"{TAG}{version}")


def model_card(facts: dict) -> str:
    """Markdown with the front matter of Hugging Face, of the facts of `add` alone."""
    from jinja2 import Environment, StrictUndefined

    measured = {
        group: {name: entry for name, entry in facts["metrics"][group].items() if any(one in name for one in SHARES)}
        for group in GROUPS
        if group in (facts["metrics"] or {})
    }
    template = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    template.filters["percent"] = lambda share: f"{100 * share:.1f}"
    return template.from_string(Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")).render(
        facts,
        groups=GROUPS,
        measured=measured,
        lowest=min(
            ((entry["value"], GROUPS[group], name) for group, of in measured.items() for name, entry in of.items()),
            default=None,
        ),
        confidence=facts["stages"]["evaluate@test"]["params"]["params.yaml"]["evaluate"]["confidence"],
        all_licences=sorted({licence for of in (facts["licences"] or {}).values() for licence in of}),
    )


if __name__ == "__main__":
    import tyro

    with told_to_the_user():
        tyro.cli(main, prog="python -m flows.registry")
