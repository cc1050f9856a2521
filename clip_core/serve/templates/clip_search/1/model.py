from clip_core.serve.triton_models import Search as TritonPythonModel  # noqa: F401
