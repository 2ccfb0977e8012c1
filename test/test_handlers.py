"""The handlers, in process."""

import re

import pytest

import server

TEXT = b"test gitlab_cicd api success"


@pytest.fixture
def app():
    """The application that pytest-tornado serves."""
    return server.make_app()


async def fetch(http_client, base_url, path, **arguments):
    return await http_client.fetch(base_url + path, raise_error=False, **arguments)


@pytest.mark.gen_test
async def test_get_answers_the_text(http_client, base_url):
    response = await fetch(http_client, base_url, "/test")
    assert (response.code, response.body) == (200, TEXT)


@pytest.mark.gen_test
async def test_post_answers_the_text(http_client, base_url):
    response = await fetch(http_client, base_url, "/test", method="POST", body="anything")
    assert (response.code, response.body) == (200, TEXT)


@pytest.mark.gen_test
async def test_the_text_is_plain_utf8(http_client, base_url):
    response = await fetch(http_client, base_url, "/test")
    assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"


@pytest.mark.parametrize("path", ["/", "/test/", "/tests", "/Test", "/test/../etc/passwd", "/%00"])
@pytest.mark.gen_test
async def test_every_other_path_is_not_found(http_client, base_url, path):
    assert (await fetch(http_client, base_url, path)).code == 404


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.gen_test
async def test_every_other_method_is_not_allowed(http_client, base_url, method):
    response = await fetch(
        http_client, base_url, "/test", method=method, allow_nonstandard_methods=True
    )
    assert response.code == 405


@pytest.mark.parametrize("size, status", [(server.MAX_BODY, 200), (server.MAX_BODY + 1, 413)])
@pytest.mark.gen_test
async def test_a_body_over_one_mebibyte_is_too_large(http_server, http_client, base_url, size, status):
    response = await fetch(http_client, base_url, "/test", method="POST", body=b"x" * size)
    assert response.code == status


@pytest.mark.parametrize("path, method, status", [
    ("/test", "GET", 200), ("/test", "POST", 200), ("/", "GET", 404), ("/test", "DELETE", 405),
])
@pytest.mark.gen_test
async def test_every_answer_names_its_release(
    http_client, base_url, monkeypatch, path, method, status
):
    monkeypatch.setattr(server, "RELEASE", "0123abcd")
    response = await fetch(
        http_client, base_url, path, method=method, allow_nonstandard_methods=True
    )
    assert (response.code, response.headers["X-Release"]) == (status, "0123abcd")


@pytest.mark.gen_test
async def test_the_refusal_of_a_large_body_names_its_release(http_client, base_url):
    response = await fetch(
        http_client, base_url, "/test", method="POST", body=b"x" * (server.MAX_BODY + 1)
    )
    assert response.headers["X-Release"] == "dev"


@pytest.mark.gen_test
async def test_each_request_is_one_line_of_access_log(http_client, base_url, capsys):
    await fetch(http_client, base_url, "/test?password=secret")
    await fetch(http_client, base_url, "/nowhere", method="POST", body="")
    first, second = capsys.readouterr().out.splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"
    assert re.fullmatch(stamp + r" 200 GET /test \d+\.\dms", first)
    assert re.fullmatch(stamp + r" 404 POST /nowhere \d+\.\dms", second)
