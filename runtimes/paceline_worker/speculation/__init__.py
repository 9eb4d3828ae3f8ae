"""Whether to draft, how far, and how much of it to verify: speculation that pays for itself.

`controller` holds the theory and lives as long as the models; `round` is one decode step of all sequences, made of a
`seat` for each, and `plain` one in which certainly nobody drafts; `price` decides what is worth its time. What is
learned: `costs` (of drafting and verifying), `calibration` (how likely a token is accepted), `pace` (what drafting was
worth lately); `account` bounds what learning may lose. `lookup` is the drafter that needs no model.
"""

from paceline_worker.speculation.controller import AUTOMATIC, Controller
from paceline_worker.speculation.plain import Plain
from paceline_worker.speculation.round import READ_AT_ONCE, Round
from paceline_worker.speculation.seat import Stream

__all__ = ["AUTOMATIC", "READ_AT_ONCE", "Controller", "Plain", "Round", "Stream"]
