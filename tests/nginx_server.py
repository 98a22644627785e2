"""nginx with the configuration that comes with quantline, in front of Debian's docker-registry."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from pipeline.core.process import Daemon, free_port
from tests.registry_server import (
    READY_TIMEOUT_S,
    Server,
    htpasswd_file,
    private_certificate,
    registry_server,
)
from tests.support import ROOT, require_program

CONFIGURATION = ROOT / "deploy" / "nginx-ollama.conf"
MAIN = """user root;
daemon off;
worker_processes 2;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/site.conf;
}}
"""


@contextmanager
def nginx_server(directory: Path, *, readers: str = "127.0.0.0/8") -> Iterator[Server]:
    """The registry behind nginx; `readers` is the network that may read without a login.

    Only what the configuration says to EDIT is edited. This process trusts the certificate.
    """
    nginx = require_program("nginx")
    with registry_server(directory) as registry, pytest.MonkeyPatch.context() as patch:
        port = free_port()
        certificate = private_certificate(directory)
        site = CONFIGURATION.read_text()
        for old, new in {
            r"listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            r"/etc/nginx/registry/certificate\.pem": str(certificate),
            r"/etc/nginx/registry/key\.pem": str(directory / "key.pem"),
            r"/etc/nginx/registry/htpasswd": str(htpasswd_file(directory)),
            r"allow 10\.0\.0\.0/8": f"allow {readers}",
            r"127\.0\.0\.1:5000;": f"{registry.host};",
        }.items():
            site, count = re.subn(old, new, site)
            assert count, old
        (directory / "site.conf").write_text(site)
        (directory / "nginx.conf").write_text(MAIN.format(directory=directory))
        patch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        conf_path = directory / "nginx.conf"
        command: list[str | Path] = [nginx, "-e", "stderr", "-p", directory, "-c", conf_path]
        log_path = directory / "nginx.log"
        with Daemon(command, log_path=log_path, environment={}) as daemon:
            url = f"https://127.0.0.1:{port}"
            daemon.wait_until(lambda: _answers(url), timeout_s=READY_TIMEOUT_S, what="nginx")
            yield Server(url, registry.storage, log_path)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/v2/", timeout=5).status_code in (200, 401)
    except requests.ConnectionError:
        return False
