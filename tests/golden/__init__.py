"""Replays recorded results of the official systems: `python -m tests.golden PATH [PATH ...] [--strict]`."""
