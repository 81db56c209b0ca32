"""Measuring: load, cost, statistics, results."""
