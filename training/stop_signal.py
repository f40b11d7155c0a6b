"""Ctrl-C and SIGTERM, as a request that a training loop grants between two iterations."""

from __future__ import annotations

import signal


class StopOnSignal:
    """Turns the first Ctrl-C or SIGTERM into ``requested``; a second one acts as usual."""

    requested = False

    def __enter__(self) -> StopOnSignal:
        self._previous = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True
        self.__exit__()
