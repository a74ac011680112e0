#!/usr/bin/env python3
"""Prepare the course and start it: `python course.py run`, `lab` or `test`.

The first call makes a virtual environment, installs the exact versions that were
tested (constraints.txt) and goes; later calls start at once. Only the standard library
is used, and only syntax that every Python understands, old ones too: a Python that
cannot run the course must still be able to read this file and say so.
"""

from __future__ import print_function

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile

ROOT = os.path.dirname(os.path.abspath(__file__))
USAGE = """usage: python course.py COMMAND [OPTIONS]

  run    the small model goes through the whole pipeline (OPTIONS of `minillm tour`)
  lab    open the notebooks in JupyterLab (OPTIONS of `jupyter lab`)
  test   everything that CI runs: style, tests, doctests, notebooks (OPTIONS of pytest;
         with -k or -m, which choose tests, the notebooks are left out);
         with --studies: run the studies again whose code has changed (an hour or two)

The first call makes a virtual environment in .venv, beside this file, and installs the
exact versions of constraints.txt. MINILLM_VENV=FOLDER puts it elsewhere; pip's own
settings (PIP_INDEX_URL and so on) are respected. To begin anew, delete that folder."""

OLDEST, NEWEST = (3, 11), (3, 13)
COLAB = "open the notebooks in Google Colab (https://colab.research.google.com)"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = "minillm-install.json"
PYTEST_OPTIONS = ["-n", "2", "-m", "not release"]  # a later -n or -m replaces it

# Gigabytes, measured with constraints.txt and rounded up: what the environment takes
# once unpacked, and what pip holds in the temporary folder on the way.
SPACE = {"cpu": (3.0, 1.0), "cuda": (6.5, 3.0)}
LONGEST_PATH_INSIDE = 187  # a licence of torch; Windows allows 259 in all


class Trouble(Exception):
    """Something the user can mend; the text says what was found and what to do."""


# --- What this machine is, and whether the course can run on it


def machine_facts():
    """Everything about Python and machine that decides whether torch has a wheel."""
    windows_on_arm = sysconfig.get_platform() == "win-arm64"
    return {
        "version": tuple(sys.version_info[:2]),
        "implementation": platform.python_implementation(),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "system": platform.system(),
        "machine": "arm64" if windows_on_arm else platform.machine(),
        "mac": platform.mac_ver()[0],
        "glibc": glibc_version(),
    }


def glibc_version():
    """Version of GNU's C library as "2.35"; empty for another one, None if unknown."""
    if sys.version_info < (3,):
        return None
    try:
        return os.confstr("CS_GNU_LIBC_VERSION").split()[1]
    except (AttributeError, ValueError, OSError, IndexError):
        return ""


def version_tuple(text):
    """Turn "2.35" into (2, 35), so that 2.5 comes before 2.28."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def platform_problem(facts):
    """One sentence if torch has no wheel for this platform, with the way out."""
    if facts["bits"] == 32:
        return (
            "this Python is a 32-bit one and torch needs 64 bits; install a 64-bit one"
        )
    check = {"Linux": linux_problem, "Darwin": mac_problem, "Windows": windows_problem}
    if facts["system"] not in check:
        return (
            "torch has no wheels for {0}; use Linux, macOS or Windows, or {1}".format(
                facts["system"] or "this system", COLAB
            )
        )
    return check[facts["system"]](facts)


def linux_problem(facts):
    """Linux needs x86-64 or arm64 and GNU's C library from 2018 or later."""
    if facts["machine"] not in ("x86_64", "aarch64"):
        return "torch has no Linux wheels for {0} processors; {1}".format(
            facts["machine"], COLAB
        )
    if facts["glibc"] is None:
        return None  # so old a Python that the next check stops it anyway
    if not facts["glibc"]:
        return (
            "this Linux uses another C library than glibc (Alpine: musl), for which "
            "torch has no wheels; use Debian, Ubuntu or Fedora, for instance the "
            "Docker image python:3.13-slim, or " + COLAB
        )
    if version_tuple(facts["glibc"]) < (2, 28):
        return (
            "glibc {0} was found and torch's wheels need 2.28 (2018) or newer; use a "
            "newer Linux, for instance the Docker image python:3.13-slim, or {1}"
        ).format(facts["glibc"], COLAB)
    return None


def mac_problem(facts):
    """The last torch for Intel Macs is 2.2; Apple silicon needs macOS 14."""
    if facts["machine"] != "arm64":
        return (
            "this is a Mac with an Intel processor (or an Intel Python on an Apple "
            "one), for which the last torch is 2.2; on an M1 or newer install the "
            "universal Python of python.org, else " + COLAB
        )
    found = version_tuple(facts["mac"])
    if (11,) <= found < (14,):
        return (
            "macOS {0} was found and torch's wheels need 14; update macOS, or {1}"
        ).format(facts["mac"], COLAB)
    return None


def windows_problem(facts):
    """Windows on Arm has no torch wheels, but runs the x64 Python."""
    if facts["machine"].lower() != "arm64":
        return None
    return (
        "torch has no wheels for the Arm build of Python on Windows; install the x64 "
        "Python of python.org ('Windows installer (64-bit)', it runs emulated), or "
        "work in WSL (`wsl --install`), or " + COLAB
    )


def python_problem(facts, executable, others=()):
    """One sentence if this Python is not one the course is tested with."""
    wanted = "Python {0}.{1} to {2}.{3}".format(*(OLDEST + NEWEST))
    if facts["implementation"] != "CPython" or facts["free_threaded"]:
        kind = (
            "free-threaded Python"
            if facts["free_threaded"]
            else facts["implementation"]
        )
        found = "{0} was found, for which torch has no tested wheels".format(kind)
    elif not OLDEST <= facts["version"] <= NEWEST:
        age = "old" if facts["version"] < OLDEST else "new"
        found = "Python {0}.{1} is too {2} for the course".format(
            facts["version"][0], facts["version"][1], age
        )
    else:
        return None
    if others:
        remedy = "{0} is on this machine, use it: {0} course.py".format(others[0])
    else:
        remedy = "install Python 3.13 from https://www.python.org/downloads/ and use it"
    return "{0} ({1}); it needs {2}: {3}".format(found, executable, wanted, remedy)


def other_pythons():
    """Commands for suitable Pythons that answer on this machine, newest first."""
    minors = range(NEWEST[1], OLDEST[1] - 1, -1)
    if os.name == "nt":
        commands = [["py", "-3.{0}".format(minor)] for minor in minors]
    else:
        commands = [["python3.{0}".format(minor)] for minor in minors]
    return [" ".join(command) for command in commands if answers(command)]


def answers(command):
    """Whether ``command`` is a Python that starts."""
    try:
        with open(os.devnull, "w") as nowhere:
            return (
                subprocess.call(command + ["-c", ""], stdout=nowhere, stderr=nowhere)
                == 0
            )
    except OSError:
        return False


def check_machine():
    """Stop with one sentence unless Python and platform are supported."""
    facts = machine_facts()
    problem = platform_problem(facts)
    if not problem and python_problem(facts, sys.executable):
        problem = python_problem(facts, sys.executable, other_pythons())
    if problem:
        raise Trouble(problem)


# --- The environment: made once, recognised by its stamp, mended by being remade


def venv_folder():
    """Where the environment lives: MINILLM_VENV, or .venv beside this file."""
    chosen = os.environ.get("MINILLM_VENV")
    return os.path.abspath(chosen) if chosen else os.path.join(ROOT, ".venv")


def venv_python(folder):
    """The environment's Python, which lies elsewhere on Windows."""
    inside = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(folder, *inside)


def install_key():
    """A hash that changes whenever the installation has to change."""
    digest = hashlib.sha256()
    for name in ("constraints.txt", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    digest.update(repr((ROOT, tuple(sys.version_info[:2]))).encode("utf-8"))
    return digest.hexdigest()


def read_stamp(folder):
    """What an earlier call noted about ``folder``; empty without a whole note."""
    try:
        with open(os.path.join(folder, STAMP)) as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(folder, made_here, key="", extras=()):
    """Note who made ``folder`` and what is in it; an empty key means unfinished."""
    stamp = {"made_by_course_py": made_here, "key": key, "extras": sorted(extras)}
    temporary = os.path.join(folder, STAMP + ".tmp")
    with open(temporary, "w") as file:
        json.dump(stamp, file)
    os.replace(temporary, os.path.join(folder, STAMP))


def is_ready(folder, extras):
    """Whether ``folder`` holds the current installation with at least these extras."""
    stamp = read_stamp(folder)
    complete = stamp.get("key") == install_key()
    enough = set(extras) <= set(stamp.get("extras", ()))
    return complete and enough and os.path.exists(venv_python(folder))


def is_sound(folder):
    """Whether the environment's Python starts, has pip and is of our version."""
    ours = "{0}.{1}".format(*sys.version_info[:2])
    probe = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        command = [venv_python(folder), "-c", probe]
        found = subprocess.check_output(command, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return False
    return found.decode("utf-8", "replace").strip() == ours


def make_venv(folder):
    """Make the environment, or remake a broken one; never delete what others made."""
    made_here = bool(read_stamp(folder).get("made_by_course_py"))
    if os.path.isdir(folder) and os.listdir(folder):
        if is_sound(folder):
            return made_here
        if not made_here:
            raise Trouble(
                "{0} exists, is no environment that works with this Python, and was "
                "not made by course.py; delete or rename it, or set MINILLM_VENV to "
                "another folder".format(folder)
            )
        print("The environment in {0} is broken; making it anew.".format(folder))
        shutil.rmtree(folder)
    create_venv(folder)
    return True


def create_venv(folder):
    """Run `python -m venv`, with Debian's missing package named in advance."""
    from importlib.util import find_spec

    if not (find_spec("venv") and find_spec("ensurepip")):
        raise Trouble(
            "this Python comes without `venv` and `ensurepip`; on Debian and Ubuntu: "
            "sudo apt install python{0}.{1}-venv".format(*sys.version_info[:2])
        )
    os.makedirs(folder, exist_ok=True)
    write_stamp(folder, made_here=True)
    print("Making a virtual environment in {0}".format(folder))
    if subprocess.call([sys.executable, "-m", "venv", folder]) != 0:
        raise Trouble(
            "`{0} -m venv {1}` failed, see above; mend that, or install Python 3.13 "
            "from https://www.python.org/downloads/".format(sys.executable, folder)
        )


# --- Before the installation: will it fit?


def path_problem(folder, windows=os.name == "nt", long_paths=False):
    """One sentence if no environment can work at this path."""
    if not windows and os.pathsep in folder:
        return (
            "the path {0!r} contains {1!r}, which separates entries of PATH; move the "
            "course, or set MINILLM_VENV to a folder without it"
        ).format(folder, os.pathsep)
    if windows and not long_paths and len(folder) + LONGEST_PATH_INSIDE > 259:
        return (
            "the path {0!r} is too long for Windows (260 characters with what goes "
            "inside); move the course to C:\\minillm, set MINILLM_VENV=C:\\venv, or "
            "switch long paths on (https://pip.pypa.io/warnings/enable-long-paths)"
        ).format(folder)
    return None


def has_long_paths():
    """Whether this Windows allows paths of more than 260 characters."""
    try:
        import winreg

        place = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return winreg.QueryValueEx(key, "LongPathsEnabled")[0] == 1
    except (ImportError, OSError):
        return False


def nearest_folder(path):
    """The first folder at or above ``path`` that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def space_problem(build, folder, free, temporary, free_temporary):
    """One sentence if the installation cannot fit; free space is in gigabytes."""
    need, need_temporary = SPACE[build]
    if free < need:
        return (
            "{0:.1f} GB are free at {1} and the environment needs about {2:.1f} GB; "
            "free some, or set MINILLM_VENV to a folder on a larger disk"
        ).format(free, folder, need)
    if free_temporary < need_temporary:
        return (
            "{0:.1f} GB are free at {1} and pip needs about {2:.1f} GB there while it "
            "installs; free some, or set TMPDIR (TEMP on Windows) to a larger disk"
        ).format(free_temporary, temporary, need_temporary)
    return None


def check_space(build, folder):
    """Stop before a download that cannot fit."""
    temporary = tempfile.gettempdir()
    free = shutil.disk_usage(nearest_folder(folder)).free / 1e9
    free_temporary = shutil.disk_usage(temporary).free / 1e9
    problem = space_problem(build, folder, free, temporary, free_temporary)
    if problem:
        raise Trouble(problem)


def check_place(folder):
    """Stop if the environment cannot be made at ``folder``."""
    problem = path_problem(folder, long_paths=has_long_paths())
    parent = nearest_folder(folder)
    if not problem and not os.access(parent, os.W_OK):
        problem = (
            "{0} cannot be written; copy the course to a folder of yours, or set "
            "MINILLM_VENV to one".format(parent)
        )
    if problem:
        raise Trouble(problem)


# --- The installation: torch first, from the smallest place that has it


def pinned_version(package):
    """The exact version of ``package`` in constraints.txt."""
    with open(os.path.join(ROOT, "constraints.txt")) as file:
        for line in file:
            name, _, version = line.split(";")[0].partition("==")
            if name.strip() == package:
                return version.strip()
    raise Trouble("constraints.txt pins no {0}; restore the file".format(package))


def all_extras():
    """The names of all extras that pyproject.toml defines."""
    import tomllib

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return sorted(tomllib.load(file)["project"]["optional-dependencies"])


def has_nvidia_driver():
    """Whether an NVIDIA driver is there, so that CUDA libraries would be of use."""
    return bool(shutil.which("nvidia-smi")) or os.path.exists("/proc/driver/nvidia")


def cpu_index_answers(seconds=5):
    """Whether PyTorch's index of CPU builds can be reached from here."""
    from urllib.request import urlopen

    try:
        with urlopen(CPU_INDEX + "/torch/", timeout=seconds) as reply:
            return reply.status == 200
    except (OSError, ValueError):
        return False


def choose_build(python):
    """Decide where torch comes from: (its size class, options for pip)."""
    if platform.system() != "Linux":
        return "cpu", []
    if has_nvidia_driver():
        print("NVIDIA driver found: torch comes with its CUDA libraries (about 3 GB).")
        return "cuda", []
    if os.environ.get("PIP_NO_INDEX"):
        return "cpu", []
    if cpu_index_answers():
        print("No NVIDIA driver found: taking torch's CPU build (about 200 MB).")
        return "cpu", ["--extra-index-url", CPU_INDEX]
    print(
        "No NVIDIA driver found, and {0} does not answer.\n"
        "Going on with the ordinary index: about 3 GB of CUDA libraries are coming,\n"
        "unless pip finds a local wheel of the CPU build.".format(CPU_INDEX)
    )
    return ("cpu" if has_own_sources(python) else "cuda"), []


def has_own_sources(python):
    """Whether pip is set to look in further places, which may hold a CPU build."""
    settings = subprocess.check_output([python, "-m", "pip", "config", "list"])
    return b"find-links" in settings or b"index-url" in settings


def install(folder, extras):
    """Install the pinned tools, then torch, then the course with its extras."""
    python = venv_python(folder)
    build, torch_options = choose_build(python)
    check_space(build, folder)
    torch = "torch==" + pinned_version("torch")
    course = "{0}[{1}]".format(".", ",".join(extras))
    print("Installing pip and setuptools, {0}, the course. Minutes.".format(torch))
    run_pip(python, ["--quiet", "--upgrade", "pip", "setuptools"])
    run_pip(python, torch_options + [torch])
    run_pip(python, ["--no-build-isolation", "-e", course])


def run_pip(python, arguments):
    """Run `pip install` with its progress on the screen; explain it if it fails."""
    command = [python, "-m", "pip", "install", "-c", "constraints.txt"] + arguments
    settings = pip_settings(os.environ)
    child = subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE)
    lines = []
    try:
        for line in child.stderr:
            lines.append(line.decode("utf-8", "replace"))
            sys.stderr.write(lines[-1])
    finally:
        status = child.wait()  # after Ctrl-C too: pip tidies up before it ends
    if status != 0:
        raise Trouble(explain_pip("".join(lines)))


def pip_settings(environment):
    """The user's settings for pip, except those that would miss the environment."""
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
    kept = {name: environment[name] for name in environment if name not in elsewhere}
    return dict(kept, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")


REASONS = [
    (
        ("no space left", "errno 28", "not enough space on the disk", "quota exceeded"),
        "the disk is full; free some space, or set MINILLM_VENV (and TMPDIR, where pip "
        "unpacks) to a larger disk",
    ),
    (
        ("certificate_verify_failed", "sslerror", "certificate verify failed"),
        "the package index answered with a certificate that this machine does not "
        "trust (a company's or university's proxy does that); set PIP_CERT to its "
        "certificate file",
    ),
    (
        ("proxyerror", "cannot connect to proxy", "407 proxy"),
        "the proxy refused the connection; check HTTPS_PROXY, or set PIP_PROXY to "
        "http://user:password@host:port",
    ),
    (
        (
            "newconnectionerror",
            "name resolution",
            "getaddrinfo failed",
            "name or service not known",
            "nodename nor servname",
            "failed to establish a new connection",
            "network is unreachable",
            "timed out",
            "connection refused",
            "connection reset",
            "connectionerror",
            "could not fetch url",
        ),
        "the package index cannot be reached; connect to the internet for the first "
        "call (later ones work offline), or set PIP_INDEX_URL to a mirror",
    ),
    (
        ("permission denied", "access is denied", "[winerror 5]", "[winerror 32]"),
        "a file could not be written; close the notebooks and Pythons that use this "
        "environment and try again",
    ),
    (
        ("from versions: none",),
        "the package index offers nothing, so either it cannot be reached (connect to "
        "the internet for the first call; later ones work offline) or it has no wheels "
        "for this Python and platform (use the x86-64 or arm64 Python 3.13 of "
        "python.org)",
    ),
    (
        ("no matching distribution found for torch",),
        "the index has no torch of this version for this Python and platform; use the "
        "x86-64 or arm64 Python 3.13 of python.org, or " + COLAB,
    ),
    (
        ("no matching distribution found", "resolutionimpossible"),
        "the index does not have the exact versions of constraints.txt; if "
        "PIP_INDEX_URL points to a mirror, try without it",
    ),
]


def explain_pip(output):
    """Say in one sentence why pip failed, from what it wrote to stderr.

    The order of REASONS matters: without a network pip also says that there is no
    matching distribution, and a full disk can look like a broken connection.
    """
    lowered = output.lower()
    for signs, sentence in REASONS:
        if any(sign in lowered for sign in signs):
            return sentence
    return "pip failed, see its last lines above; the next call tries again"


def prepare(extras):
    """Return the environment's Python; install first what is missing in it."""
    folder = venv_folder()
    if is_ready(folder, extras):
        return venv_python(folder)
    check_place(folder)
    made_here = make_venv(folder)
    extras = set(extras) | set(read_stamp(folder).get("extras", ()))
    extras = sorted(extras & set(all_extras()))
    write_stamp(folder, made_here, extras=extras)  # no key yet: unfinished
    install(folder, extras)
    write_stamp(folder, made_here, install_key(), extras)
    return venv_python(folder)


# --- The three commands


def become(command):
    """Continue as ``command``: in this process where the system can do that."""
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    return call(command)


def call(command, **settings):
    """Run ``command`` in the course's folder and return its exit status."""
    child = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ, **settings))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            pass  # the child got it too, and decides what to do


def keep_memory():
    """Let Linux's allocator reuse the big tensors of a step instead of returning them.

    By default it gives their pages back and has them zeroed again at every step, which
    costs a small model some percent of its time. Other systems ignore these names.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))


def run(options):
    """The main job: the tour through the whole pipeline."""
    python = prepare(["data", "plots"])
    keep_memory()
    return become([python, "-m", "minillm", "tour"] + options)


def lab(options):
    """JupyterLab, opened on the course."""
    python = prepare(["lab", "triton"])
    here = ["--ServerApp.root_dir=" + ROOT]
    return become([python, "-m", "jupyterlab"] + here + options)


def test(options):
    """Everything that CI runs, or the studies; a verdict in plain words at the end."""
    python = prepare(all_extras())
    studies = [python, "-m", "minillm.school.studies"]
    if "--studies" in options:
        keep_memory()
        return call(studies + ["--run"], OMP_NUM_THREADS="1")
    steps = [
        ("style (ruff check)", ["ruff", "check", "."]),
        ("layout (ruff format)", ["ruff", "format", "--check", "."]),
        ("tests and doctests (pytest)", ["pytest"] + PYTEST_OPTIONS + options),
    ]
    if not {"-k", "-m"} & set(options):
        steps += [("notebooks (models, nbval)", ["minillm.school.notebooks"])]
    passed = {}
    for name, module in steps:
        print("\n--- {0}".format(name))
        sys.stdout.flush()
        command = [python, "-m"] + module
        passed[name] = call(command, OMP_NUM_THREADS="1") == 0
    print("\n--- studies whose results are older than the code")
    sys.stdout.flush()
    call(studies, OMP_NUM_THREADS="1")
    print("\n" + verdict(passed))
    if "-m" not in options:
        print("Left out: what only a release needs (python course.py test -m release).")
    return 0 if all(passed.values()) else 1


def verdict(passed):
    """What passed and what failed, in plain words."""
    good = [name for name in passed if passed[name]]
    bad = [name for name in passed if not passed[name]]
    lines = ["Passed: {0}.".format(", ".join(good))] if good else []
    lines += ["Failed: {0}; see above.".format(", ".join(bad))] if bad else []
    return "\n".join(lines)


def main(arguments):
    """Do what the first argument names; return the exit status."""
    commands = {"run": run, "lab": lab, "test": test}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] not in commands:
        raise Trouble(
            "the command must be run, lab or test, got {0!r}; `python course.py -h` "
            "explains them".format(arguments[0])
        )
    check_machine()
    return commands[arguments[0]](arguments[1:])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Trouble as trouble:
        sys.exit("course.py: {0}.".format(trouble))
    except KeyboardInterrupt:
        print("\nInterrupted. The next call mends what is unfinished.", file=sys.stderr)
        sys.exit(130)
