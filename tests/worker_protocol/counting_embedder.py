"""A worker whose embeddings say in which batch they were computed: run it as a script.

It is the shared loop and embedder over a model that computes nothing. The vector of a text has the direction
(1, batch), batches counted from 1. A text `until PATH` makes PATH.begun and keeps its batch from ending before PATH
exists, and one that is `broken` makes it fail.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "runtimes"))

from paceline_worker.embedding import Embedder
from paceline_worker.loop import run
from paceline_worker.pair import PairBackend, loaded_result
from paceline_worker.protocol import take_stdout


class Model:
    n_vocab = 256

    def tokenize(self, text, *, add_special):
        return list(text.encode())

    def close(self):
        pass


class Counting(Embedder):
    batches = 0

    def compute(self, texts):
        self.batches += 1
        for text in (bytes(tokens).decode() for tokens in texts):
            if text == "broken":
                raise ValueError("this text is broken")
            if text.startswith("until "):
                gate = Path(text.removeprefix("until "))
                gate.with_suffix(".begun").touch()
                while not gate.exists():
                    time.sleep(0.005)
        return [[1.0, float(self.batches)] for _ in texts]


class Backend(PairBackend):
    engine, version, features = "counting", "1", ("embed",)

    def devices(self):
        return []

    def load_main(self, request, progress):
        self._embedder = Counting(Model(), 512)
        return loaded_result(self._embedder.model, 512, 1, {})

    def load_draft(self, pair, request, progress):
        raise NotImplementedError


if __name__ == "__main__":
    run(Backend, take_stdout())
