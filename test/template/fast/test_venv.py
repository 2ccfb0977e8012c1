"""scripts/venv with a real Python and a real pip, in a folder whose name has a blank."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from support import ROOT

PYTHON = os.path.realpath(sys.executable)
NEWER = f"python3.{sys.version_info.minor}"
OLD = '#!/bin/sh\n[ "$*" != --version ] || exec echo Python 3.10.13\nexit 1\n'
OTHER_PYTHON = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PIP_PYTHON": "/nowhere"}
# What people set for installations of their own. Each would put the package elsewhere, or end pip.
ELSEWHERE = {"user": "yes", "target": "/tmp/no", "prefix": "/tmp/no", "root": "/tmp/no"}
TOOLS = "cat cmp date dirname env rm sed sh tail tr".split()
WHEEL = {
    "demo.py": "",
    "demo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
    "demo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "demo-1.0.dist-info/RECORD": "",
}


class Laptop:
    """A project that needs one package, an index that has it, and a PATH of its own."""

    def __init__(self, path):
        self.path, self.bin, self.config = path / "a project", path / "bin", path / "pip.conf"
        (self.path / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts/venv", self.path / "scripts")
        (self.path / "requirements.txt").write_text("demo==1.0\n")
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        (self.bin / "python3").write_text(OLD)
        (self.bin / "python3").chmod(0o755)
        (self.bin / NEWER).symlink_to(PYTHON)
        with zipfile.ZipFile(path / "demo-1.0-py3-none-any.whl", "w") as wheel:
            for name, text in WHEEL.items():
                wheel.writestr(name, text)
        self.index = {"no-index": "yes", "find-links": str(path)}

    def packages(self):
        [packages] = (self.path / ".venv/lib").glob("*/site-packages")
        return packages

    def run(self, settings=None, **env):
        """Run it with these settings in pip.conf; return what it printed, once .venv is right."""
        lines = [f"{name} = {value}\n" for name, value in (settings or self.index).items()]
        self.config.write_text("[global]\n" + "".join(lines))
        # No cache can be written there.
        env = {"PATH": str(self.bin), "HOME": "/proc", "PIP_CONFIG_FILE": str(self.config), **env}
        command = ["sh", self.path / "scripts/venv", "requirements.txt"]
        run = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")
        code = "import demo, sys; print(sys.prefix)"
        python = [self.path / ".venv/bin/python", "-c", code]
        prefix = subprocess.run(python, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert prefix == f"{self.path}/.venv\n"
        return run.stdout


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """Has a .venv, made with python3.x, as python3 is too old."""
    laptop = Laptop(tmp_path_factory.mktemp("laptop"))
    assert "Installing" in laptop.run()
    return laptop


def test_a_venv_that_works_is_kept_whatever_python3_is_now(laptop):
    assert laptop.run(**OTHER_PYTHON) == ""


def test_where_packages_come_from_is_the_persons_choice_and_where_they_go_is_not(laptop):
    everything = {**laptop.index, **ELSEWHERE, "require-virtualenv": "yes"}
    variables = {f"PIP_{name.upper().replace('-', '_')}": everything[name] for name in everything}
    for settings, env in [(everything, OTHER_PYTHON), ({"timeout": "9"}, variables)]:
        shutil.rmtree(laptop.packages() / "demo-1.0.dist-info")
        (laptop.packages() / "demo.py").unlink()
        assert "Installing" in laptop.run(settings, **env)


def upgrade(laptop):
    """Do to .venv what it does to it when python3 becomes a later one: that looks elsewhere."""
    library = laptop.packages().parent
    library.rename(library.with_name("python3.10"))


def remove(laptop):
    for link in (laptop.path / ".venv/bin").glob("python*"):
        link.unlink()
        link.symlink_to("/nowhere/python3")


def move(laptop):
    laptop.path = laptop.path.rename(laptop.path.with_name("moved"))


def attempt(laptop):
    """Run it with a python3 that cannot make a .venv; return whether it was asked to."""
    python = laptop.bin / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || { echo no space left; exit 1; }\n')
    command = ["sh", laptop.path / "scripts/venv", "requirements.txt"]
    run = subprocess.run(command, env={"PATH": str(laptop.bin)}, capture_output=True, text=True)
    python.write_text(OLD)
    return "cannot make .venv: no space left" in run.stderr


def test_a_venv_that_does_not_work_is_made_anew_and_then_kept(laptop):
    """Each kind of damage is seen; the last is mended, which takes some seconds."""
    assert not attempt(laptop)
    for change in (upgrade, remove, move):
        venv = laptop.path / ".venv"
        shutil.copytree(venv, laptop.path / "whole", symlinks=True)
        change(laptop)
        assert attempt(laptop), change
        if change is not move:
            shutil.rmtree(venv)
            (laptop.path / "whole").rename(venv)
    mark = laptop.path / ".venv/mark"
    mark.touch()
    assert "Installing" in laptop.run()
    assert not mark.exists()
    assert laptop.run() == ""
