"""A visitor's own login at the Hub, which a Space offers: in a tab of its own, and used once.

The token lies in a signed cookie of the visitor's browser that no script can read. A push takes it
from the request that asks for it, and keeps it nowhere.
"""

from __future__ import annotations

import os

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from gradio.utils import get_space

from hf_transfer.base.download import HubError
from hf_transfer.results.svg import escape
from hf_transfer.serving.hub import AccessError, push
from hf_transfer.space.limits import Refused
from hf_transfer.space.models import Shown

PROVIDER = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
BACK = "/logged-in"  # where a login ends
STATUSES = (401, 403, 404)  # of the Hub for what one may not write
DONE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Logged in</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<body style="font: 1.1rem system-ui, sans-serif; margin: 3rem auto; max-width: 32rem">
<h1>Done</h1><p>Close this tab, and go on in the one that you came from.</p>
<script>new BroadcastChannel('hf-transfer-login').postMessage('changed'); window.close()</script>
"""
# Asks who is logged in: at first, after a login in the other tab, and after a logout.
WATCH = """
const ask = () => trigger('ask', {});
let left = false;
element.addEventListener('click', event => {
  const act = event.target.closest('[data-act]')?.dataset.act;
  if (act === 'login') left = true;
  if (act === 'logout') fetch('/logout?_target_url=BACK').then(ask);
});
document.addEventListener('visibilitychange', () => { if (left && !document.hidden) ask(); });
new BroadcastChannel('hf-transfer-login').onmessage = ask;
ask();
""".replace("BACK", BACK)


def on_a_space() -> bool:
    """Whether this runs as a Space that lets visitors log in."""
    return bool(get_space()) and all(os.environ.get(name) for name in PROVIDER)


def end_logins(app: FastAPI) -> None:
    """Let a login end on a page that closes itself: the one it began on keeps its models."""
    app.add_api_route(BACK, lambda: HTMLResponse(DONE), include_in_schema=False)


def login_view(profile: gr.OAuthProfile | None) -> str:
    """Return who is logged in, with the way out; or the way in."""
    if profile is None:
        return (
            '<p class="hft hft-login"><a class="hft-link" target="_blank" data-act="login" '
            f'href="/login/huggingface?_target_url={BACK}">Log in to the Hub</a> '
            '<span class="hft-soft">This opens a new tab; your models stay here.</span></p>'
        )
    return (
        f'<p class="hft hft-login"><span>Logged in as <b>{escape(profile.username)}</b>.</span> '
        '<button type="button" class="hft-link" data-act="logout">Log out</button></p>'
    )


def push_as(
    model: Shown | None, repo: str, private: bool, request: gr.Request, token: str | None
) -> str:
    """Push a visitor's model as themselves; return its address. Raises Refused or HubError.

    Gradio lets pages from elsewhere send events, and the browser adds the cookie; so only what the
    browser says was asked for by this page is done.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if request.headers.get("sec-fetch-site") != "same-origin":
        raise Refused("A push can only be asked for on this page, in a current browser.")
    if model is None or model.run is None:
        raise Refused("Train a model first.")
    if token is None:
        raise Refused("Log in to the Hub first.")
    if not repo.strip():
        raise Refused("Give the repository a name first.")
    try:
        return push(model.run, repo.strip(), private=private, token=token)
    except HubError as error:
        cause = error.__cause__
        refused = isinstance(cause, HfHubHTTPError) and cause.response.status_code in STATUSES
        if refused or isinstance(error, AccessError):
            raise Refused(
                f"The Hub does not let you write to {repo.strip()}. Use a repository of your own, "
                "or log out and in again."
            ) from error
        raise
