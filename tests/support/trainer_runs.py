"""What tests that start the trainer more than once share: accelerate's state, and Ctrl-C."""

from accelerate.state import AcceleratorState, GradientState


def forget_accelerator():
    """accelerate keeps one state per process: leave none to the next run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def press_ctrl_c(*args):
    """Stands where a run is to be interrupted, whatever that place is given."""
    raise KeyboardInterrupt("stopped")
