"""Pictures to features, from encoded bytes to unit vectors, against cn_clip and transformers."""

from benchmarks.command import Row, run

CN_CLIP, TRANSFORMERS = {"side": "cn_clip"}, {"side": "transformers"}
ON_CPU = (
    {"device": "cpu", "precision": "fp32", "runtime": "torch"},
    {"device": "cpu", "precision": "fp32", "runtime": "onnx"},
    {"device": "cpu", "precision": "bf16", "runtime": "torch"},
)
ON_GPU = (
    {"device": "cuda", "precision": "bf16", "runtime": "torch"},
    {"device": "cuda", "precision": "bf16", "runtime": "torch", "compile": True},
)
# cn_clip on a GPU computes in fp16: it can not do otherwise
ROWS = [
    Row("images", num, ours, {**peer, "device": ours["device"]})
    for peer in (CN_CLIP, TRANSFORMERS)
    for num in (1, 32)
    for ours in (*ON_CPU, *ON_GPU)
]

if __name__ == "__main__":
    run("encode_images", ROWS)
