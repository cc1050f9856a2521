"""`make clean`: removes what stages made and DVC's cache keeps; what serves or trains stays, and what is the user's."""

from clip_core.errors import told_to_the_user
from clip_core.project import SERVING, project_root
from flows.dag import remove_outs

TRAININGS = "clip_core.train.work_folder"


def main() -> None:
    root = project_root().absolute()
    removed, left = remove_outs(root, but=root / SERVING)  # a server may have it open
    print(f"outputs removed: {len(removed)}; the next run takes them from DVC's cache (to empty it: rm -rf .dvc/cache)")
    print(f"left as they are: {SERVING}/, and interrupted trainings (python -m {TRAININGS} lists and removes them)")
    if left:
        names = " ".join(str(path.relative_to(root)) for path in left)
        print(f"left, since DVC's cache does not have it or has it otherwise (to give it up: rm -r ...): {names}")


if __name__ == "__main__":
    with told_to_the_user():
        main()
