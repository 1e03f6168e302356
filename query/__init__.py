"""Rows to answers: search, filters, classification, evaluation."""
