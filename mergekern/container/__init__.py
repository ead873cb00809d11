"""Containers of several tasks' models: planned and written as merges that run together."""
