"""Every switch of the environment in one place: no telemetry, no downloads, threads that wait without spinning.

DVC's own switches stand in `.dvc/config`.
"""

import os

SWITCHES = {
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",  # Prefect's client
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # OpenMP threads that spin while they wait slow a training many times as soon as another process is busy.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A GPU's matrix products are the same in every run only with a work space of fixed size.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def set_switches() -> None:
    """Sets the switches for this process and its children; what the user has set stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
