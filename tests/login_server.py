"""A small OpenID provider on this machine, as the Hub is one to its Spaces.

`with serve({"alice": TOKEN}) as provider:` gives `provider.settings`, the environment of the app;
who logs in clicks on their name. `provider.granted` are the people that got a token.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

CLIENT, SECRET = "a-space", "a-secret-of-the-space"
SCOPES = "openid profile write-repos"


@dataclass
class Provider:
    """Names with their tokens; codes that were given out, each for one use."""

    people: dict[str, str]
    key: Any
    url: str = ""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    granted: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        return {
            **{"SYSTEM": "spaces", "SPACE_ID": "lab/space", "OAUTH_CLIENT_ID": CLIENT},
            **{"OAUTH_CLIENT_SECRET": SECRET, "OAUTH_SCOPES": SCOPES},
            "OPENID_PROVIDER_URL": self.url,
        }

    def told_of(self, name: str) -> dict[str, str]:
        page = f"{self.url}/{name}"
        return {
            **{"sub": name, "name": name.title(), "preferred_username": name},
            **{"profile": page, "picture": f"{page}.png"},
        }


class Handler(BaseHTTPRequestHandler):
    provider: Provider

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(place.query).items()}
        url = self.provider.url
        if place.path == "/.well-known/openid-configuration":
            self.reply(
                {
                    **{"issuer": url, "jwks_uri": f"{url}/keys"},
                    "authorization_endpoint": f"{url}/authorize",
                    **{"token_endpoint": f"{url}/token", "userinfo_endpoint": f"{url}/userinfo"},
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )
        elif place.path == "/keys":
            self.reply({"keys": [{**self.provider.key.as_dict(private=False), "use": "sig"}]})
        elif place.path == "/authorize" and asked["client_id"] == CLIENT:
            assert asked["scope"] == SCOPES
            links = (
                f'<a href="/grant?{urlencode({**asked, "who": name})}">I am {name}</a> '
                for name in self.provider.people
            )
            self.send(200, "".join(links).encode(), {"Content-Type": "text/html"})
        elif place.path == "/grant":
            code = secrets.token_urlsafe(16)
            self.provider.codes[code] = asked
            back = urlencode({"code": code, "state": asked["state"]})
            self.send(302, b"", {"Location": f"{asked['redirect_uri']}&{back}"})
        else:
            self.send(404, b"", {})

    def do_POST(self) -> None:
        from joserfc import jwt

        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        sent = {name: values[0] for name, values in parse_qs(body).items()}
        known = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        asked = self.provider.codes.pop(sent.get("code", ""), None)  # for one use
        right = self.headers["Authorization"] == f"Basic {known}"
        if not right or asked is None or sent["redirect_uri"] != asked["redirect_uri"]:
            return self.reply({"error": "invalid_grant"}, 400)
        who, now = asked["who"], int(time.time())
        claims = {
            **{"iss": self.provider.url, "aud": CLIENT, "iat": now, "exp": now + 600},
            **{"nonce": asked["nonce"], **self.provider.told_of(who)},
        }
        self.provider.granted.append(who)
        self.reply(
            {
                **{"access_token": self.provider.people[who], "token_type": "bearer"},
                **{"expires_in": 600, "scope": SCOPES},
                "id_token": jwt.encode({"alg": "RS256"}, claims, self.provider.key),
            }
        )

    def reply(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serve(people: dict[str, str]) -> Iterator[Provider]:
    """A provider on a free port of this machine for as long as the block runs."""
    from joserfc.jwk import RSAKey

    provider = Provider(people, RSAKey.generate_key(2048, {"kid": "one"}, auto_kid=False))
    handler = type("BoundHandler", (Handler,), {"provider": provider})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
