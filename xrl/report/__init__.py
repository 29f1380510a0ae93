"""Reads what runs leave and what others published; computes statistics, draws."""
