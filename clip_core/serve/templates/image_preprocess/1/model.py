from clip_core.serve.triton_models import ImagePreprocess as TritonPythonModel  # noqa: F401
