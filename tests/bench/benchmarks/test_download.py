from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.benchmarks.download import Archive, extract, fetch, find_folder, obtain
from methods.errors import MissingError, UsageError

CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`, by ranges unless told otherwise, and can break off early."""

    content = CONTENT
    ranges = True
    break_after: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.server.requested.append(requested)
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and self.server.ranges else 0
        if requested and self.server.ranges and start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if requested and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.break_after])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def closed_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/data.tar"


def test_download_arrives_whole_and_alone(server: Server, tmp_path: Path) -> None:
    dest = fetch(server.url, tmp_path / "new" / "data.tar", MD5)
    assert dest.read_bytes() == CONTENT
    assert list(dest.parent.iterdir()) == [dest]
    assert server.requested == [None]


def test_download_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    dest = tmp_path / "data.tar"
    server.break_after = 1000
    with pytest.raises(MissingError, match="broke off after 1,000 of 10,240 bytes"):
        fetch(server.url, dest, MD5)
    assert not dest.exists()
    server.break_after = None
    assert fetch(server.url, dest, MD5).read_bytes() == CONTENT
    assert server.requested == [None, "bytes=1000-"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "data.tar.part").write_bytes(b"something else")
    assert fetch(server.url, tmp_path / "data.tar", MD5).read_bytes() == CONTENT


def test_a_part_that_is_complete_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.tar.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "data.tar", MD5).read_bytes() == CONTENT


def test_wrong_checksum_removes_what_arrived(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"has md5 {MD5} instead of {'0' * 32}.*removed") as caught:
        fetch(server.url, tmp_path / "data.tar", "0" * 32)
    assert not isinstance(caught.value, MissingError)
    assert list(tmp_path.iterdir()) == []


def test_no_connection_says_what_to_do_by_hand(tmp_path: Path) -> None:
    url = closed_url()
    with pytest.raises(MissingError) as caught:
        fetch(url, tmp_path / "data.tar", MD5)
    message = str(caught.value)
    assert url in message
    assert f"put it here: {tmp_path / 'data.tar'}" in message
    assert MD5 in message
    assert list(tmp_path.iterdir()) == []


def test_a_refused_request_keeps_the_part(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.send_error(404))
    part = tmp_path / "data.tar.part"
    part.write_bytes(b"begun")
    with pytest.raises(MissingError, match="Not Found"):
        fetch(server.url, tmp_path / "data.tar", MD5)
    assert part.read_bytes() == b"begun"


def test_missing_data_name_everything_that_was_looked_for(tmp_path: Path) -> None:
    roots = (tmp_path / "one", tmp_path / "two")
    archive = Archive(what="Toys", url=closed_url(), md5=MD5, folder="toys")
    with pytest.raises(MissingError, match=r"Toys is not here: looked for toys/ and data\.tar in") as caught:
        obtain(archive, roots)
    for part in (*map(str, roots), archive.url, str(roots[0] / "data.tar")):
        assert part in str(caught.value)


def toys(path: Path, url: str) -> Archive:
    tar_of(path, {"toys/ball": b"round"})
    return Archive("Toys", url, hashlib.md5(path.read_bytes()).hexdigest(), "toys")


def test_an_archive_in_any_root_is_used_without_network(tmp_path: Path) -> None:
    roots = (tmp_path / "one", tmp_path / "two")
    roots[1].mkdir()
    archive = toys(roots[1] / "data.tar", closed_url())
    assert find_folder(archive, roots) == roots[1] / "data.tar"
    folder = obtain(archive, roots)
    assert folder == roots[0] / "toys"
    assert (folder / "ball").read_bytes() == b"round"
    assert find_folder(archive, roots) == folder


def test_a_wrong_archive_in_a_root_is_kept_and_named(tmp_path: Path) -> None:
    (tmp_path / "data.tar").write_bytes(b"another file")
    with pytest.raises(UsageError, match="remove it and it is downloaded again"):
        obtain(Archive("Toys", closed_url(), MD5, "toys"), (tmp_path,))
    assert (tmp_path / "data.tar").exists()


def test_an_absent_archive_is_downloaded_and_unpacked(server: Server, tmp_path: Path) -> None:
    archive = toys(tmp_path / "published.tar", server.url)
    server.content = (tmp_path / "published.tar").read_bytes()
    folder = obtain(archive, (tmp_path / "root",))
    assert (folder / "ball").read_bytes() == b"round"


def test_an_unpacked_folder_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "two" / "toys").mkdir(parents=True)
    archive = Archive("Toys", closed_url(), MD5, "toys")
    assert obtain(archive, (tmp_path / "one", tmp_path / "two")) == tmp_path / "two" / "toys"


@pytest.mark.parametrize("evil", ["../evil", "toys/../../evil"])
def test_a_member_that_leaves_the_folder_is_refused(evil: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    archive = tar_of(home / "data.tar", {"toys/ball": b"round", evil: b"!"})
    with pytest.raises(UsageError, match="a member would leave its folder"):
        extract(archive, home / "root" / "toys")
    assert not list(tmp_path.rglob("evil"))
    assert list((home / "root").iterdir()) == []


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("toys/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(UsageError, match="a member would leave its folder"):
        extract(path, tmp_path / "root" / "toys")


def test_an_archive_without_the_folder_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "data.tar", {"other/ball": b"round"})
    with pytest.raises(UsageError, match="holds no folder 'toys'"):
        extract(archive, tmp_path / "root" / "toys")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_damaged_archive_is_a_sentence(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "data.tar", {"toys/ball": bytes(5000)}).read_bytes()
    (tmp_path / "data.tar").write_bytes(whole[:2000])
    with pytest.raises(UsageError, match="cannot be unpacked"):
        extract(tmp_path / "data.tar", tmp_path / "root" / "toys")
    assert list((tmp_path / "root").iterdir()) == []
