"""Score pairs with the teacher on a Ray Data actor pool and keep the scores as soft labels."""

from jobs.pipeline import command

if __name__ == "__main__":
    command("label")
