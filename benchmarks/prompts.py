"""What is asked of the models. The sample models write small Python functions; other requests show other acceptance."""

from __future__ import annotations

CODE = tuple(
    f"Write a Python function `{name}`: {description}"
    for name, description in {
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
    }.items()
)
PROSE = (
    "Tell a short story about a lighthouse keeper.",
    "Explain why the sky is blue.",
    "Describe a walk through a forest in autumn.",
    "What makes a good teacher?",
    "Write a letter to a friend who moved away.",
    "Give advice to somebody who learns to cook.",
    "Summarize the history of printing.",
    "Describe the taste of an orange.",
)
REPETITIVE = tuple(
    f"Write a Python class `{name}` with a getter and a setter for each of these fields: {fields}."
    for name, fields in {
        "Point": "x, y, z, w",
        "Color": "red, green, blue, alpha",
        "Address": "street, city, state, country",
        "Account": "name, email, phone, balance",
        "Config": "host, port, user, password",
        "Rectangle": "left, top, width, height",
        "Song": "title, artist, album, year",
        "Task": "name, owner, status, priority",
    }.items()
)

KINDS = {"code": CODE, "prose": PROSE, "repetitive": REPETITIVE, "adversarial": CODE}
"""Kind -> requests. `adversarial` asks for code too: there the draft is a bad one."""


def chat_prompt(request: str) -> str:
    """The request in the sample models' template (ChatML), ready for a plain completion."""
    return f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"
