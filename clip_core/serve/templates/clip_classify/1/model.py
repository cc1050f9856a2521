import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("code")))  # the release's own, whatever else lies on the way
from clip_core.serve.triton_classify import Classify as TritonPythonModel  # noqa: F401
