"""The sample ledger: what happened to every group, and what a resumed run need not do again."""

from rlhaiku.ledger.replay import ReplayingRollouts
from rlhaiku.ledger.schema import LEDGER_FILE
from rlhaiku.ledger.store import Ledger, LedgerFailed, LedgerLocked, LedgerUnusable, Recalled, StepLineage

__all__ = [
    "LEDGER_FILE",
    "Ledger",
    "LedgerFailed",
    "LedgerLocked",
    "LedgerUnusable",
    "Recalled",
    "ReplayingRollouts",
    "StepLineage",
]
