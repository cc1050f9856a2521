"""Short captions to token ids, against cn_clip.clip.tokenize; both may use all cores."""

from benchmarks.command import Row, run

ROWS = [Row("tokens", 4000, {}, {"side": "cn_clip"})]

if __name__ == "__main__":
    run("tokenizer", ROWS)
