"""The check installs SLURM if possible, and continues otherwise."""

import shutil
import subprocess

import pytest

from lshfm_pl.cli import CONFIG_DIR

SCRIPT = CONFIG_DIR.parent / ".ci/run"


@pytest.fixture
def run(tmp_path):
    """Runs the script with these programs and no others; returns what it printed and what it called."""
    calls = tmp_path / "calls"

    def program(name, body):
        path = tmp_path / "bin" / name
        path.write_text(f"#!{shutil.which('bash')}\necho {name} $* >> {calls}\n{body}\n")
        path.chmod(0o755)

    def start(user, **programs):
        (tmp_path / "bin").mkdir()
        calls.touch()
        (tmp_path / "bin/dirname").symlink_to(shutil.which("dirname"))
        program("id", f"echo {user}")
        program("timeout", 'shift; "$@"')
        program("make", "exit ${MAKE_STATUS:-0}")
        for name, body in programs.items():
            program(name.replace("_", "-"), body)
        done = subprocess.run(
            [shutil.which("bash"), SCRIPT],
            env={"PATH": str(tmp_path / "bin")},
            capture_output=True,
            text=True,
        )
        names = ("apt-get", "make")
        return done, [line for line in calls.read_text().splitlines() if line.split()[0] in names]

    return start


def test_root_installs_slurm_and_sees_nothing_of_it(run):
    done, calls = run(0, apt_get="echo Setting up slurm-wlm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert calls == ["apt-get update -qq", "apt-get install -y -qq slurm-wlm munge", "make check"]


def test_failure_to_install_is_reported_with_its_reason_and_the_check_goes_on(run):
    done, calls = run(0, apt_get="echo Reading lists; echo E: no network >&2; exit 100")
    assert done.returncode == 0
    assert done.stderr == "SLURM could not be installed (E: no network): its tests are skipped\n"
    assert calls[-1] == "make check"


@pytest.mark.parametrize(
    ("user", "programs"), [(1000, {"apt_get": ""}), (0, {}), (0, {"apt_get": "", "slurmctld": ""})]
)
def test_nothing_is_installed_without_root_or_apt_or_where_slurm_is(user, programs, run):
    done, calls = run(user, **programs)
    assert (done.returncode, done.stderr, calls) == (0, "", ["make check"])
