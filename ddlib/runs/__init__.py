"""Runs: which results are asked for, where they are made, and how they are kept."""
