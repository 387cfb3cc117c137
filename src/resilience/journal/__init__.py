"""Durable, numbered records over any store: what was about to be done, and what came of it."""
