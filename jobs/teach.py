"""Fine-tune a cross-encoder on the judgements, or take a ready one."""

from jobs.pipeline import command

if __name__ == "__main__":
    command("teach")
