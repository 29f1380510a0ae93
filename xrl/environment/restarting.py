"""An environment that survives its own faults: it is built anew, and the step that failed yields the reset."""

from __future__ import annotations

import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np

from xrl.common.errors import EnvironmentFault, ModelFileError, XrlError
from xrl.environment.spaces import Violation
from xrl.environment.state import Unsaveable, get_state, set_state, why_unsaveable
from xrl.environment.wrappers import CanonicalEnv

Kind = Literal["raised", "returned", "died", "hung"]


@dataclass(frozen=True)
class Failure:
    """One environment failed and was restarted: its index and label, how, and its traceback or what is known."""

    env: int
    label: str
    kind: Kind
    detail: str


class Factory(Protocol):
    """Builds one environment; ``label`` is what errors call it."""

    @property
    def label(self) -> str: ...
    def __call__(self, seed: int) -> CanonicalEnv: ...


def derived_seed(*words: int) -> int:
    """A seed below 2^31 that differs from those of other words. A trailing 0 would count for nothing."""
    return int(np.random.SeedSequence(words).generate_state(1)[0]) & 0x7FFFFFFF


class Restarting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Steps what ``make(seed)`` builds, and builds it anew when it fails, with a seed derived from the own one.

    The call that failed returns the reset observation, no reward, no end, and ``info`` with "failure" (text) and
    "failure_kind". A reset with a seed is the first one, whose faults are the caller's, as are those of a restart.
    ``restarts`` counts those before, where this one replaces an environment whose process was lost.
    """

    env: CanonicalEnv

    def __init__(self, make: Factory, seed: int, restarts: int = 0) -> None:
        self._make, self._seed, self._restarts = make, seed, restarts
        self._started = False  # with a reset, or in the middle of somebody else's episode
        super().__init__(make(self.seed))
        self._open = True

    @property
    def seed(self) -> int:
        """That of the present instance."""
        return derived_seed(self._seed, self._restarts) if self._restarts else self._seed

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        try:
            result = self.env.reset(seed=seed, options=options)
        except EnvironmentFault as fault:
            if seed is not None:
                raise
            return self._restart(fault)
        self._started = True
        return result

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        try:
            return self.env.step(action)
        except EnvironmentFault as fault:
            obs, info = self._restart(fault)
            return obs, 0.0, False, False, info

    def _restart(self, fault: EnvironmentFault) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Once: an environment that fails again at once would never stop."""
        self._restarts += 1
        detail = _told(fault)
        try:
            self._rebuild()
            obs, _ = self.env.reset(seed=self.seed)
        except XrlError as error:
            raise EnvironmentFault(f"{self.env.label} cannot be restarted: {error}\nIt had failed: {detail}") from error
        return obs, {"failure": detail, "failure_kind": "returned" if _returned(fault) else "raised"}

    def _rebuild(self) -> None:
        specs = self.env.obs_spec, self.env.action_spec
        with suppress(EnvironmentFault):  # it is broken already, and what broke it is told
            self.close()
        self.env = self._make(self.seed)
        self._open = True
        if (self.env.obs_spec, self.env.action_spec) != specs:
            raise EnvironmentFault(f"{self.env.label} has other spaces than before; they must always be the same")

    def close(self) -> None:
        if self._open:
            self._open = False
            self.env.close()

    def reseed(self, seed: int) -> None:
        """Another seed, before the first reset; built anew because some environments take theirs at construction."""
        self._seed, self._restarts = seed, 0
        self._rebuild()

    def get_state(self) -> dict[str, Any] | Unsaveable:
        """Before the first reset there is nothing to ask the environment for."""
        state = get_state(self.env) if self._started else Unsaveable(why_unsaveable(self.env))
        if isinstance(state, Unsaveable) and state.reason:
            return state
        return {"seed": self._seed, "restarts": self._restarts, "env": state if self._started else None}

    def set_state(self, state: Any) -> None:
        """Into a new instance. Raises ModelFileError where ``state`` is another environment's."""
        try:
            self._seed, self._restarts, inner = state["seed"], state["restarts"], state["env"]
        except (TypeError, KeyError) as error:
            raise ModelFileError(f"{self.env.label}: its saved state is damaged: {error!r}") from error
        self._started = inner is not None
        if self._started:
            set_state(self.env, inner)


def _returned(fault: EnvironmentFault) -> bool:
    return isinstance(fault.__cause__, Violation)


def _told(fault: EnvironmentFault) -> str:
    """The fault's own words and, where the environment raised, its traceback."""
    if fault.__cause__ is None or _returned(fault):
        return str(fault)
    return f"{fault}\n{''.join(traceback.format_exception(fault.__cause__))}".rstrip()
