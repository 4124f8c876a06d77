"""Evaluation of a model on a benchmark, and its report."""
