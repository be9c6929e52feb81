"""Export the student as an artifact and register it."""

from jobs.pipeline import command

if __name__ == "__main__":
    command("export")
