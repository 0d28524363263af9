"""Count of attempts: Ray repeats the work of a dead worker without limit, and a picture may end every worker.

Imports nothing more, so that the process of the actor stays small.
"""

from collections import Counter


class Attempts:
    """An actor that counts how often workers began with a picture that none has finished."""

    def __init__(self) -> None:
        self.begun = Counter[str]()

    def begin(self, source: str) -> int:
        """The number of earlier attempts."""
        self.begun[source] += 1
        return self.begun[source] - 1

    def end(self, source: str) -> None:
        del self.begun[source]
