"""Distils heavy relevance teachers into small, fast students, and serves them."""
