"""Evaluation: the independent judge, scoring rules, benchmark suites, reports."""
