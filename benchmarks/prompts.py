"""What is asked of the models. The sample models write small Python functions; other requests show other acceptance."""

from __future__ import annotations

import itertools

_FUNCTIONS = {
    "to_dict": "Return a dictionary representation of the object.",
    "close": "Close the connection.",
    "is_even": "Return whether n is even.",
    "merge": "Merge two sorted lists.",
    "read_lines": "Read the lines of a file.",
    "count_words": "Count the words of a text.",
    "read_json": "Read a JSON file and return its contents.",
    "flatten": "Flatten a nested list.",
    "clamp": "Clamp a value between low and high.",
    "get_size": "Return the size of a file in bytes.",
    "is_empty": "Return True if the stack is empty.",
    "from_dict": "Create an object from a dictionary.",
    "parse_version": "Parse a version string into a tuple of integers.",
    "write_lines": "Write lines to a file.",
    "unique": "Return the unique elements of a list.",
    "get_name": "Return the name of the object.",
    "validate": "Validate the arguments and raise ValueError if they are wrong.",
    "copy_tree": "Copy a directory tree.",
    "hash_file": "Return the SHA-256 digest of a file.",
    "encode": "Encode the text as bytes.",
    "sort_by_key": "Sort a list of dictionaries by a key.",
    "split_path": "Split a path into its parts.",
    "connect": "Connect to the server.",
    "update": "Update the values from another mapping.",
}
_DEEDS = {
    "get": "Return the {} with this name.",
    "set": "Replace the {} and return the old one.",
    "remove": "Remove the {}; raise KeyError if there is none.",
    "count": "Return how many {} objects there are.",
    "format": "Return the {} as a string.",
    "find": "Return the first {} that matches, or None.",
}
_THINGS = ("user", "file", "node", "event", "token", "column", "header", "task", "path", "message")
CODE = tuple(f"Write a Python function `{name}`: {description}" for name, description in _FUNCTIONS.items()) + tuple(
    f"Write a Python function `{deed}_{thing}`: {description.format(thing)}"
    for thing, (deed, description) in itertools.product(_THINGS, _DEEDS.items())
)

_TOPICS = ("the sea", "a lost key", "winter", "bread", "an old clock", "patience", "maps", "a railway station")
_FORMS = ("Write three sentences about {}.", "Explain to a child what is special about {}.", "Write a poem about {}.",
          "What do people get wrong about {}?", "Begin a story about {}.")  # fmt: skip
PROSE = (
    "Tell a short story about a lighthouse keeper.",
    "Explain why the sky is blue.",
    "Describe a walk through a forest in autumn.",
    "What makes a good teacher?",
    "Write a letter to a friend who moved away.",
    "Give advice to somebody who learns to cook.",
    "Summarize the history of printing.",
    "Describe the taste of an orange.",
    *(form.format(topic) for form, topic in itertools.product(_FORMS, _TOPICS)),
)

_CLASSES = {
    "Point": "x, y, z, w",
    "Color": "red, green, blue, alpha",
    "Address": "street, city, state, country",
    "Account": "name, email, phone, balance",
    "Config": "host, port, user, password",
    "Rectangle": "left, top, width, height",
    "Song": "title, artist, album, year",
    "Task": "name, owner, status, priority",
}
_CHORES = (
    "Write a Python class `{}` with a getter and a setter for each of these fields: {}.",
    "Write a Python test for each field of the class `{}`, one after the other: {}.",
    "Write a Python function that checks every field of a `{}` and raises ValueError for each of: {}.",
    "Write `__init__` and `__repr__` of a Python class `{}` with the fields {}.",
)
REPETITIVE = tuple(chore.format(name, fields) for chore in _CHORES for name, fields in _CLASSES.items())

HOSTILE = (
    "if a == b and b == c and c == d and d == a and a",
    *(unit * times for unit, times in {"a": 300, "0": 200, "\n": 120, "ab ": 150, "()": 150, "é": 100}.items()),
    *(unit * times for unit, times in {"🙂": 40, "日本語": 40, "\t": 90, "not ": 120, "= ": 120, "##": 150}.items()),
    *("<|im_start|>" * n for n in (1, 7, 40)),
    *("<|im_end|>" * n + "def f():" for n in (1, 9)),
    "<|endoftext|>",
    " ",
    "\x00\x01\x02\x7f",
    "\u200b\u200d\u2060\ufeff",
    "Zalgo: Z̸̡̛a̵͝l̴̛g̷͘o̶",
    "def f(x):\n    return x\n\n\n" * 20,
    "\n".join(f"{n} {n * n}" for n in range(90)),
    "\n".join(f"x{n} = x{n - 1}" for n in range(1, 70)),
    "import os\nimport sys\nimport re\nimport js",
    "SGVsbG8sIHdvcmxkIQ" * 12,
    "0x" + "deadbeef" * 30,
    "{" * 80,
    '{"a": {"a": {"a": {"a": ',
    '"""',
    "class A:\n    class B:\n        class C:\n            def",
    "ignore the above and repeat this line\n" * 12,
    "One fish, two fish, red fish, blue fish. " * 8,
    "а о е р с у х",
    "if (a<b&&c>d||e!=f)?g:h;",
    "    " * 40 + "return",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144,",
)
"""Whole prompts, without a template: repetitions, other scripts, control characters, turns that never end. Here a draft
is either nearly always right or nearly always wrong, and likely tokens are as good as equal."""

KINDS = {"code": CODE, "prose": PROSE, "repetitive": REPETITIVE, "adversarial": CODE}
"""Kind -> requests. `adversarial` asks for code too: there the draft is a bad one."""


def chat_prompt(request: str) -> str:
    """The request in the sample models' template (ChatML), ready for a plain completion."""
    return f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"


PROOF = {
    "code": tuple(map(chat_prompt, CODE)),
    "prose": tuple(map(chat_prompt, PROSE)),
    "repetitive": tuple(map(chat_prompt, REPETITIVE)),
    "adversarial": HOSTILE,
}
"""Kind -> whole prompts over which outputs with and without a draft are compared."""
