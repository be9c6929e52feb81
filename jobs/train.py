"""Distil the teacher into a student."""

from jobs.pipeline import command

if __name__ == "__main__":
    command("train")
