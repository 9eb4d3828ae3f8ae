"""The door out of the host: who may use it, and that nothing passes when it is closed."""

from __future__ import annotations

import ssl

import certifi
import httpx
import pytest

from paceline import network
from paceline.errors import OfflineError, UsageError

VARIABLES = ("PACELINE_OFFLINE", "SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("value", "offline"),
    [("1", True), ("true", True), ("yes", True), ("ON", True), ("?", True), ("", False), ("0", False), ("No", False)],
)
def test_what_the_variable_may_say(value, offline):
    assert network.is_offline({"PACELINE_OFFLINE": value}) is offline


def test_a_client_has_a_name_and_follows(file_server):
    file_server.files["/a"] = b"what was asked for", "text/plain"
    with network.client() as client:
        answer = client.get(f"{file_server.url}/a")
        assert answer.text == "what was asked for"
        assert answer.request.headers["User-Agent"].startswith("paceline/")
        assert client.timeout == httpx.Timeout(60.0, connect=20.0)
    with network.client(timeout=1.0, headers={"Accept": "text/html"}) as client:
        assert client.timeout == httpx.Timeout(1.0)
        assert client.headers["Accept"] == "text/html"
        assert client.headers["User-Agent"].startswith("paceline/")


def test_offline_nothing_is_sent_also_by_a_client_that_was_there_before(file_server, monkeypatch):
    with network.client() as client:
        monkeypatch.setenv("PACELINE_OFFLINE", "1")
        with pytest.raises(OfflineError, match=r"/a was not asked: Paceline is offline \(PACELINE_OFFLINE is set\)"):
            client.get(f"{file_server.url}/a?token=secret")
    assert file_server.asked == []


def test_offline_a_redirect_is_not_followed(monkeypatch):
    def answer(request):
        monkeypatch.setenv("PACELINE_OFFLINE", "1")
        return httpx.Response(302, headers={"Location": "https://elsewhere.test/b"})

    with (
        network.client(transport=httpx.MockTransport(answer)) as client,
        pytest.raises(OfflineError, match="elsewhere"),
    ):
        client.get("https://here.test/a")


class TestCertificates:
    def test_the_public_ones_and_the_systems(self):
        context = network._certificates({})
        public = ssl.create_default_context(cafile=certifi.where()).cert_store_stats()["x509_ca"]
        assert context.cert_store_stats()["x509_ca"] >= public > 0
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname

    @pytest.mark.parametrize("name", ["SSL_CERT_FILE", "PIP_CERT"])
    def test_those_named_alone(self, name, tmp_path):
        first = certifi.contents().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
        (tmp_path / "own.pem").write_text(first)
        context = network._certificates({name: str(tmp_path / "own.pem")})
        assert context.cert_store_stats()["x509_ca"] == 1

    def test_what_cannot_be_read_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
        with pytest.raises(UsageError, match=r"SSL_CERT_FILE names .*gone\.pem, which cannot be read: No such file"):
            network.client()
        (tmp_path / "gone.pem").write_text("no certificate")
        with pytest.raises(UsageError, match="SSL_CERT_FILE names"):
            network.client()


def test_a_proxy_that_is_none(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "gopher://here:70")
    with pytest.raises(UsageError, match=r"the proxy .* cannot be used"):
        network.client()
