"""Actions as the page shows them: one button for each discrete action, or for each combination of several at once."""

from __future__ import annotations

from itertools import product

import numpy as np

from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec

MOST_BUTTONS = 64


class Buttons:
    """The J combinations of the actions of ``spec``, which are the A actions themselves where only one is chosen.

    Raises ConfigError if they are more than a page can show.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self._choices = spec.choices or (spec.size,)
        count = int(np.prod(self._choices, dtype=object))
        if spec.choices and count > MOST_BUTTONS:
            raise ConfigError(f"dream: this environment takes {len(spec.choices)} actions at once, in {count:,} "
                              f"combinations; the page shows a button for each, at most {MOST_BUTTONS}; xrl report "
                              f"shows the dreams of such a run")
        self.names = [" ".join(str(index + 1) for index in each) for each in product(*map(range, self._choices))]
        parts = [np.eye(size, dtype=np.float32) for size in self._choices]
        self.table = np.array([np.concatenate(each) for each in product(*parts)])  # (J, A)

    def policy(self, law: np.ndarray) -> np.ndarray:
        """Probabilities of the single actions, (A,), to those of the combinations, (J,)."""
        chosen = (self.table * law).T
        return np.prod([part.sum(0) for part in np.split(chosen, np.cumsum(self._choices)[:-1])], axis=0)

    def pressed(self, action: np.ndarray) -> np.ndarray:
        """One-hot (J,) of the combination that ``action`` (A,) is; zeros for the zeros before the first step."""
        return (self.table == action).all(1).astype(np.float32)
