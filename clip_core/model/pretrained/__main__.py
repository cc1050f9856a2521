"""The commands `import SOURCE WEIGHTS_FOLDER` and `export WEIGHTS_FOLDER OUT --format ofa|transformers`."""

import argparse
import sys
from pathlib import Path

from clip_core.env import set_switches
from clip_core.model.pretrained.exporting import export_weights
from clip_core.model.pretrained.importing import import_checkpoint


def main() -> None:
    """Runs the command; a mistake of the user's becomes a message and exit code 1."""
    arguments = _parser().parse_args()
    set_switches()
    try:
        if arguments.command == "import":
            import_checkpoint(arguments.source, arguments.weights_folder, arguments.vocab, arguments.image_size)
        else:
            export_weights(arguments.weights_folder, arguments.out, arguments.format)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.model.pretrained", description="Other people's checkpoints, in and out."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    bring = commands.add_parser(
        "import",
        help="makes a weights folder of a checkpoint; nothing in it is executed",
        description="SOURCE: a .pt file of OFA-Sys (Chinese-CLIP), a transformers folder of a ChineseCLIP, an image "
        "tower of timm, open_clip or transformers, or a BERT folder. What it is and its shape are recognised.",
    )
    bring.add_argument("source", type=Path, metavar="SOURCE")
    bring.add_argument("weights_folder", type=Path, metavar="WEIGHTS_FOLDER")
    bring.add_argument("--vocab", type=Path, metavar="FILE", help="the vocab.txt, where SOURCE comes without one")
    bring.add_argument("--image-size", type=int, metavar="N", help="resizes the positions to pictures of N x N pixels")
    take = commands.add_parser("export", help="writes a weights folder in another format")
    take.add_argument("weights_folder", type=Path, metavar="WEIGHTS_FOLDER")
    take.add_argument("out", type=Path, metavar="OUT", help="the .pt file (ofa) or the folder (transformers)")
    take.add_argument("--format", required=True, choices=("ofa", "transformers"))
    return parser


if __name__ == "__main__":
    main()
