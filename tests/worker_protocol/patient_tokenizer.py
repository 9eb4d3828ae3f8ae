"""A worker whose tokenizer takes as long as a test likes: run it as a script.

It is the shared loop over a model of one token per letter that computes nothing. A text that begins with `until PATH `
makes PATH.begun and has no tokens before PATH exists. No token stands for more than 4 bytes, it says.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "runtimes"))

from paceline_worker.backend import Generation
from paceline_worker.decoding import fit_prompt
from paceline_worker.loop import run
from paceline_worker.pair import PairBackend, loaded_result
from paceline_worker.protocol import take_stdout

CONTEXT_LENGTH = 20_000


class Model:
    n_vocab = 128
    bos = None
    token_bytes = 4
    is_open = True

    def tokenize(self, text, *, add_special):
        if text.startswith("until "):
            gate = Path(text.split(" ")[1])
            gate.with_suffix(".begun").touch()
            while not gate.exists():
                time.sleep(0.005)
        assert self.is_open
        return list(text.encode())

    def close(self):
        self.is_open = False


class Pair:
    context_length = CONTEXT_LENGTH

    def __init__(self):
        self.main = self
        self.model = Model()

    def prepare(self, request):
        return None

    def fit(self, request):
        return fit_prompt(request, self.model, CONTEXT_LENGTH)

    def open(self, request, grammar, prompt):
        tokens, output, _, dropped = prompt or self.fit(request)
        return Generation(request, output, prompt_tokens=len(tokens), prompt_done=len(tokens), context_dropped=dropped)

    def step(self, generations):
        for generation in generations:
            generation.output.push(120, b"x", drafted=False, end=False)
        time.sleep(0.001)

    def finish(self, generation):
        pass

    def close(self):
        self.model.close()


class Backend(PairBackend):
    engine, version, features = "patient", "1", ("generate", "tokenize", "overflow")

    def devices(self):
        return []

    def load_main(self, request, progress):
        self.unload("main")
        self._pair, self.slots = Pair(), 4
        return loaded_result(self._pair.model, CONTEXT_LENGTH, self.slots, {})

    def load_draft(self, pair, request, progress):
        raise NotImplementedError


if __name__ == "__main__":
    run(Backend, take_stdout())
