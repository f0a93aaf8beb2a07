"""The layouts of checkpoints that are known, one file for each kind."""

from mdlm.errors import InputError
from mdlm.interop.layout import Config, Layout
from mdlm.interop.layouts import decoders, dit, encoders, llada, llada2

ALL: tuple[Layout, ...] = (
    *dit.LAYOUTS,
    *llada.LAYOUTS,
    *decoders.LAYOUTS,
    *llada2.LAYOUTS,
    *encoders.LAYOUTS,
)


def layout_of(config: Config) -> Layout:
    """Returns the layout that a config.json names. Raises InputError if it is not known."""
    model_type = config.text("model_type", "")
    for layout in ALL:
        if model_type in layout.model_types or layout.matches(config):
            return layout
    known = ", ".join(kind for layout in ALL for kind in layout.model_types)
    code = ""
    if "auto_map" in config.values:
        code = " (its repository brings code of its own, which is never executed)"
    raise InputError(
        f"{config.title}: model_type={model_type!r:.60}{code} is not known here; known are {known}"
    )


def layout_named(name: str) -> Layout:
    """Returns the layout with a name. Raises InputError if there is none."""
    for layout in ALL:
        if layout.name == name:
            return layout
    raise InputError(f"--layout {name}: allowed are {', '.join(layout.name for layout in ALL)}")
