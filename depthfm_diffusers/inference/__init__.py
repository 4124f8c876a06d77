"""From input files to result folders."""
