"""What an operator relies on in the image: who it runs as, what is in it, that it needs to write nowhere but to its state."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from remediator import __version__
from scripts.runtime_lock import closure, pins, runtime_lock
from tests.packaging.image import ROOT, Stage, carry_out, dockerfile, install_from_here, interpreter, locked, open_to_all
from tests.servers.ports import eventually, free_port

USER = 10001
FILES = {".py", ".sql", ".yaml", ".html", ".css", ".js", ".svg"}
pytestmark = pytest.mark.xdist_group("image")  # what is built once is built in one process


@pytest.fixture(scope="module")
def build() -> Stage:
    """Give the first stage."""
    return dockerfile()[0]


@pytest.fixture(scope="module")
def image() -> Stage:
    """Give the stage that becomes the image."""
    return dockerfile()[-1]


@pytest.fixture(scope="module")
def built(build: Stage) -> Iterator[Path]:
    """Carry out the first stage once; give what stands for /opt/remediator, in a place that any user may enter, written by nobody."""
    directory = Path(tempfile.mkdtemp(prefix="remediator-image-"))
    directory.chmod(0o755)
    try:
        prefix = carry_out(build, directory, install=install_from_here)
        for path in (prefix, *prefix.rglob("*")):
            if path.is_dir():
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
        yield prefix
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(directory)], check=False)
        shutil.rmtree(directory)


def test_image_runs_as_a_number_that_is_not_root(image: Stage) -> None:
    """Kubernetes can tell only from a number that a user is not root; whatever copies files comes before, as root."""
    assert image.last("USER").text == f"{USER}:{USER}"
    words = [one.word for one in image.instructions]
    assert not {"RUN", "COPY", "ADD"} & set(words[words.index("USER") :])


def test_image_starts_the_daemon_without_a_shell(image: Stage) -> None:
    """The daemon is process 1 and gets the signals itself; `docker run IMAGE check …` reaches the other commands."""
    assert image.last("ENTRYPOINT").argv + image.last("CMD").argv == ["remediator", "serve"]
    assert image.last("STOPSIGNAL").text == "SIGTERM"


def test_image_checks_its_health_without_curl(image: Stage) -> None:
    """The check is the exec form and runs Python, which is there."""
    options, _, command = image.last("HEALTHCHECK").text.partition("CMD ")
    assert command.startswith('["python", "-c", ')
    assert "/-/ready" in command
    assert "--timeout=" in options


def test_image_writes_only_to_its_state(image: Stage) -> None:
    """One volume, where the settings' default keeps the state, owned by the user that runs."""
    assert image.last("VOLUME").text == "/var/lib/remediator"
    made = image.last("RUN").text
    assert made == f"install --directory --owner={USER} --group={USER} --mode=0700 /var/lib/remediator"
    assert image.last("ENV").pairs["PYTHONDONTWRITEBYTECODE"] == "1"


def test_image_is_reached_from_outside_of_its_container(image: Stage) -> None:
    """The default address would be the container alone, and its health check would still be content."""
    environment = image.last("ENV").pairs
    assert environment["REMEDIATOR_LISTEN__HOST"] == "0.0.0.0"
    assert image.last("EXPOSE").text == environment["REMEDIATOR_URL"].rpartition(":")[2]


def test_image_takes_only_finished_things_from_its_build(image: Stage) -> None:
    """No sources, no pip and no cache come along; both stages stand on the same base, or the environment would not run."""
    assert [one.text for one in image.all("COPY")] == [
        "--from=build /opt/remediator /opt/remediator",
        "--from=build /src/rules /usr/share/remediator/rules",
    ]
    assert {stage.base for stage in dockerfile()} == {"${BASE}"}
    assert not image.all("ADD")


def test_image_says_what_it_is(image: Stage) -> None:
    """Labels name title, licence, version and revision; the version follows the project's."""
    labels = image.last("LABEL").pairs
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.title"] == project["name"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert f"VERSION={project['version']}" in [one.text for one in image.all("ARG")]


def test_every_package_in_the_image_is_hashed(build: Stage) -> None:
    """Whatever is taken from an index comes from a lock with hashes, as a wheel: nothing foreign runs during the build."""
    for one in build.all("RUN"):
        if "pip" in one.text.split()[0]:
            assert "--no-index" in one.text or {"--require-hashes", "--only-binary"} <= set(one.text.split())


def test_the_build_sees_only_what_it_copies(build: Stage) -> None:
    """The build context is closed but for what the Dockerfile names, so that no key and no state can slip into a layer."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    opened = {line.removeprefix("!").removesuffix("/**") for line in lines if line.startswith("!")}
    copied = {name for one in build.all("COPY") for name in one.text.split()[:-1]}
    assert lines[0] == "*"
    assert opened == copied


def test_the_runtime_lock_leaves_development_out() -> None:
    """No test framework, type checker or linter is installed in the image; what the daemon asks for is, with what that needs."""
    chosen = locked(runtime_lock())
    assert {"aiohttp", "asyncpg", "cel-expr-python", "kubernetes", "pydantic", "pydantic-core", "redis", "uvloop"} <= chosen.keys()
    assert not {"pytest", "mypy", "ruff", "hypothesis", "helm-python-sdk", "setuptools", "kubernetes-validate"} & chosen.keys()


def test_the_runtime_lock_refuses_what_is_not_locked() -> None:
    """A dependency added without `make lock` stops the build instead of being left out."""
    with pytest.raises(ValueError, match=r"requirements\.lock has no leftpad"):
        closure(["leftpad"], pins("aiohttp==1 \\\n    --hash=sha256:00\n    # via remediator (pyproject.toml)\n"))


def test_the_wheel_has_all_that_the_daemon_reads(built: Path) -> None:
    """Migrations, actions, every rule pack, pages and what they need are installed, not only the modules."""
    site = next(built.glob("lib/python3*/site-packages"))
    for top in ("remediator", "actions", "rules"):
        there = {path.relative_to(ROOT) for path in (ROOT / top).rglob("*") if path.suffix in FILES}
        assert {path for path in there if not (site / path).is_file()} == set()
    assert {path.name for path in site.iterdir() if path.name.startswith(("remediator", "actions", "rules"))} == {
        "remediator",
        "actions",
        "rules",
        f"remediator-{__version__}.dist-info",
    }
    record = (site / f"remediator-{__version__}.dist-info/RECORD").read_text()
    assert {line.partition("/")[0] for line in record.splitlines()} == {
        "remediator",
        "actions",
        "rules",
        f"remediator-{__version__}.dist-info",
        "..",
    }


def test_the_image_holds_no_installer(built: Path) -> None:
    """Whoever gets in finds no pip in the environment."""
    assert (built / "bin/remediator").is_file()
    assert not list(built.glob("bin/pip*"))
    assert not list(built.glob("lib/python3*/site-packages/pytest"))


class Running:
    """The daemon from the image's environment, as the image's user where the tests may change users."""

    def __init__(self, prefix: Path, state: Path) -> None:
        self.port = free_port()
        self.state = state
        state.mkdir()
        config = prefix.parent / "etc" / "remediator.yaml"
        config.parent.mkdir()
        config.write_text("alertmanager: []\n")
        foreign = {}
        if os.geteuid() == 0 and open_to_all(interpreter()):
            os.chown(state, USER, USER)
            foreign = {"user": USER, "group": USER, "extra_groups": []}
        environment = {
            **dockerfile()[-1].last("ENV").pairs,
            "PATH": f"{prefix}/bin:/usr/bin:/bin",
            "REMEDIATOR_CONFIG": str(config),
            "REMEDIATOR_LISTEN__HOST": "127.0.0.1",
            "REMEDIATOR_LISTEN__PORT": str(self.port),
            "REMEDIATOR_STORE__URL": f"sqlite://{state}/remediator.sqlite",
            "REMEDIATOR_PACKS": f"{{general: {{path: {prefix.parent}/src/rules/general}}}}",
            "REMEDIATOR_URL": f"http://127.0.0.1:{self.port}",
            "HOME": "/nonexistent",
            "TMPDIR": "/nonexistent",
        }
        self.environment = environment
        self.process = subprocess.Popen(
            [f"{prefix}/bin/remediator", *dockerfile()[-1].last("CMD").argv],
            cwd=state,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **foreign,
        )

    async def get(self, path: str) -> tuple[int, str]:
        """Ask it; status 0 while nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}{path}") as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""


@pytest.fixture
async def running(built: Path) -> AsyncIterator[Running]:
    """Start it, and make sure that it ends."""
    daemon = Running(built, built.parent / "state")
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
        await asyncio.to_thread(daemon.process.communicate)


async def test_the_image_serves_as_nobody_special_from_a_read_only_tree(built: Path, running: Running) -> None:
    """Started as the image starts it, by a user who may write to the state's directory only and has neither home nor /tmp, it becomes
    ready with the packs of the image, is content with its own health check, and ends orderly on SIGTERM.
    """

    async def ready() -> bool:
        if running.process.poll() is not None:
            raise AssertionError(running.process.communicate()[0].decode())
        return (await running.get("/-/ready"))[0] == 200

    await eventually(ready, what="the daemon from the image is ready", every=0.1)
    loaded = (await running.get("/metrics"))[1]
    assert "remediator_rules_loaded 0.0" not in loaded
    assert "remediator_dry_run 1.0" in loaded
    status, door = await running.get("/ui/sign-in")
    assert (status, "Your token" in door) == (200, True)
    check = dockerfile()[-1].last("HEALTHCHECK").text.partition("CMD ")[2]
    healthy = await asyncio.create_subprocess_exec(built / "bin/python", "-c", check.split('"')[5], env=running.environment)
    assert await healthy.wait() == 0
    running.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(running.process.wait, 20) == 0
    assert {path.name.partition(".")[0] for path in running.state.iterdir()} == {"remediator"}
