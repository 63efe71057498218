"""The papers' claims as commands with budgets: what is claimed, what is run, and how it is judged.

``claims`` says what a claim is, ``classics`` holds those of the oldest agents, ``futures`` those of I2A and Distral,
``goals`` those of HER and TDM, ``memories`` those of World Models, ``pixels`` those of PlaNet and Dreamer,
``one_setting`` that of Dreamer V3, ``lineage`` what each Dreamer changed, ``robots`` those of DayDreamer; ``levels``
solves Sokoban for one of them, ``dreams`` films.
``study`` says which runs one is made of, ``runner`` carries them out, ``side_by_side`` several at a time, ``kept`` says
what remains of them, ``runs`` reads that, ``statistics`` judges it, and ``results`` writes it down, with ``figure`` and
``page``. Registering a claim is importing its file: do it here.
"""

from reverie.reproduce import classics as classics
from reverie.reproduce import futures as futures
from reverie.reproduce import goals as goals
from reverie.reproduce import lineage as lineage
from reverie.reproduce import memories as memories
from reverie.reproduce import one_setting as one_setting
from reverie.reproduce import pixels as pixels
from reverie.reproduce import robots as robots
from reverie.reproduce.claims import get_claim, list_claims
from reverie.reproduce.results import write_results
from reverie.reproduce.runner import reproduce

__all__ = ["get_claim", "list_claims", "reproduce", "table", "write_results"]


def table() -> str:
    """Every claim with its budgets and its sentence, as text for a terminal."""
    rows = []
    for claim in list_claims():
        sizes = ", ".join(
            f"{name} ({budget.seeds} seeds)" for name, budget in claim.budgets.items() if name != "debug"
        )
        rows.append(f"{claim.name}  [{claim.system}]  {sizes}\n    {claim.sentence}")
    return "\n".join(rows)
