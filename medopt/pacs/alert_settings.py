"""The section `alerts` of a node file: what is told to whom, and when."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from medopt.config import Section
from medopt.config.section import Fraction, Positive
from medopt.core.clear_text import is_in_clear
from medopt.core.errors import ConfigError
from medopt.pacs.peers import HeaderSecret, Host, Port, require_encrypted


def _webhook_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or not text.isascii() or not text.isprintable() or parts.fragment:
        raise ValueError("it takes a URL, as in https://alerts.example/medopt")
    if parts.username is not None or parts.password is not None or parts.query:
        raise ValueError(
            "the URL may hold no user, password or query: name a file with the header Authorization in headers, or "
            "one with the whole URL as url: {file: webhook.secret}"
        )
    return text


Address = Annotated[str, StringConstraints(pattern=r"^[^@\s<>,;:\"]+@[^@\s<>,;:\"]+$", max_length=254)]
Hour = Annotated[int, Field(ge=0, le=23)]


class Webhook(Section):
    """A service that takes alerts by HTTP POST, as JSON: id, node, alert, state (begins or ends), text and at."""

    url: Annotated[str, AfterValidator(_webhook_url)] | HeaderSecret
    """Where to post, as in https://alerts.example/medopt. Of a URL that is itself a secret, {file: webhook.secret} or
    {variable: NAME}."""
    headers: dict[str, HeaderSecret] = Field(default_factory=dict)
    """Headers to send, as in {Authorization: {file: webhook.secret}}; to another machine by https:// only."""
    authority: Path | None = None
    """The certificates (PEM) of the authorities that may sign the service's certificate; by default the system's."""

    @model_validator(mode="after")
    def _headers_are_encrypted(self) -> Self:
        if isinstance(self.url, str):
            require_encrypted(self.url, self.headers)
        return self

    def address(self) -> str:
        """The URL as it is now; raises ConfigError, which does not quote it."""
        if isinstance(self.url, str):
            return self.url
        text = self.url.read()
        if not text.startswith(("https://", "http://")):
            raise ConfigError("The secret that alerts.webhook.url names holds no URL, as in https://alerts.example/x.")
        if is_in_clear(text):
            raise ConfigError(
                "The URL that alerts.webhook.url names is a secret and would be sent in clear: it must begin with "
                "https:// unless it is of this machine."
            )
        return text


class Email(Section):
    """A mail server that takes alerts by SMTP."""

    host: Host
    port: Port = 587
    sender: Address
    """The address that the messages come from."""
    to: list[Address] = Field(min_length=1)
    starttls: bool = True
    """True: the connection is encrypted (STARTTLS), and the server's certificate is checked."""
    authority: Path | None = None
    """The certificates (PEM) of the authorities that may sign the server's certificate; by default the system's."""
    user: str | None = None
    password: HeaderSecret | None = None
    """Where the user's password is kept, as in {file: mail.secret} or {variable: NAME}."""

    @model_validator(mode="after")
    def _password_is_encrypted(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together")
        if self.user is not None and not self.starttls:
            raise ValueError("a password is sent with starttls: true only")
        return self


class AlertSettings(Section):
    """Tells people when the node or its release needs a look: once when it begins, once when it ends.

    Messages hold aggregates only. A rule that is null is off; an alert ends when its figure is a tenth below the limit.
    """

    webhook: Webhook | None = None
    email: Email | None = None
    plan: Path | None = None
    """The release's change plan: only columns that its `triggers` name give alerts on drift, and these say what the
    plan starts. By default every column does."""
    declined: Fraction | None = 0.2
    """The share of scans that the release declines."""
    drift: Positive | None = 0.25
    """The population stability index of a column of `medopt drift`, where it exceeds what chance reaches, too."""
    waiting_minutes: Positive | None = 30
    """How long a complete study waits for its answer, or a result for its destination."""
    parked: int | None = Field(1, ge=1)
    """How many studies and results wait for a person."""
    days: Positive = 7
    """Shares and drift are those of the last days, on the monitoring page, too."""
    scans: int = Field(30, ge=1)
    """Of fewer scans in these days, shares and drift give no alert."""
    every_minutes: Positive = 5
    """How often the node looks."""
    quiet_hours: tuple[Hour, Hour] | None = None
    """Hours of this machine's day in which nothing is sent, as in [22, 6]; it is sent at their end."""
    first_seconds: Positive = 30
    """The wait after the first failure to send; it doubles with each further one, up to an hour."""
    tries: int = Field(30, ge=1)
    """After so many failures a message is given up."""

    @model_validator(mode="after")
    def _somebody_is_told(self) -> Self:
        if self.webhook is None and self.email is None:
            raise ValueError("name a webhook or an email that takes the alerts")
        return self

    def due(self, now: float) -> float:
        """When a message of now may be sent: now, or when the quiet hours end."""
        if self.quiet_hours is None or self.quiet_hours[0] == self.quiet_hours[1]:
            return now
        first, last = self.quiet_hours
        local = datetime.fromtimestamp(now)
        quiet = first <= local.hour < last if first < last else local.hour >= first or local.hour < last
        if not quiet:
            return now
        end = local.replace(hour=last, minute=0, second=0, microsecond=0)
        return (end if end > local else end + timedelta(days=1)).timestamp()

    def require_readable(self) -> None:
        """Raise ConfigError where the change plan or a secret cannot be read."""
        drift_triggers(self.plan)
        if self.webhook is not None:
            self.webhook.address()
            for secret in self.webhook.headers.values():
                secret.read()
        if self.email is not None and self.email.password is not None:
            self.email.password.read()

    def with_absolute_paths(self, base: Path) -> AlertSettings:
        """The section with relative paths that start at a folder."""
        webhook, email = self.webhook, self.email
        if webhook is not None:
            url = webhook.url if isinstance(webhook.url, str) else webhook.url.in_folder(base)
            headers = {name: secret.in_folder(base) for name, secret in webhook.headers.items()}
            authority = webhook.authority and base / webhook.authority
            webhook = webhook.model_copy(update={"url": url, "headers": headers, "authority": authority})
        if email is not None:
            password = email.password and email.password.in_folder(base)
            authority = email.authority and base / email.authority
            email = email.model_copy(update={"password": password, "authority": authority})
        plan = self.plan and base / self.plan
        return self.model_copy(update={"webhook": webhook, "email": email, "plan": plan})


def drift_triggers(plan: Path | None) -> dict[str, str] | None:
    """What a change plan starts when a column has drifted; None without a plan. Raises ConfigError."""
    if plan is None:
        return None
    try:
        values = yaml.safe_load(plan.read_bytes())
        found = values.get("triggers") or {}
        if not all(isinstance(text, str) for pair in found.items() for text in pair):
            raise ValueError
    except OSError as error:
        raise ConfigError(f"The change plan {plan} of alerts.plan cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, AttributeError, ValueError):
        raise ConfigError(f"The change plan {plan} of alerts.plan has no triggers of a column and a text.") from None
    return dict(found)
