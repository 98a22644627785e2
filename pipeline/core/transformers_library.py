"""Import transformers as this project uses it: quietly, and without scikit-learn."""

import sys
from typing import Any


def load_transformers() -> Any:
    """Import transformers, when a model is loaded: the import of its models takes seconds.

    scikit-learn is there for lm-eval. transformers would import it for assisted generation, which
    nothing here does, and that takes up to two seconds of every process. It asks once whether
    scikit-learn can be found; here the answer is no. Others can import it as before.
    """
    import transformers
    from transformers.utils import import_utils

    if "sklearn" not in sys.modules:
        sys.modules["sklearn"] = None  # type: ignore[assignment]
        import_utils.is_sklearn_available()
        del sys.modules["sklearn"]
    # Loading is quick beside everything else here; its progress bar would only fill logs.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers
