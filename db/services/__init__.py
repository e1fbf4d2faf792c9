"""Decisions: what may be done, by whom, and what follows. They take a session and never commit."""
