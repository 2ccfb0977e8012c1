"""The handlers, in process."""

import re

import pytest

import server
from support import PATH


@pytest.fixture
def app():
    """The application that pytest-tornado serves."""
    return server.make_app()


async def fetch(http_client, base_url, path, **arguments):
    return await http_client.fetch(base_url + path, raise_error=False, **arguments)


@pytest.mark.gen_test
async def test_get_and_post_answer_the_text(http_client, base_url):
    for options in ({}, {"method": "POST", "body": "anything"}):
        response = await fetch(http_client, base_url, PATH, **options)
        assert response.code == 200
        assert response.body.decode() == "test gitlab_cicd api success"
        assert response.headers["Content-Type"] == "text/plain; charset=UTF-8"


@pytest.mark.parametrize("path", [PATH + "/", PATH + "s", PATH.upper(), "/nowhere", "/%00"])
@pytest.mark.gen_test
async def test_a_path_that_is_not_there_is_not_found(http_client, base_url, path):
    assert (await fetch(http_client, base_url, path)).code == 404


@pytest.mark.parametrize("method", ["BREW", "DELETE"])
@pytest.mark.gen_test
async def test_a_method_that_is_not_there_is_not_allowed(http_client, base_url, method):
    options = {"method": method, "allow_nonstandard_methods": True}
    response = await fetch(http_client, base_url, PATH, **options)
    assert (response.code, response.headers["Allow"]) == (405, "GET, HEAD, POST")


@pytest.mark.gen_test
async def test_head_is_answered_as_get_without_the_text(http_client, base_url):
    got = await fetch(http_client, base_url, PATH)
    response = await fetch(http_client, base_url, PATH, method="HEAD")
    assert (response.code, response.body) == (200, b"")
    assert response.headers["Content-Length"] == got.headers["Content-Length"]


class PostHandler(server.Handler):
    def post(self):
        pass


@pytest.mark.gen_test
async def test_a_handler_without_get_has_no_head(http_client, base_url, app):
    app.add_handlers(".*", [("/post", PostHandler)])
    for method in ("GET", "HEAD"):
        response = await fetch(http_client, base_url, "/post", method=method)
        assert (response.code, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("more, status", [(0, 200), (1, 413)])
@pytest.mark.gen_test
async def test_a_body_over_the_limit_is_too_large(http_server, http_client, base_url, more, status):
    body = b"x" * (server.MAX_BODY + more)
    response = await fetch(http_client, base_url, PATH, method="POST", body=body)
    assert response.code == status


@pytest.mark.parametrize(
    "status, path, options",
    [
        (200, PATH, {}),
        (404, "/nowhere", {}),
        (405, PATH, {"method": "BREW", "allow_nonstandard_methods": True}),
        (413, PATH, {"method": "POST", "body": b"x" * (server.MAX_BODY + 1)}),
    ],
)
@pytest.mark.gen_test
async def test_every_answer_names_its_release(
    http_client, base_url, monkeypatch, status, path, options
):
    monkeypatch.setattr(server, "RELEASE", "0123abcd")
    response = await fetch(http_client, base_url, path, **options)
    assert (response.code, response.headers["X-Release"]) == (status, "0123abcd")


@pytest.mark.gen_test
async def test_each_request_is_one_line_of_access_log(http_client, base_url, capsys):
    await fetch(http_client, base_url, f"{PATH}?password=secret")
    await fetch(http_client, base_url, "/nowhere", method="POST", body="")
    first, second = capsys.readouterr().out.splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"
    assert re.fullmatch(stamp + rf" 200 GET {PATH} \d+\.\dms", first)
    assert re.fullmatch(stamp + r" 404 POST /nowhere \d+\.\dms", second)
