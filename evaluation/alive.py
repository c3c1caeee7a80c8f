"""A progress display that goes on while this thread is busy: loading a model, a long step, slow judgements."""

import threading
from typing import Self

from nemo_probsft.progress import Progress

TICK_SECONDS = 2.0


class AliveProgress(Progress):
    """`Progress`, shown again every few seconds by a thread; a log gets its line although nothing came forward."""

    def __enter__(self) -> Self:
        self._lock, self._ended = threading.Lock(), threading.Event()
        super().__enter__()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        super().__exit__(*error)

    def update(self, done: int, note: str | None = None) -> None:
        with self._lock:
            super().update(done, note)

    def _tick(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            with self._lock:
                super().update(self.done)
