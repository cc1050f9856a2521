"""The commands `import SOURCE WEIGHTS_FOLDER` and `export WEIGHTS_FOLDER OUT --format ofa|transformers|timm`."""

import argparse
from pathlib import Path

from safetensors import SafetensorError

from clip_core.env import set_switches
from clip_core.errors import told_to_the_user
from clip_core.model.pretrained.exporting import export_weights
from clip_core.model.pretrained.importing import import_checkpoint


def main() -> None:
    """Runs the command; a mistake of the user's becomes a message and exit code 2."""
    arguments = _parser().parse_args()
    set_switches()
    with told_to_the_user(OSError, SafetensorError):
        if arguments.command == "import":
            import_checkpoint(
                arguments.source,
                arguments.weights_folder,
                arguments.vocab,
                arguments.image_size,
                arguments.context_length,
            )
        else:
            export_weights(arguments.weights_folder, arguments.out, arguments.format)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.model.pretrained", description="Other people's checkpoints, in and out."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    bring = commands.add_parser(
        "import",
        help="makes a weights folder of a checkpoint; nothing in it is executed",
        description="SOURCE: a .pt file of OFA-Sys (Chinese-CLIP), a transformers folder of a ChineseCLIP or of a "
        "SigLIP 2, an image tower of timm, open_clip or transformers, or a BERT folder. What it is and its shape are "
        "recognised.",
    )
    bring.add_argument("source", type=Path, metavar="SOURCE")
    bring.add_argument("weights_folder", type=Path, metavar="WEIGHTS_FOLDER", help="a new one, or an earlier import")
    bring.add_argument(
        "--vocab", type=Path, metavar="FILE", help="vocab.txt (SigLIP 2: tokenizer.json) where SOURCE comes without it"
    )
    bring.add_argument("--image-size", type=_count, metavar="N", help="resizes the positions to N x N pixels")
    bring.add_argument(
        "--context-length", type=_count, metavar="N", help="texts are cut at N tokens (as in the releases: 52)"
    )
    take = commands.add_parser("export", help="writes a weights folder in another format")
    take.add_argument("weights_folder", type=Path, metavar="WEIGHTS_FOLDER")
    take.add_argument("out", type=Path, metavar="OUT", help="the new .pt file (ofa) or folder (transformers)")
    take.add_argument("--format", required=True, choices=("ofa", "transformers", "timm"))
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 2 on")
    return int(text)


if __name__ == "__main__":
    main()
