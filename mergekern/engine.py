"""Runs a plan inside a memory budget: read -> kernel -> write, overlapped."""
