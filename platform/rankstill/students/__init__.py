"""Students: the small models that are distilled and served."""

import torch

from rankstill.cross_encoder import CrossEncoder
from rankstill.model_config import Student
from rankstill.students.cross import add_grades, make_cross
from rankstill.students.towers import make_towers


def make_student(config: Student, teacher: CrossEncoder | None, seed: int) -> CrossEncoder:
    """The student before training; a teacher is needed for its layers, or for its tokenizer by random students."""
    torch.manual_seed(seed)
    student = make_cross(config, teacher) if config.family == "cross" else make_towers(config, teacher)
    if config.grades:
        add_grades(student.model, config.grades)
    return student
