"""The ways that an alert takes: a webhook and a mail server. A failure's text quotes neither address nor secret."""

from __future__ import annotations

import json
import smtplib
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime

from medopt.core.errors import ConfigError
from medopt.pacs.alert_settings import AlertSettings, Email, Webhook

Message = Mapping[str, str]
"""The keys id, node, alert, state (begins or ends), text and at (ISO 8601, UTC)."""
Send = Callable[[Message], str]
"""Sends a message; why that failed, "" if it was taken."""
_TIMEOUT_SECONDS = 15.0


def channels(settings: AlertSettings) -> dict[str, Send]:
    """How each configured channel sends."""
    found: dict[str, Send] = {}
    if (webhook := settings.webhook) is not None:
        found["webhook"] = lambda message: post(webhook, message)
    if (email := settings.email) is not None:
        found["email"] = lambda message: mail(email, message)
    return found


def post(webhook: Webhook, message: Message) -> str:
    """POST a message as JSON. No redirect is followed: another address would get the headers."""
    import requests

    try:
        headers = {name: secret.read() for name, secret in webhook.headers.items()}
        with requests.Session() as session:
            session.trust_env = False  # no .netrc: the node file says which credentials are sent
            session.verify = True if webhook.authority is None else str(webhook.authority)
            answer = session.post(
                webhook.address(), data=json.dumps(dict(message)).encode(), timeout=_TIMEOUT_SECONDS,
                headers={"Content-Type": "application/json", **headers}, allow_redirects=False, stream=True,
            )  # fmt: skip
            answer.close()
    except ConfigError as error:
        return str(error)
    except (requests.RequestException, OSError, ValueError) as error:
        return f"the webhook is not reached ({type(error).__name__})"
    return "" if 200 <= answer.status_code < 300 else f"the webhook answered {answer.status_code}"


def mail(email: Email, message: Message) -> str:
    """Send a message by SMTP (RFC 5321)."""
    letter = EmailMessage()
    letter["From"], letter["To"] = email.sender, ", ".join(email.to)
    letter["Subject"] = f"{message['node']}: {message['alert']} {message['state']}"
    letter["Date"] = format_datetime(datetime.fromisoformat(message["at"]).astimezone(UTC))
    letter["Message-ID"] = f"<{message['id']}@medopt.invalid>"
    letter["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    letter.set_content(f"{message['text']}\n\nNode {message['node']}, {message['at']}\n")
    try:
        with smtplib.SMTP(email.host, email.port, "localhost", timeout=_TIMEOUT_SECONDS) as server:
            if email.starttls:
                server.starttls(context=ssl.create_default_context(cafile=email.authority))
            if email.user is not None and email.password is not None:
                server.login(email.user, email.password.read())
            server.send_message(letter)
    except ConfigError as error:
        return str(error)
    except smtplib.SMTPResponseException as error:
        return f"the mail server answered {error.smtp_code}"
    except (smtplib.SMTPException, OSError, ValueError) as error:
        return f"the mail server does not take it ({type(error).__name__})"
    return ""
