"""Benchmarks: their configuration, their files, their samples."""
