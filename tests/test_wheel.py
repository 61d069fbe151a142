"""The built wheel contains its config files and works without a checkout."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lshfm_pl.paths import CONFIG_DIR, config_dir
from lshfm_pl.runs.results import code_hash

REPOSITORY = Path(__file__).parents[1]
BUILT_FROM = ("LICENSE", "README.md", "conf", "lshfm_pl", "pyproject.toml", "scripts")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of a new environment with the wheel and with the dependencies of this environment."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    for name in BUILT_FROM:
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(REPOSITORY / name, source)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", root, source)
    (wheel,) = root.glob("*.whl")
    # Inside the repository of another project, whose commit is not this package's.
    project = root / "project"
    project.mkdir()
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    run("git", "init", "-q", project)
    run("git", "-C", project, *identity, "commit", "-q", "--allow-empty", "-m", "first")
    run(sys.executable, "-m", "venv", "--without-pip", project / "environment")
    python = project / "environment/bin/python"
    run(sys.executable, "-m", "pip", "-q", "--python", python, "install", "--no-deps", wheel)
    (site,) = (project / "environment/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, site


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_installed(installed, folder, *arguments):
    # Isolated: neither PYTHONPATH nor the working directory leads to the checkout.
    return run(installed[0], *arguments, cwd=folder, env={"PATH": "/usr/bin:/bin"})


def test_config_files_lie_inside_the_package_and_nothing_beside_it(installed):
    _, site = installed
    packed = {path.relative_to(site / "lshfm_pl/conf") for path in (site / "lshfm_pl/conf").rglob("*.yaml")}
    assert packed == {path.relative_to(CONFIG_DIR) for path in CONFIG_DIR.rglob("*.yaml")}
    assert not {"conf", "scripts", "tests"} & {path.name for path in site.iterdir()}
    assert (site / "lshfm_pl/reporting/page/report.html.jinja").is_file()


def test_commands_answer_from_any_folder(installed, tmp_path):
    listed = run_installed(installed, tmp_path, "-m", "lshfm_pl")
    assert "train " in listed
    told = run_installed(installed, tmp_path, "-m", "lshfm_pl.train", "--help")
    assert "data=voc_folder" in told
    config = run_installed(
        installed, tmp_path, "-m", "lshfm_pl.train", "experiment=quickstart", "--cfg", "job", "--resolve"
    )
    assert "ShapesDataModule" in config
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_trains_in_the_current_folder_and_says_what_code_it_was(installed, tmp_path):
    run_installed(
        installed, tmp_path, "-m", "lshfm_pl.train", "model=retinanet_resnet10fpn_tiny", "schedule=quickstart",
        "data=shapes", "data.num_train=4", "data.num_val=2", "data.num_test=2", "data.batch_size=2",
        "model.min_size=[64]", "trainer.max_steps=2", "trainer.accelerator=cpu", "hydra.run.dir=outputs/run",
    )  # fmt: skip
    results = json.loads((tmp_path / "outputs/run/results.json").read_text())
    assert results["code_hash"] == code_hash()
    assert results["git_commit"] is None
    run_installed(
        installed, tmp_path, "-m", "lshfm_pl.evaluate", "checkpoint=outputs/run/checkpoints/last.ckpt"
    )
    run_installed(installed, tmp_path, "-m", "lshfm_pl.report", "runs=outputs", "output=page")
    assert (tmp_path / "page/index.html").is_file()


def test_config_folder_inside_the_package_goes_before_one_beside_it(tmp_path):
    package = tmp_path / "lshfm_pl"
    package.mkdir()
    assert config_dir(package) == tmp_path / "conf"
    (package / "conf").mkdir()
    assert config_dir(package) == package / "conf"
