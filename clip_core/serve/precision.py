"""The exported towers in fewer bits: int8 weights for a CPU, fp16 for a GPU. Knows no torch."""

from pathlib import Path
from typing import Literal


def convert(file: Path, precision: Literal["fp16", "int8"]) -> None:
    """Rewrites the ONNX file, and its weights beside it, in that precision.

    int8: the weights of the matrix products, in 7 bits, one scale a column; activations get their scale from the batch
    at hand, so a feature depends a little on what it is computed with. Convolutions stay: int8 makes them slower.
    """
    import onnx

    model = onnx.load(file)
    has_data = (data := file.with_name(f"{file.name}.data")).exists()
    del model.graph.value_info[:]  # the exporter's optimiser leaves shapes there that are no longer true
    logit_scale = [entry for entry in model.metadata_props if entry.key == "logit_scale"]
    file.unlink()
    data.unlink(missing_ok=True)
    if precision == "int8":
        from onnxruntime.quantization import quantize_dynamic

        # A product with a matrix for each head is none: onnxruntime takes scales of two dimensions alone.
        stacked = {weight.name for weight in model.graph.initializer if len(weight.dims) != 2}
        quantize_dynamic(
            model,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=[node.name for node in model.graph.node if not stacked.isdisjoint(node.input[:2])],
            per_channel=True,
            reduce_range=True,  # 7 bits: sums of 8-bit products saturate, silently, on processors without VNNI
            use_external_data_format=has_data,
        )
    else:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = convert_float_to_float16(model, keep_io_types=True)
        onnx.save(half, file, save_as_external_data=has_data, location=data.name)
    found = onnx.load(file, load_external_data=False).metadata_props
    assert [entry for entry in found if entry.key == "logit_scale"] == logit_scale
