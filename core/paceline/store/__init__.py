"""What is installed under Paceline's home and what is selected of it; every change is one transaction."""

from paceline.store.selection import Selection
from paceline.store.store import Store

__all__ = ["Selection", "Store"]
