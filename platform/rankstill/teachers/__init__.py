"""Teachers: the heavy models whose scores are the soft labels."""
