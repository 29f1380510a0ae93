"""One sentence about a profile: what takes the time, and the one setting most likely to change that."""

from __future__ import annotations

from collections.abc import Callable

from xrl.agents.timing import UPDATE
from xrl.runners.profile import Part, Profile

IDLE = 0.15          # of the peak: below, and with MANY operations, starting them is what takes the time
MANY = 1000
SHORT = 30           # us that an operation takes, most of them for starting it
BF16_PAYS = 0.25     # of the update's time; casts take some of what faster products save
SLOW_STEP = 1.0      # ms of an environment's step, above which a process of its own pays


def advice(profile: Profile) -> str:
    """One sentence, with its number."""
    part = max(profile.loop, key=lambda part: part.share)
    rules: dict[str, Callable[[Profile, Part], str]] = {
        UPDATE: _update, "environment step": _environment, "policy": _policy, "replay insert": _insert,
        "replay sampling": _sampling, "to the device": _transfer}
    remedy = rules.get(part.name, _loop)(profile, part)
    takes = "take" if part.name.endswith("s") else "takes"
    return f"The {part.name} {takes} {_share(part.share)} of the time{remedy}."


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "less than 1%"


def _update(profile: Profile, part: Part) -> str:
    each = 1000 * part.ms / max(part.operations, 1)
    reached = f" at {_share(part.peak)} of the peak: "
    if part.peak < IDLE and part.operations > MANY:
        bound = f" at {_share(part.peak)} of the peak, in {part.operations:,.0f} operations of {each:.0f} us each: "
        if profile.compile == "off" and profile.device == "cuda":  # on a CPU it never paid: docs/performance.md
            return bound + "try compile=on, which fuses them"
        if each < SHORT:
            return bound + f"a larger batch_size would cost little more, or try {profile.less_often}"
    if profile.precision == "fp32" and part.peak * (1 - 1 / profile.bf16_speedup) >= BF16_PAYS:
        return reached + f"try precision=bf16, whose products are {profile.bf16_speedup:.1f} times as fast here"
    if profile.device == "cpu" and profile.threads < profile.cores:
        return reached + f"try OMP_NUM_THREADS={profile.cores}; {profile.threads} is used now"
    faster = "use a GPU" if profile.device == "cpu" else "use a faster GPU"
    return reached + f"{faster} or a smaller model, or try {profile.less_often}"


def _environment(profile: Profile, part: Part) -> str:
    each = part.ms / profile.parallels
    took = f" ({each:.2g} ms for each of {profile.parallels}): "
    more = max(profile.parallels, profile.cores)
    if profile.native and profile.vectorize != "native":
        return took + f"try vectorize=native parallels={more}"
    if profile.vectorize == "sync" and each >= SLOW_STEP and profile.cores > 1:
        return took + f"try vectorize=async parallels={more}"
    if profile.vectorize != "sync" and profile.parallels < profile.cores:
        return took + f"try parallels={more}, one for each core"
    return took + "the environment itself would have to be faster"


def _policy(profile: Profile, part: Part) -> str:
    more = max(8, 2 * profile.parallels)
    return (f", {part.ms:.2g} ms a call, which serves all {profile.parallels} environments at once: try "
            f"parallels={more}")


def _insert(profile: Profile, part: Part) -> str:
    return f", {part.ms:.2g} ms a row: try parallels={2 * profile.parallels}, which are stored together"


def _sampling(profile: Profile, part: Part) -> str:
    return (f", {part.ms:.2g} ms a batch: check that the replay fits into memory (buffer_size), or try "
            f"{profile.less_often}")


def _transfer(profile: Profile, part: Part) -> str:
    return f", {part.ms:.2g} ms a batch: networks this small may run faster with device=cpu"


def _loop(profile: Profile, part: Part) -> str:
    return f", {part.ms:.2g} ms a step for counting and logging: try parallels={2 * profile.parallels}, which share it"
