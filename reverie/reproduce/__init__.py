"""The papers' claims as commands with budgets: what is claimed, what is run, and how it is judged.

``claims`` says what a claim is, ``pixels`` holds those of PlaNet and Dreamer, ``runner`` carries one out,
``runs`` reads what was run, ``statistics`` judges it. Registering a claim is importing its file: do it here.
"""

from reverie.reproduce import pixels as pixels
from reverie.reproduce.claims import get_claim, list_claims
from reverie.reproduce.runner import reproduce, write_results

__all__ = ["get_claim", "list_claims", "reproduce", "write_results"]
