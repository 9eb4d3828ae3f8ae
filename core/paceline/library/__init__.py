"""The models on disk and what is known of each.

library = open_library(plugins.load())
library.models()                       # everything found
library.get("qwen2.5-7b-instruct")     # by id, name@quantization or publisher/name
library.problems()                     # what looked like a model and could not be read
"""

from paceline.library.library import Library, ModelFolder, UnreadableModel, open_library

__all__ = ["Library", "ModelFolder", "UnreadableModel", "open_library"]
