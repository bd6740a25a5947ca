"""TLS, unix sockets and a path of a proxy."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ferrum.errors import FerrumError
from ferrum.server import lifecycle
from ferrum.server.listening import bind_path, tls_context
from ferrum.server.options import ServeOptions
from tests.cli.packs import write_pack
from tests.conftest import CommandLine
from tests.server.harness import running, says


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For 127.0.0.1, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ferrum test")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
    (folder / "locked.pem").write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"x")))
    return folder / "cert.pem", folder / "key.pem"


def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with running(says("x"), tls_cert=cert, tls_key=key) as server:
        trusting = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"https://127.0.0.1:{server.port}/v1/models", context=trusting, timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert plain.recv(100) == b"", "nothing is said in clear"
            raise OSError
        old = ssl.create_default_context(cafile=str(cert))
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError):
            urllib.request.urlopen(f"https://127.0.0.1:{server.port}/health", context=old, timeout=10)


def test_a_handshake_has_a_deadline(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "HEADER_SECONDS", 0.3)
    with (
        running(says("x"), tls_cert=certificate[0], tls_key=certificate[1]) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as silent,
    ):
        assert silent.recv(1) == b"", "closed, well before the client's own patience ends"


def test_certificates_that_cannot_be_used(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    (tmp_path / "nonsense").write_text("x")
    for wrong in ((tmp_path / "nonsense", key), (cert, tmp_path / "none"), (cert, cert), (cert, key.with_name("locked.pem"))):
        with pytest.raises(FerrumError) as refused:
            tls_context(ServeOptions(tls_cert=wrong[0], tls_key=wrong[1]))
        assert refused.value.code == "bad-tls"
    with pytest.raises(FerrumError, match="needs its key"):
        ServeOptions(tls_cert=cert)


def ask(path: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        sock.sendall(request)
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
        return answer


def test_a_unix_socket(tmp_path: Path, ferrum: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any Host is right there, stop and list know it, and nothing is left of it."""
    monkeypatch.setenv("FERRUM_HOME", str(tmp_path / "home"))
    pack, path = write_pack(tmp_path / "null.fpk", device="null"), str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)  # as a server that was killed leaves it
    command = [sys.executable, "-m", "ferrum", "serve", str(pack), "--trust", "--socket", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert path in process.stdout.readline()
        assert os.stat(path).st_mode & 0o777 == 0o600
        answer = ask(path, b"GET /v1/models HTTP/1.1\r\nhost: anything\r\nconnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert path in ferrum("list", "--running").stdout
        with pytest.raises(FerrumError, match="another server listens there"):
            bind_path(path)
        assert path in ferrum("stop", "--port", "9").stdout
        assert ferrum("stop", "--socket", path).stdout == f"stopped the server on {path} (pid {process.pid})\n"
        assert process.wait(10) == 0
    assert not os.path.exists(path)
    assert ferrum("list", "--running").stdout == "no server is running\n"


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "none" / "x.sock", tmp_path / ("x" * 200)):
        with pytest.raises(FerrumError) as refused:
            bind_path(str(path))
        assert refused.value.code == "socket-busy" and "another server" not in refused.value.what
    assert (tmp_path / "file").read_text() == "mine"


def test_a_path_of_a_proxy() -> None:
    with running(says("x"), root_path="/llm/a", api_key="secret-key-1") as server:
        key = {"x_api_key": "secret-key-1"}
        for path in ("/llm/a/v1/models", "/v1/models", "/llm/a/models", "/llm/a/health?x=1"):
            assert server.request("GET", path, **key)[0] == 200, path
        assert server.request("GET", "/llm/a")[1] == "ferrum is running\n"
        for path in ("/llm/ab/v1/models", "/llm/v1/models", "/llm/a/llm/a/v1/models"):
            assert server.request("GET", path, **key)[0] == 404, path
        assert server.request("GET", "/llm/a/v1/models")[0] == 401
        assert server.request("GET", "/llm/a/openapi.json", **key)[1]["servers"] == [{"url": "/llm/a"}]
    for wrong in ("llm", "/llm/", "/", "/a//b", "/a?b"):
        with pytest.raises(FerrumError):
            ServeOptions(root_path=wrong)
