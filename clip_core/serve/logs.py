"""What the gateway says of its work on stderr: warnings for people, or a line of JSON for each request and message."""

import json
import logging
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """A record as a line of JSON: time, level, where from, message, the facts of a request, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(as_json: bool) -> None:
    """Sets up this process's logging."""
    handler = logging.StreamHandler()
    if as_json:
        handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("clip_core").setLevel(logging.INFO if as_json else logging.WARNING)
