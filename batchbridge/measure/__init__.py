"""Measuring: load on a server, what a request costs it, statistics over runs, and pictures."""
