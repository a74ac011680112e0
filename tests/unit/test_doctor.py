"""minillm doctor: each fault of a machine is found, named, and given a remedy."""

import builtins
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minillm.school import doctor, folders, installation, machine
from minillm.school.findings import note, ok, problem, report

PINNED = {"torch": "2.13.0", "numpy": "2.4.6", "ruff": "0.17.5"}
CORE = dict.fromkeys(installation.CORE, "1.0")


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def test_the_report_of_this_machine_has_no_problem():
    findings = doctor.examine()
    assert "problem" not in levels(findings), report(findings)
    words = report(findings)
    for part in ("Python 3", "processors", "GB free", "torch 2", "triton", "GFLOP/s"):
        assert part in words


def test_the_exit_status_tells_a_problem_from_a_note(monkeypatch, capsys):
    for finding, status in [(ok("a"), 0), (note("a"), 0), (problem("a", "b"), 1)]:
        monkeypatch.setattr(doctor, "examine", lambda finding=finding: [finding])
        assert doctor.doctor() == status
    assert "1 problem, 0 notes" in capsys.readouterr().out


def test_the_report_hides_the_name_of_the_user():
    words = report([ok(f"cache {Path.home() / 'x'}")])
    assert str(Path.home()) not in words and "~" in words


def test_every_problem_comes_with_a_remedy():
    text = report([problem("no torch", "install it")])
    assert text.splitlines()[1:3] == ["problem  no torch", " " * 9 + "-> install it"]


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10), "problem"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "problem")],
)
def test_only_tested_pythons_are_ok(version, level):
    assert machine.check_python(version).level == level


def test_the_platform_is_judged_by_course_py(monkeypatch, tmp_path):
    script = "def machine_facts(): 0\ndef platform_problem(facts): return 'use Colab'\n"
    (tmp_path / "course.py").write_text(script)
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    finding = machine.check_platform()
    assert (finding.level, finding.remedy) == ("problem", "use Colab")
    (tmp_path / "course.py").unlink()
    assert machine.check_platform().level == "ok"


def test_the_memory_is_a_plausible_number_of_gigabytes():
    found = machine.memory_gigabytes()
    assert found is None or 0.2 < found < 100_000


def test_little_memory_is_a_note_and_a_full_disk_a_problem(monkeypatch):
    assert machine.check_memory(None).level == "note"
    assert machine.check_memory(2.0).level == "note"
    assert machine.check_memory(8.0).level == "ok"
    full = SimpleNamespace(free=1e8)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: full)
    assert machine.check_disk().level == "problem"


def test_a_torch_that_does_not_import_is_a_problem_and_not_a_crash(monkeypatch):
    real = builtins.__import__

    def without_torch(name, *rest):
        if name == "torch":
            raise OSError("libgomp.so.1: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    (finding,) = installation.check_torch()
    assert finding.level == "problem" and "libgomp" in finding.text
    assert machine.check_arithmetic().level == "note"


def fake_torch(cuda: bool, mps: bool, built_for: str | None = None):
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: cuda,
            get_device_name=lambda index: "H200",
            device_count=lambda: 2,
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
        version=SimpleNamespace(cuda=built_for),
    )


def test_the_device_is_named_and_apples_gpu_is_not_used_by_surprise():
    assert "H200, 2" in installation.check_device(fake_torch(True, False, "13.0")).text
    apple = installation.check_device(fake_torch(False, True))
    assert apple.level == "note" and apple.text.startswith("device: CPU")
    assert installation.check_device(fake_torch(False, False)).text == "device: CPU"
    blind = installation.check_device(fake_torch(False, False, "13.0"))
    assert blind.level == "note" and "sees no GPU" in blind.text


def test_another_version_is_a_note_and_a_missing_core_package_a_problem():
    same = installation.check_packages(
        {**CORE, **PINNED, "torch": "2.13.0+cpu"}, PINNED
    )
    assert levels(same) == ["ok"]
    other = installation.check_packages({**CORE, "numpy": "2.4.5"}, PINNED)
    assert levels(other) == ["ok", "note"]
    assert "numpy 2.4.5 is installed, 2.4.6 is tested" in other[1].text
    bare = installation.check_packages({"torch": "2.13.0"}, PINNED)
    assert levels(bare) == ["problem"] * len(CORE) + ["ok"]


def test_without_constraints_nothing_is_claimed_about_versions(tmp_path):
    assert installation.pinned_versions(tmp_path) == {}
    assert levels(installation.check_packages({}, {})) == ["note"]


def test_the_pins_are_read_without_comments_and_markers(tmp_path):
    text = '# a==1\n\nTorch_X==2.0 ; sys_platform == "linux"\npip==26.3\n'
    (tmp_path / "constraints.txt").write_text(text)
    assert installation.pinned_versions(tmp_path) == {"torch-x": "2.0", "pip": "26.3"}


def test_a_missing_triton_is_explained_by_platform(monkeypatch):
    def absent(name):
        raise installation.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installation.metadata, "version", absent)
    monkeypatch.setattr(installation.sys, "platform", "darwin")
    assert "Linux only" in installation.check_triton().text
    monkeypatch.setattr(installation.sys, "platform", "linux")
    assert "pip install" in installation.check_triton().remedy


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    assert installation.check_cache(tmp_path / "new").level == "ok"
    finding = installation.check_cache(tmp_path / "file" / "below")
    assert finding.level == "problem" and "MINILLM_CACHE" in finding.remedy


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    assert folders.cache_folder() == tmp_path
    monkeypatch.delenv("MINILLM_CACHE")
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(folders.sys, "platform", system)
        assert "minillm" in folders.cache_folder().parts


def test_two_openmp_runtimes_are_a_problem():
    found = machine.check_threads({"KMP_DUPLICATE_LIB_OK": "TRUE"})
    assert levels(found) == ["ok", "problem"]
    assert levels(machine.check_threads({"OMP_NUM_THREADS": "1"})) == ["ok"]


def test_wrong_arithmetic_is_a_problem():
    assert machine.judge_arithmetic(1e-2, 50.0).level == "problem"
    assert machine.judge_arithmetic(1e-6, 50.0).level == "ok"


def test_the_doctor_runs_as_a_program():
    command = [sys.executable, "-m", "minillm.school.doctor"]
    environment = {**os.environ, "KMP_DUPLICATE_LIB_OK": "TRUE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "KMP_DUPLICATE_LIB_OK is set" in done.stdout
