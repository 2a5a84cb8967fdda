"""Reading packs from disk: what is read, and what is said about what can't be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remediator.errors import InvalidFiles
from remediator.rules.files import MAX_FILES, read_pack
from remediator.rules.parse import MAX_BYTES


def fault(path: Path) -> list[str]:
    """Return the problems of a directory that can't be read."""
    with pytest.raises(InvalidFiles) as caught:
        read_pack(path)
    return [str(problem) for problem in caught.value.problems]


@contextmanager
def nobody() -> Iterator[None]:
    """Run as a user without rights, where the tests run as root; permissions mean nothing to root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def let_through(path: Path) -> None:
    """Let everybody reach `path` through pytest's own directories, which are closed to others."""
    for directory in (path, *path.parents):
        if directory.name.startswith(("pytest-", "popen-", path.name)):
            directory.chmod(0o755)


def test_reads_yaml_files(tmp_path: Path) -> None:
    """All YAML files directly in the directory are read, nothing else."""
    for name in ("pack.yaml", "a.yaml", "b.yml", "notes.md", ".hidden.yaml"):
        (tmp_path / name).write_text(name)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.yaml").write_text("c")
    source = read_pack(tmp_path, name="shop", values={"a": 1})
    assert (source.name, source.vars) == ("shop", {"a": 1})
    assert source.files == {str(tmp_path / name): name.encode() for name in ("a.yaml", "b.yml", "pack.yaml")}
    assert read_pack(tmp_path).name == tmp_path.name


def test_links_of_a_configmap_are_followed(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap as links to a hidden directory beside them."""
    (tmp_path / "..2025").mkdir()
    (tmp_path / "..2025" / "a.yaml").write_text("a")
    (tmp_path / "..data").symlink_to("..2025")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert read_pack(tmp_path).files == {str(tmp_path / "a.yaml"): b"a"}


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    """A link can't bring a file from elsewhere into a pack; a broken link and a circle of links are named too."""
    pack = tmp_path / "pack"
    pack.mkdir()
    secret = tmp_path / "secret.yaml"
    secret.write_text("secret")
    (pack / "a.yaml").symlink_to(secret)
    (pack / "b.yaml").symlink_to("nothing.yaml")
    (pack / "c.yaml").symlink_to("c.yaml")
    first, second, third = fault(pack)
    assert first == f"{pack}/a.yaml:1:1: it is a link that leads out of the pack, to {secret}"
    assert second == f"{pack}/b.yaml:1:1: No such file or directory"
    assert third.startswith(f"{pack}/c.yaml:1:1: ")
    assert "link" in third.lower() or "loop" in third.lower()


def test_directory_without_permission(tmp_path: Path) -> None:
    """A directory that may not be read is named, with the reason."""
    pack = tmp_path / "pack"
    pack.mkdir()
    let_through(tmp_path)
    pack.chmod(0)
    with nobody():
        found = fault(pack)
    pack.chmod(0o755)
    assert found == [f"{pack}:1:1: the directory can't be read: Permission denied"]


def test_file_without_permission(tmp_path: Path) -> None:
    """A file that may not be read is named; the others are no substitute for it."""
    let_through(tmp_path)
    (tmp_path / "a.yaml").write_text("a")
    (tmp_path / "b.yaml").write_text("b")
    (tmp_path / "b.yaml").chmod(0)
    with nobody():
        found = fault(tmp_path)
    assert found == [f"{tmp_path}/b.yaml:1:1: Permission denied"]


def test_what_is_no_directory(tmp_path: Path) -> None:
    """A path that is missing or a file is named."""
    assert fault(tmp_path / "nothing") == [f"{tmp_path}/nothing:1:1: the directory can't be read: No such file or directory"]
    (tmp_path / "file").write_text("")
    assert fault(tmp_path / "file") == [f"{tmp_path}/file:1:1: the directory can't be read: Not a directory"]


def test_what_is_no_file(tmp_path: Path) -> None:
    """A directory or a pipe named like a file is refused at once; opening the pipe must not wait for a writer."""
    (tmp_path / "a.yaml").mkdir()
    os.mkfifo(tmp_path / "b.yaml")
    assert fault(tmp_path) == [f"{tmp_path}/{name}.yaml:1:1: it is not a regular file" for name in "ab"]


def test_empty_and_large(tmp_path: Path) -> None:
    """A pack without files is a mistake, and so is a file of more than 1 MiB."""
    assert fault(tmp_path) == [f"{tmp_path}:1:1: it holds no .yaml file"]
    (tmp_path / "a.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    assert fault(tmp_path) == [f"{tmp_path}/a.yaml:1:1: the file has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are read"]


def test_too_many_files(tmp_path: Path) -> None:
    """The number of files is limited."""
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.yaml").touch()
    assert fault(tmp_path) == [f"{tmp_path}:1:1: it holds {MAX_FILES + 1} files; at most {MAX_FILES} are read"]
