"""What a pipeline and a sweep begin with: data, a teacher that passes its gate, and soft labels."""

from collections.abc import Mapping
from types import MappingProxyType

from rankstill.model_config import Student
from rankstill.schema import SPLITS
from rankstill.steps.gate import Gated, gate
from rankstill.steps.label import Labelled, label
from rankstill.steps.prepare import Prepared, prepare_data
from rankstill.steps.run import Run
from rankstill.steps.teach import Taught, judged_split, teach
from rankstill.steps.train import check_models


def begin(run: Run, further: Mapping[str, Student] = MappingProxyType({})) -> tuple[Prepared, Taught]:
    """Data and teacher; what a later step would refuse, of `further` students too, is refused before hours of work.

    Raises:
        InputError: data or models that can't be used.
    """
    prepared = prepare_data(run)
    for split in SPLITS:
        judged_split(prepared.pairs, split)
    check_models(run.config, further)
    return prepared, teach(run, prepared)


def soft_labels(run: Run, prepared: Prepared, taught: Taught) -> tuple[Gated, Labelled]:
    """Labels of a teacher that is good enough.

    Raises:
        GateError: it isn't.
    """
    return gate(run, prepared, taught), label(run, prepared, taught)
