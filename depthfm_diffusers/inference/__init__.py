"""Predicting depth and generating images from input files into result folders."""
