"""What this machine has: interpreter, PyTorch, GPU, cores, disk, emulator, drawing, and the optional packages.

One function per question, each of them a Finding. PyTorch is imported inside, since it may be what is broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from xrl.environment.build import has_display, quiet_drawing
from xrl.environment.check import Finding
from xrl.report.video import write_film

OLDEST, TESTED = (3, 10), (3, 11)
GIB, MIB = 2**30, 2**20
WRITTEN = 64 * MIB  # to measure the speed of a disk
SLOW_DISK = 50      # MiB/s
PACKAGES = ("matplotlib", "scipy", "aiohttp", "tensorboard", "wandb")  # that some commands want
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "firefox", "microsoft-edge")
INSTALL_TORCH = "https://pytorch.org/get-started/locally/"
# Where a question raises, it is most likely this that is broken.
MENDS = {
    "pytorch": "pip install --force-reinstall torch",
    "gpu": f"install a PyTorch for this GPU and its driver: {INSTALL_TORCH}",
    "cores": "pip install --force-reinstall torch",
    "roms": "pip install --force-reinstall ale-py",
    "rendering": "pip install --force-reinstall pygame-ce",
    # The other builds of OpenCV want the libraries of a display.
    "videos": "pip uninstall -y opencv-python; pip install --force-reinstall opencv-python-headless",
    "gradient step": "pip install --force-reinstall torch"}


def python() -> Finding:
    version = sys.version_info[:2]
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    wanted = ".".join(map(str, TESTED))
    if version < OLDEST:
        return Finding("python", "failed", f"{found}; xrl needs {'.'.join(map(str, OLDEST))} or newer",
                       f"python{wanted} -m venv .venv && .venv/bin/pip install xrl")
    if version < TESTED:
        return Finding("python", "note", f"{found}; the pinned versions are for {wanted} or newer",
                       f"python{wanted} -m venv .venv")
    return Finding("python", "ok", found)


def pytorch() -> Finding:
    import torch

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
    return Finding("pytorch", "ok", f"{torch.__version__}, {build}")


def gpu() -> Finding:
    """No GPU is no failure; one that PyTorch cannot use is worth a warning, one that calculates nothing a failure."""
    import torch

    seen = nvidia_gpus()
    if not torch.version.cuda:
        if not seen:
            return Finding("gpu", "ok", "none; networks run on the CPU")
        release = torch.__version__.partition("+")[0]
        linux = f"pip install --force-reinstall torch=={release}"
        return Finding("gpu", "warning", f"{seen}, but this PyTorch is built for the CPU alone",
                       linux if sys.platform == "linux" else f"install one for CUDA: {INSTALL_TORCH}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return Finding("gpu", "ok", "; ".join(_cuda_device(index) for index in range(torch.cuda.device_count())))
    if not seen:
        return Finding("gpu", "ok", "none that PyTorch can see; networks run on the CPU")
    why = f" ({caught[0].message})" if caught else ""
    return Finding("gpu", "warning", f"{seen}, but PyTorch for CUDA {torch.version.cuda} cannot use it{why}",
                   f"update the driver (nvidia-smi shows the newest CUDA it knows), or install a PyTorch for an older "
                   f"CUDA: {INSTALL_TORCH}")


def nvidia_gpus() -> str:
    """What the driver lists, "an NVIDIA GPU" where only its device file is there, "" where neither is."""
    if program := shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            listed = ""
        if names := [line.partition(" (UUID")[0] for line in listed.splitlines() if line.startswith("GPU ")]:
            return ", ".join(names)
    return "an NVIDIA GPU" if Path("/dev/nvidia0").exists() else ""


def _cuda_device(index: int) -> str:
    """Its name and memory; raises what CUDA raises if it cannot multiply two matrices."""
    import torch

    product = torch.ones(64, 64, device=f"cuda:{index}") @ torch.ones(64, 64, device=f"cuda:{index}")
    if not bool((product == 64).all()):
        raise ArithmeticError(f"cuda:{index} multiplies two matrices wrongly")
    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: leave precision=fp32"
    return f"cuda:{index} {torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {bf16}"


def cores() -> Finding:
    import torch

    usable, threads = usable_cores(), torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS")
    found = (f"{usable} usable, PyTorch takes {threads} thread{'s' if threads != 1 else ''} "
             f"(OMP_NUM_THREADS is {asked or 'not set'})")
    if threads > usable:
        return Finding("cores", "warning", f"{found}: they wait for each other", f"export OMP_NUM_THREADS={usable}")
    if asked and threads < usable:
        return Finding("cores", "note", f"{found}; a run alone on this machine is faster with all",
                       f"export OMP_NUM_THREADS={usable}")
    return Finding("cores", "ok", found)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """What the machine has, less what its scheduler and a container's quota (version 2) keep from this process."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = quota.read_text().split()
    except (OSError, ValueError):
        return count
    return count if most == "max" else max(1, min(count, math.ceil(int(most) / int(period))))


def existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def write_speed(folder: Path) -> Finding:
    """MiB/s of a file that is written and flushed in ``folder``, or in the nearest folder above that exists."""
    there = existing(folder)
    block = os.urandom(MIB)  # some file systems compress
    try:
        with tempfile.TemporaryFile(prefix=".xrl-doctor-", dir=there) as file:
            begun = time.perf_counter()
            for _ in range(WRITTEN // MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = WRITTEN / MIB / (time.perf_counter() - begun)
    except OSError as error:
        return Finding("write speed", "failed", f"nothing can be written in {there}: {error}",
                       "name another folder: model_dir=/path/to/runs")
    found = f"{rate:,.0f} MiB/s in {there}"
    if rate < SLOW_DISK:
        return Finding("write speed", "warning", f"{found}; checkpoints and the replay will be slow",
                       "use a local disk: model_dir=/path/to/runs")
    return Finding("write speed", "ok", found)


def roms(game: str = "pong") -> Finding:
    """The games that come with the emulator; ``game`` is opened."""
    import ale_py
    from ale_py import roms as shipped

    count = len(shipped.get_all_rom_ids())
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    path = shipped.get_rom_path(game)  # raises where the file is another than it should be
    if path is None:
        return Finding("roms", "failed", f"{count} games, but none is {game!r}", "pip install --upgrade ale-py")
    ale_py.ALEInterface().loadROM(path)
    return Finding("roms", "ok", f"{count} Atari games, {game} opens (ale-py {ale_py.__version__})")


def rendering() -> Finding:
    """A frame drawn without a window."""
    import gymnasium

    quiet_drawing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what pygame imports
        env = gymnasium.make("CartPole-v1", render_mode="rgb_array")
        env.reset(seed=0)
        frame = np.asarray(env.render())
        env.close()
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.min() == frame.max():
        return Finding("rendering", "failed", f"CartPole-v1 gives an empty frame of {frame.dtype} {frame.shape}",
                       "pip install --force-reinstall pygame-ce")
    return Finding("rendering", "ok", f"a frame {frame.shape} without a window")


def display() -> Finding:
    if has_display():
        return Finding("display", "ok", "there is one for render_mode=human")
    return Finding("display", "note", "none, so render_mode=human is refused; videos (render=true) need none",
                   "xvfb-run -a xrl test ... render_mode=human")


def videos() -> Finding:
    """A film of three frames as runs write it, GIF and MP4, read back."""
    import cv2
    from PIL import Image, ImageSequence

    frames = [np.full((64, 64, 3), level, np.uint8) for level in (0, 128, 255)]
    upgrade = "pip install --upgrade opencv-python-headless pillow"
    with tempfile.TemporaryDirectory(prefix="xrl-doctor-") as folder:
        path = Path(folder) / "film"
        try:
            gif = write_film(path, frames, fps=10)
        except OSError as error:
            return Finding("videos", "warning", f"OpenCV {cv2.__version__} writes no MP4: {error}", upgrade)
        film = cv2.VideoCapture(f"{path}.mp4")
        back = sum(film.read()[0] for _ in frames), len(list(ImageSequence.Iterator(Image.open(io.BytesIO(gif)))))
        film.release()
    if back != (len(frames), len(frames)):
        return Finding("videos", "warning", f"of {len(frames)} frames MP4 and GIF hold {back[0]}, {back[1]}", upgrade)
    return Finding("videos", "ok", f"MP4 (OpenCV {cv2.__version__}) and GIF")


def package(name: str, needed: bool) -> Finding:
    """A package that some commands want; ``needed``: this run does."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return Finding(name, "failed" if needed else "note", "not installed", f"pip install {name}")
        return _broken(name, error)
    except Exception as error:  # whatever a half-installed package raises
        return _broken(name, error)
    return Finding(name, "ok", importlib.metadata.version(name))


def _broken(name: str, error: Exception) -> Finding:
    return Finding(name, "failed", f"installed, but importing it raises {type(error).__name__}: {error}",
                   f"pip install --force-reinstall {name}")


def browser() -> Finding:
    if found := next((name for name in BROWSERS if shutil.which(name)), ""):
        return Finding("browser", "ok", found)
    if sys.platform in ("darwin", "win32"):
        return Finding("browser", "ok", "that of the system")
    return Finding("browser", "note", "none found; another machine's can open the pages of this one",
                   "ssh -L PORT:localhost:PORT THIS_MACHINE")
