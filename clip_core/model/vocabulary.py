"""Vocabulary pruning: new weights that know only the tokens that matter, and what that does to the features.

`python -m clip_core.model.vocabulary WEIGHTS_FOLDER OUT --captions FILE...` keeps the special tokens and those that
occur in the captions; with `--keep FILE` that file names them, a line each; with `--zh-en` they are those written in
Chinese characters, Latin letters, digits and marks. A text whose tokens are all kept gets the same features to the bit;
others are split into what is left, at worst into [UNK] or bytes. The report says how many texts that are, and how far
their features turn.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from clip_core.config.section import hash_of
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.model.clip import CLIP
from clip_core.model.contract import TOKENIZER_FILE, read_contract, weights_id
from clip_core.model.vocabulary_effect import Effect, effect_on, token_ids_of
from clip_core.model.vocabulary_kinds import CHINESE_AND_ENGLISH, read_tokenizer, rebuilt, with_needed
from clip_core.model.weights import load_weights, save_weights, without_weights
from clip_core.text import load_tokenizer, parse_tokenizer


def prune(
    folder: Path,
    out: Path,
    captions: Sequence[str],
    keep: Sequence[str] | re.Pattern[str] | None = None,
    min_count: int = 1,
) -> Effect:
    """Writes the weights in `folder` with fewer tokens to `out`, which must be new; gives the effect on `captions`.

    Kept are the special tokens and those of `keep`, or that match it, or else those that occur `min_count` times in
    the captions.
    """
    if out.exists():
        raise UserError(f"{out} exists already: remove it, or name another folder")
    contract = read_contract(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE, contract.context_length)
    tree = read_tokenizer(folder / TOKENIZER_FILE, contract.architecture.text_tower.vocab_size)
    vocabulary: dict[str, int] = tree["model"]["vocab"]
    if keep is None:
        counts = Counter(token for row in token_ids_of(tokenizer, captions) for token in row)
        kept = {token for token, count in counts.items() if count >= min_count}
    elif isinstance(keep, re.Pattern):
        kept = {row for token, row in vocabulary.items() if keep.fullmatch(token)}
    else:
        if unknown := sorted(set(keep) - set(vocabulary)):
            raise UserError(f"{len(unknown)} of the tokens to keep are not in {folder}, the first: {unknown[:5]}")
        kept = {vocabulary[token] for token in keep}
    rows = with_needed(tree, kept)

    full = load_weights(folder)
    pruned, tokenizer_json = with_rows(full, rows), rebuilt(tree, rows)
    texts = sorted(set(captions))
    effect = effect_on(
        texts, (full, tokenizer), (pruned, parse_tokenizer(tokenizer_json, contract.context_length)), rows
    )
    made = contract.made.model_copy(
        update={
            "stage": "vocabulary",
            "params": hash_of(rows),
            "data": hash_of(texts),
            "parent": weights_id(folder),
            "text_tower": f"{contract.made.text_tower}; {len(rows)} of {len(vocabulary)} tokens kept",
        }
    )
    save_weights(pruned, tokenizer_json, out, made)
    return effect


def with_rows(full: CLIP, rows: Sequence[int]) -> CLIP:
    """The model with these rows of its token embeddings; the other weights are shared with `full`."""
    text_tower = full.architecture.text_tower.model_copy(update={"vocab_size": len(rows)})
    pruned = without_weights(full.architecture.model_copy(update={"text_tower": text_tower}))
    embeddings = full.text_tower.encoder.get_input_embeddings().weight
    name = next(name for name, parameter in full.named_parameters() if parameter is embeddings)
    weights = full.state_dict()
    pruned.load_state_dict(weights | {name: weights[name][list(rows)]}, assign=True)
    return pruned.eval()


def read_captions(path: Path) -> list[str]:
    """The captions in a file: column `caption` of a .parquet or .csv, else a line each."""
    try:
        if path.suffix in (".parquet", ".csv"):
            import pandas as pd

            table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
            if "caption" not in table:
                raise UserError(f"it has no column `caption`, but {', '.join(map(str, table.columns))}")
            return [caption for caption in table["caption"] if isinstance(caption, str)]
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:  # what pandas and the decoder raise as well
        raise UserError(f"{path}: no captions can be read: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.model.vocabulary",
        description="weights that know only the tokens that matter; without --keep those of the captions",
    )
    parser.add_argument("weights_folder", type=Path)
    parser.add_argument("out", type=Path, help="the new weights folder; must not exist")
    parser.add_argument(
        "--captions", type=Path, nargs="+", default=[], help="texts, a line each, or .parquet or .csv with `caption`"
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--keep", type=Path, help="tokens to keep, a line each; the captions are then for the report")
    kept.add_argument("--zh-en", action="store_true", help="keep all of Chinese and English; the captions likewise")
    parser.add_argument("--min-count", type=int, default=1, help="a token of the captions is kept from here on")
    arguments = parser.parse_args()
    set_switches()
    with told_to_the_user(OSError):
        if not (arguments.captions or arguments.keep or arguments.zh_en):
            raise UserError("nothing says what to keep: give --captions FILE..., --keep FILE or --zh-en")
        if arguments.min_count < 1:
            raise UserError(f"--min-count is {arguments.min_count}, and must be at least 1")
        captions = [caption for path in arguments.captions for caption in read_captions(path)]
        if arguments.captions and not captions:
            raise UserError(f"{', '.join(map(str, arguments.captions))}: no captions in there")
        keep = CHINESE_AND_ENGLISH if arguments.zh_en else arguments.keep and read_captions(arguments.keep)
        effect = prune(arguments.weights_folder, arguments.out, captions, keep, arguments.min_count)
    print(f"{effect}\n{arguments.out} holds the weights")


if __name__ == "__main__":
    main()
