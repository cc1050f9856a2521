"""Every offline and analytics switch in one place (DVC's own stands in `.dvc/config`)."""

import os

SWITCHES = {
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",  # Prefect's client
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def set_switches() -> None:
    """Switches off telemetry and downloads for this process and its children; what the user has set stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
