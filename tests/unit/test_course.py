"""course.py: it starts everywhere, explains itself, and installs only when it must."""

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "course.py").read_text()
FINE = {
    "version": (3, 12),
    "implementation": "CPython",
    "free_threaded": False,
    "bits": 64,
    "system": "Linux",
    "machine": "x86_64",
    "mac": "",
    "glibc": "2.35",
}


def load(path: Path):
    spec = importlib.util.spec_from_file_location("course", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def course(monkeypatch, tmp_path):
    """course.py as a module, with its environment in a folder of the test's."""
    monkeypatch.setenv("MINILLM_VENV", str(tmp_path / "venv"))
    return load(ROOT / "course.py")


@pytest.fixture
def checkout(tmp_path):
    """A small copy of the course whose package only says how it was called."""
    root = tmp_path / "a checkout"
    (root / "minillm").mkdir(parents=True)
    for name in ("course.py", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "minillm" / "__init__.py").touch()
    (root / "minillm" / "__main__.py").write_text("import sys; print(sys.argv[1:])\n")
    return root


def pretend_installed(checkout: Path, extras: list[str]) -> None:
    """Give ``checkout`` a finished environment without installing anything."""
    folder = checkout / ".venv"
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    course = load(checkout / "course.py")
    course.write_stamp(str(folder), True, course.install_key(), extras)


def start(checkout: Path, *arguments: str, **variables: str):
    kept = {k: v for k, v in os.environ.items() if k != "MINILLM_VENV"}
    return subprocess.run(
        [sys.executable, "course.py", *arguments],
        cwd=checkout,
        env={**kept, "PYTHONPATH": str(checkout), **variables},
        capture_output=True,
        text=True,
    )


def unsuitable_pythons() -> list[str]:
    """Pythons on this machine that the course does not support, and that start."""
    names = [f"python3.{minor}" for minor in (4, 5, 6, 7, 8, 9, 10, 14, 15)]
    found = [shutil.which(name) for name in ["python2", "python2.7", *names]]
    found += [str(path) for path in Path.home().glob(".pyenv/versions/*/bin/python")]
    return sorted({path for path in found if path and is_unsuitable(path)})


def is_unsuitable(path: str) -> bool:
    probe = "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
    code = subprocess.run([path, "-c", probe], capture_output=True).returncode
    return code == 1


# --- A Python that cannot run the course can still read course.py


def test_other_pythons_get_one_sentence_and_no_traceback():
    pythons = unsuitable_pythons()
    if not pythons:
        pytest.skip("no other Python here; not proved: that an old one explains itself")
    for python in pythons:
        command = [python, str(ROOT / "course.py"), "test"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1, python
        assert done.stderr.startswith("course.py: Python "), done.stderr
        assert "it needs Python 3.11 to 3.13" in done.stderr
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def new_syntax(source: str) -> list[str]:
    """What in ``source`` Python 2.7 could not even read."""
    new = (
        ast.JoinedStr,
        ast.AnnAssign,
        ast.NamedExpr,
        ast.Nonlocal,
        ast.AsyncFunctionDef,
    )
    found = []
    for node in ast.walk(ast.parse(source, feature_version=(3, 7))):
        if isinstance(node, new):
            found.append(type(node).__name__)
        if isinstance(node, ast.arg) and node.annotation:
            found.append("annotation")
        if isinstance(node, ast.FunctionDef) and (node.returns or node.args.kwonlyargs):
            found.append("annotation or keyword-only argument")
        if isinstance(node, ast.Raise) and node.cause:
            found.append("raise from")
    return found


def test_the_script_uses_only_syntax_that_python_2_reads():
    assert new_syntax(SOURCE) == []
    assert SOURCE.isascii()  # Python 2 needs a declaration for anything else


@pytest.mark.parametrize(
    "line", ["f'{x}'", "def f(a: int): 0", "def f(*, a): 0", "raise A from b", "x: int"]
)
def test_newer_syntax_would_be_noticed(line):
    assert new_syntax(line)


def test_the_script_needs_nothing_but_the_standard_library():
    imports = [n for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.Import)]
    froms = [n for n in ast.walk(ast.parse(SOURCE)) if isinstance(n, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    names |= {node.module for node in froms}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


# --- Unfit machines are told so, each with a way out


@pytest.mark.parametrize(
    ("change", "found", "remedy"),
    [
        ({"bits": 32}, "32-bit", "64-bit"),
        ({"system": "Darwin", "machine": "x86_64"}, "Intel", "Colab"),
        ({"system": "Darwin", "machine": "arm64", "mac": "13.6"}, "13.6", "update"),
        ({"system": "Windows", "machine": "ARM64"}, "Arm", "wsl --install"),
        ({"machine": "armv7l"}, "armv7l", "Colab"),
        ({"glibc": ""}, "musl", "Debian"),
        ({"glibc": "2.5"}, "glibc 2.5", "newer Linux"),
        ({"glibc": "2.27"}, "glibc 2.27", "newer Linux"),
        ({"system": "FreeBSD"}, "FreeBSD", "Colab"),
    ],
)
def test_a_platform_without_torch_is_told_the_way_out(course, change, found, remedy):
    sentence = course.platform_problem({**FINE, **change})
    assert found in sentence and remedy in sentence


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"machine": "aarch64"},
        {"glibc": "2.28"},
        {"system": "Darwin", "machine": "arm64", "mac": "14.0", "glibc": ""},
        {"system": "Darwin", "machine": "arm64", "mac": "26.1", "glibc": ""},
        {"system": "Windows", "machine": "AMD64", "glibc": ""},
    ],
)
def test_a_supported_platform_is_not_complained_about(course, change):
    assert course.platform_problem({**FINE, **change}) is None


def test_this_machine_passes_its_own_check(course):
    course.check_machine()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": (3, 10)}, "3.10 is too old"),
        ({"version": (3, 14)}, "3.14 is too new"),
        ({"implementation": "PyPy"}, "PyPy"),
        ({"free_threaded": True}, "free-threaded"),
    ],
)
def test_an_unsuitable_python_is_named_with_what_to_install(course, change, words):
    sentence = course.python_problem({**FINE, **change}, "here")
    assert words in sentence and "python.org" in sentence
    known = course.python_problem({**FINE, **change}, "here", ["python3.12"])
    assert "python3.12 course.py" in known and "python.org" not in known


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_each_supported_python_is_accepted(course, minor):
    assert course.python_problem({**FINE, "version": (3, minor)}, "here") is None


def test_a_full_disk_is_noticed_before_the_download(course):
    assert course.space_problem("cpu", "/", 5.0, "/tmp", 5.0) is None
    assert "MINILLM_VENV" in course.space_problem("cuda", "/", 5.0, "/tmp", 5.0)
    assert "2.0 GB are free" in course.space_problem("cpu", "/", 2.0, "/tmp", 5.0)
    assert "TMPDIR" in course.space_problem("cuda", "/", 20.0, "/tmp", 2.0)


def test_no_space_left_stops_before_pip_is_started(course, monkeypatch, tmp_path):
    full = type("usage", (), {"free": 0})
    monkeypatch.setattr(course.shutil, "disk_usage", lambda path: full)
    monkeypatch.setattr(course, "choose_build", lambda python: ("cpu", []))
    monkeypatch.setattr(course, "run_pip", lambda *_: pytest.fail("pip was started"))
    with pytest.raises(course.Trouble, match=r"0\.0 GB are free"):
        course.install(str(tmp_path), ["data"])


def test_paths_that_break_environments_are_named(course):
    long = "C:\\" + "x" * 80
    assert "separates" in course.path_problem(f"a{os.pathsep}b", windows=False)
    assert "260" in course.path_problem(long, windows=True)
    assert course.path_problem(long, windows=True, long_paths=True) is None
    assert course.path_problem("/home and work/ü", windows=False) is None


# --- pip's failures, in one sentence


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "NewConnectionError(...)\nERROR: No matching distribution found for torch",
            "inter",
        ),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("SSLError(... CERTIFICATE_VERIFY_FAILED)\nCould not fetch URL", "PIP_CERT"),
        ("ProxyError('Cannot connect to proxy.')", "HTTPS_PROXY"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no torch of this"),
        ("ERROR: No matching distribution found for tqdm==4.70.1", "mirror"),
        ("[WinError 5] Access is denied: 'torch.dll'", "close the notebooks"),
        ("something new", "see its last lines"),
    ],
)
def test_each_failure_of_pip_gets_its_sentence(course, output, words):
    assert words in course.explain_pip(output)


@pytest.mark.parametrize("retries", ["0", "1"])  # pip words them differently
def test_a_real_pip_without_a_network_is_recognised(course, monkeypatch, retries):
    closed = {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": retries}
    closed |= {"CONFIG_FILE": os.devnull, "TIMEOUT": "1"}
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in closed.items():
        monkeypatch.setenv("PIP_" + name, value)
    with pytest.raises(course.Trouble, match="connect to the internet"):
        course.run_pip(sys.executable, ["--dry-run", "no-such-package-of-ours"])


def test_the_settings_of_pip_are_respected_but_for_the_place(course):
    own = {"PIP_INDEX_URL": "a", "PIP_FIND_LINKS": "b", "PIP_TARGET": "c", "HOME": "d"}
    settings = course.pip_settings(own)
    assert settings.items() >= {"PIP_INDEX_URL": "a", "PIP_FIND_LINKS": "b"}.items()
    assert "PIP_TARGET" not in settings and settings["PIP_USER"] == "0"


# --- Where torch comes from


def on_linux(course, monkeypatch, driver, answers, own_sources=False):
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setattr(course.platform, "system", lambda: "Linux")
    monkeypatch.setattr(course, "has_nvidia_driver", lambda: driver)
    monkeypatch.setattr(course, "cpu_index_answers", lambda: answers)
    monkeypatch.setattr(course, "has_own_sources", lambda python: own_sources)
    return course.choose_build("python")


def test_without_a_driver_the_cpu_build_is_taken(course, monkeypatch):
    build, options = on_linux(course, monkeypatch, driver=False, answers=True)
    assert (build, options) == ("cpu", ["--extra-index-url", course.CPU_INDEX])


def test_a_silent_cpu_index_is_said_and_survived(course, monkeypatch, capsys):
    assert on_linux(course, monkeypatch, False, answers=False) == ("cuda", [])
    assert "about 3 GB of CUDA libraries" in capsys.readouterr().out
    assert on_linux(course, monkeypatch, False, False, own_sources=True) == ("cpu", [])


def test_with_a_driver_the_cpu_index_is_not_even_asked(course, monkeypatch):
    assert on_linux(course, monkeypatch, driver=True, answers=True) == ("cuda", [])


def test_an_index_that_does_not_exist_does_not_answer(course, monkeypatch):
    monkeypatch.setattr(course, "CPU_INDEX", "http://127.0.0.1:9")
    assert course.cpu_index_answers(seconds=1) is False


# --- The environment is made once, and mended


def test_a_finished_environment_is_used_at_once_and_options_are_passed_on(checkout):
    pretend_installed(checkout, ["data", "plots"])
    began = time.perf_counter()
    done = start(checkout, "run", "--steps", "3", "-h")
    assert done.stdout.strip() == "['tour', '--steps', '3', '-h']", done.stderr
    assert time.perf_counter() - began < 2  # two starts of Python; 0.1 s when idle


@pytest.mark.parametrize("file", ["constraints.txt", "pyproject.toml"])
def test_a_change_of_the_versions_calls_for_an_installation(checkout, file):
    pretend_installed(checkout, ["data", "plots"])
    course = load(checkout / "course.py")
    folder = str(checkout / ".venv")
    assert course.is_ready(folder, ["data"])
    assert not course.is_ready(folder, ["data", "lab"])
    with open(checkout / file, "a") as handle:
        handle.write("# changed\n")
    assert not course.is_ready(folder, ["data"])


def test_an_unfinished_installation_is_not_taken_for_a_finished_one(checkout):
    pretend_installed(checkout, ["data", "plots"])
    course = load(checkout / "course.py")
    course.write_stamp(str(checkout / ".venv"), True, extras=["data", "plots"])
    assert not course.is_ready(str(checkout / ".venv"), ["data"])


def test_an_installation_that_fails_leaves_no_finished_environment(
    checkout, monkeypatch
):
    pretend_installed(checkout, ["data", "plots"])
    monkeypatch.setenv("MINILLM_VENV", str(checkout / ".venv"))
    course = load(checkout / "course.py")
    monkeypatch.setattr(course, "make_venv", lambda folder: True)

    def fail(folder, extras):
        assert extras == ["data", "lab", "plots"]  # what was there stays
        raise course.Trouble("pip failed")

    monkeypatch.setattr(course, "install", fail)
    with pytest.raises(course.Trouble):
        course.prepare(["lab"])
    assert not course.is_ready(course.venv_folder(), ["data"])


def test_a_broken_environment_of_ours_is_made_anew(course, monkeypatch, tmp_path):
    folder = tmp_path / "venv"
    folder.mkdir()
    course.write_stamp(str(folder), made_here=True)
    (folder / "half").touch()
    monkeypatch.setattr(course, "create_venv", lambda path: os.makedirs(path))
    assert course.make_venv(str(folder)) is True
    assert not (folder / "half").exists()


def test_what_others_made_is_never_deleted(course, tmp_path):
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "thesis.tex").write_text("three years")
    with pytest.raises(course.Trouble, match="delete or rename it"):
        course.make_venv(str(folder))
    assert (folder / "thesis.tex").exists()


def test_a_damaged_stamp_is_no_permission_to_delete(course, tmp_path):
    (tmp_path / course.STAMP).write_text('{"made_by_course_py": tr')
    assert course.read_stamp(str(tmp_path)) == {}
    with pytest.raises(course.Trouble):
        course.make_venv(str(tmp_path))


def test_a_python_without_venv_is_told_debians_package(course, monkeypatch, tmp_path):
    real = importlib.util.find_spec
    absent = {"ensurepip"}
    fake = lambda name, *rest: None if name in absent else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", fake)
    with pytest.raises(course.Trouble, match=r"apt install python3\.\d+-venv"):
        course.create_venv(str(tmp_path / "new"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals; Windows sends Ctrl-C anew")
def test_ctrl_c_while_installing_ends_with_a_sentence(checkout):
    kept = {k: v for k, v in os.environ.items() if k != "MINILLM_VENV"}
    child = subprocess.Popen(
        [sys.executable, "-u", "course.py", "run"],
        cwd=checkout,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert "Making a virtual environment" in child.stdout.readline()
    time.sleep(0.3)
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "The next call mends what is unfinished." in errors


# --- The commands


def test_without_a_command_the_help_is_shown(checkout):
    assert start(checkout, "-h").returncode == 0
    assert "usage: python course.py COMMAND" in start(checkout, "--help").stdout
    assert start(checkout).returncode == 2


def test_an_unknown_command_is_answered_with_the_known_ones(checkout):
    done = start(checkout, "tset")
    assert done.returncode == 1
    assert "must be run, lab or test, got 'tset'" in done.stderr


NOTEBOOKS = "minillm.school.notebooks"


def outcome(course, monkeypatch, capsys, failing: str, options=()):
    """Run `course.py test` with stubbed steps: exit status, words, commands."""
    commands = []

    def call(command, **settings):
        commands.append((command, settings))
        return int(failing in command)

    monkeypatch.setattr(course, "prepare", lambda extras: "python")
    monkeypatch.setattr(course, "call", call)
    return course.test(list(options)), capsys.readouterr().out, commands


def test_all_steps_run_even_if_the_first_fails(course, monkeypatch, capsys):
    status, words, commands = outcome(course, monkeypatch, capsys, failing="check")
    assert status == 1 and len(commands) == 5
    assert "Failed: style (ruff check); see above." in words
    tests = "tests and doctests (pytest), notebooks (models, nbval)"
    assert f"Passed: layout (ruff format), {tests}." in words


@pytest.mark.parametrize("failing", ["check", "--check", "pytest", NOTEBOOKS])
def test_each_failing_step_makes_the_whole_fail(course, monkeypatch, capsys, failing):
    assert outcome(course, monkeypatch, capsys, failing)[0] == 1


def test_all_passed_is_said_and_options_reach_pytest(course, monkeypatch, capsys):
    status, words, commands = outcome(
        course, monkeypatch, capsys, "none", ["-k", "bpe"]
    )
    assert status == 0 and "Failed" not in words
    command, settings = commands[2]
    assert command[-2:] == ["-k", "bpe"] and command[3:5] == ["-n", "2"]
    assert settings == {"OMP_NUM_THREADS": "1"}


def test_notebooks_run_after_the_tests_with_a_cache_of_their_own(
    course, monkeypatch, capsys
):
    _, _, commands = outcome(course, monkeypatch, capsys, "none", ["-x"])
    modules = [command[2] for command, _ in commands]
    assert modules.index("pytest") + 1 == modules.index(NOTEBOOKS)
    assert commands[3][0] == ["python", "-m", NOTEBOOKS]


@pytest.mark.parametrize("choice", ["-k", "-m"])
def test_a_choice_of_tests_leaves_the_notebooks_out(
    course, monkeypatch, capsys, choice
):
    _, words, commands = outcome(course, monkeypatch, capsys, "none", [choice, "bpe"])
    assert NOTEBOOKS not in [command[2] for command, _ in commands]
    assert "notebooks" not in words


def test_stale_studies_are_named_and_fail_nothing(course, monkeypatch, capsys):
    status, _, commands = outcome(course, monkeypatch, capsys, "minillm.school.studies")
    assert status == 0
    assert commands[-1][0] == ["python", "-m", "minillm.school.studies"]


def test_studies_run_alone_when_they_are_asked_for(course, monkeypatch, capsys):
    _, _, commands = outcome(course, monkeypatch, capsys, "none", ["--studies"])
    assert [c[-1] for c, _ in commands] == ["--run"]


def test_the_test_command_installs_every_extra(course):
    assert {"data", "plots", "lab", "triton", "parity", "dev"} <= set(
        course.all_extras()
    )


def test_the_torch_that_is_installed_first_is_the_pinned_one(course):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==" + course.pinned_version("torch") in lines
    assert course.pinned_version("triton") == "3.7.1"  # its marker is not part of it


def test_readme_ci_and_script_name_the_same_test_command(course):
    ci = (ROOT / ".ci" / "run").read_text()
    assert "course.py test" in ci and "python course.py test" in ci
    assert "python course.py COMMAND" in course.USAGE and "\n  test " in course.USAGE
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not there; not proved: that it names this command")
    assert "python course.py test" in readme.read_text()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_ci_can_be_executed():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
