from clip_core.serve.triton_models import OnnxModel as TritonPythonModel  # noqa: F401
