"""The pages: by plain forms, as without JavaScript, and by a browser where there is one."""

from __future__ import annotations

import os
import re
import shutil
from typing import Any

import httpx
import pytest
from gate import PATIENCE_SECONDS
from web_server import WebServer, fields_of, wait_until

JOB = """kind: svd
name: {name}
input: {{matrix: a.zarr}}
params: {{n_components: 4, power_iterations: {n}, block_rows: 200}}
cluster: threads
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_a_job_by_forms_alone(server: WebServer, browser: httpx.Client) -> None:
    page = browser.get("/new")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert not re.search(r"""(src|href|action)=["'](https?:)?//""", page.text)
    bad = browser.post("/new", data={**fields_of(page.text), "spec": "kind: <b>x</b>\n", "do": "plan"})
    assert (bad.status_code, "got &#39;&lt;b&gt;x&lt;/b&gt;&#39;" in bad.text, "<b>" in bad.text) == (422, True, False)
    spec = JOB.format(name="formed", n=1)
    planned = browser.post("/new", data={**fields_of(bad.text), "spec": spec, "do": "plan"})
    assert "randomized SVD" in planned.text
    form = {**fields_of(planned.text), "spec": spec, "do": "submit"}
    sent = browser.post("/new", data=form)
    assert sent.status_code == 303
    assert browser.post("/new", data=form).headers["location"] == sent.headers["location"]  # pressed twice
    job = sent.headers["location"].rpartition("/")[2]
    server.wait_for(job, "succeeded")
    shown = browser.get(sent.headers["location"]).text
    assert "the left singular vectors are orthonormal" in shown
    assert f'<iframe sandbox title="Report of {job}"' in shown
    assert job in browser.get("/", params={"state": "succeeded", "name": "formed"}).text
    assert job not in browser.get("/", params={"state": "failed"}).text
    forgery = {"forgery": fields_of(shown)["forgery"]}
    assert browser.post(f"/jobs/{job}/cancel", data=forgery).status_code == 409
    wait_until(lambda: browser.post(f"/jobs/{job}/delete", data=forgery).status_code == 303)
    missing = browser.get(f"/jobs/{job}")
    assert (missing.status_code, "There is no job" in missing.text) == (404, True)


def test_forms_of_other_sessions_do_nothing(server: WebServer, browser: httpx.Client) -> None:
    form = fields_of(browser.get("/new").text) | {"spec": JOB.format(name="forged", n=1), "do": "submit"}
    assert httpx.post(f"{server.url}/new", data=form, timeout=PATIENCE_SECONDS).status_code == 403
    assert browser.post("/new", data=form | {"forgery": "0" * 64}).status_code == 403
    assert browser.post("/new", json=form).status_code == 415
    assert browser.post("/new", data=form, headers={"Origin": "http://evil.example"}).status_code == 403
    assert "forged" not in server.http.get("/v1/jobs").text


def test_a_browser_logs_in_with_a_token(guarded: tuple[WebServer, dict[str, str]]) -> None:
    server, tokens = guarded
    with httpx.Client(base_url=server.url, headers={"Accept": "text/html"}, timeout=PATIENCE_SECONDS) as browser:
        assert browser.get("/").headers["location"] == "/login"
        forgery = {"forgery": fields_of(browser.get("/login").text)["forgery"]}
        assert browser.post("/login", data=forgery | {"token": "guess"}).status_code == 403
        entered = browser.post("/login", data=forgery | {"token": tokens["read"]})
        assert "HttpOnly; Path=/; SameSite=strict" in entered.headers["set-cookie"]
        assert browser.get("/").status_code == 200
        form = {**forgery, "spec": JOB.format(name="x", n=1), "do": "submit"}
        assert "takes one with the scope submit" in browser.post("/new", data=form).text
        assert browser.post("/logout", data=forgery).status_code == 303
        assert browser.get("/").status_code == 303


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_job_in_a_browser(server: WebServer) -> None:
    """Typed, submitted, watched live, cancelled, resumed; on a phone, in the dark, with nothing loaded from elsewhere."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * PATIENCE_SECONDS)
    asked: set[str] = set()
    faults: list[Any] = []
    with sync_playwright() as playwright, server.gate.closed(steps=4):
        # Its own sandbox cannot be made by root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        context = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
        context.on("request", lambda request: asked.add(request.url))
        context.set_default_timeout(1000 * PATIENCE_SECONDS)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(error))
        page.goto(f"{server.url}/")
        page.keyboard.press("n")
        page.wait_for_url("**/new")  # with its script, which hears what is typed
        page.fill("#spec", JOB.format(name="browsed", n=-1))
        expect(page.locator(".say.bad")).to_contain_text("power_iterations")
        page.fill("#spec", JOB.format(name="browsed", n=8))
        expect(page.locator(".say.good")).to_contain_text("is a valid job")
        page.get_by_role("button", name="Submit").click()
        page.wait_for_url("**/jobs/browsed-*")
        expect(page.locator("pre")).to_contain_text("pass iteration-3")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("button", name="Resume")).to_be_visible()
        server.gate.open()
        page.get_by_role("button", name="Resume").click()
        expect(page.frame_locator("iframe").locator("h1")).to_contain_text("browsed")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 18, 24)"
        chromium.close()
    assert faults == []
    assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {server.url.split("/")[2]}
