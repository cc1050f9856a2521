import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("code")))  # the release's own, whatever else lies on the way
from clip_core.serve.triton_search import Search as TritonPythonModel  # noqa: F401
