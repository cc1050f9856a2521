"""The one kind of error that is the user's to mend; every other one is ours and keeps its traceback."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

EXIT_CODE = 2  # of a command that ends with the user's mistake; ours end with 1


class UserError(ValueError):
    """A mistake of the user's: the message names the file, the value and the remedy."""


@contextmanager
def told_to_the_user(*also: type[Exception]) -> Generator[None]:
    """Ends the command with the message alone when the block raises UserError, or one of `also`."""
    try:
        yield
    except (UserError, *also) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
