"""The demo: make small real experts, merge them, evaluate the merges. Nothing is downloaded."""

from mergekern.demo.run import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
