"""The verbs. Each reads as one page: look, decide, act, prove."""
