"""The workers' packages are no part of the host's environment: these tests put their folder on the path themselves."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "runtimes"))
