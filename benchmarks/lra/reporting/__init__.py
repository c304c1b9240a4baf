"""The parts of `benchmarks.lra.report`: reading records, grouping seeds, tables, plots, the page."""
