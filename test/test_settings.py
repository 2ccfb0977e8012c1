"""How a handler reads a setting and a secret of the service: the same way on every machine."""

import os
from pathlib import Path

import pytest

import server


class DatabaseHandler(server.Handler):
    """APP_... is an environment variable; APP_SECRET_... is one, too, and names a file."""

    def get(self):
        password = Path(os.environ["APP_SECRET_DATABASE_PASSWORD"]).read_text().strip()
        self.write(f"{os.environ['APP_DATABASE_HOST']} {password}")


@pytest.fixture
def app():
    """The service with that handler."""
    app = server.make_app()
    app.add_handlers(".*", [("/database", DatabaseHandler)])
    return app


@pytest.mark.gen_test
async def test_a_handler_reads_a_setting_and_a_secret(http_client, base_url, monkeypatch, tmp_path):
    (tmp_path / "password").write_text("pa55word\n")
    monkeypatch.setenv("APP_DATABASE_HOST", "database")
    monkeypatch.setenv("APP_SECRET_DATABASE_PASSWORD", str(tmp_path / "password"))
    response = await http_client.fetch(base_url + "/database")
    assert response.body.decode() == "database pa55word"
