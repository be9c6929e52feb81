"""Students: the small models that are distilled and served."""
