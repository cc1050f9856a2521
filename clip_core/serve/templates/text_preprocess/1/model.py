from clip_core.serve.triton_models import TextPreprocess as TritonPythonModel  # noqa: F401
