"""Short captions to features, tokenizing included, against cn_clip (which pads to 52) and transformers."""

from benchmarks.command import Row, run

NUM = 256  # captions in a run
ROWS = [
    Row("texts", NUM, {"device": device, "precision": precision, "runtime": runtime}, {"side": peer, "device": device})
    for peer in ("cn_clip", "transformers")
    for device, precision, runtime in (
        ("cpu", "fp32", "torch"),
        ("cpu", "fp32", "onnx"),
        ("cpu", "bf16", "torch"),
        ("cuda", "bf16", "torch"),
    )
]

if __name__ == "__main__":
    run("encode_texts", ROWS)
