"""A mail in plain text, by a server that takes it: with STARTTLS, TLS from the first byte, or neither."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any

from tasks.channels.message import ChannelError, Message

TIMEOUT_SECONDS = 15.0


def send(config: dict[str, Any], message: Message) -> None:
    """Raises ChannelError. Where the server takes it for some recipients only, it is taken."""
    mail = _mail(config, message)
    try:
        with _connect(config) as server:
            if config.get("username"):
                server.login(config["username"], config["password"])
            server.send_message(mail, from_addr=config["sender"], to_addrs=config["to"])
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise ChannelError(
            f"the server refused all recipients ({min(codes)})", permanent=all(code >= 500 for code in codes)
        ) from None
    except smtplib.SMTPNotSupportedError:
        raise ChannelError("the server does not offer what the channel asks for", permanent=True) from None
    except smtplib.SMTPResponseException as error:
        # What the server says may repeat what it was told.
        raise ChannelError(f"the server answered {error.smtp_code}", permanent=error.smtp_code >= 500) from None
    except ssl.SSLCertVerificationError:
        raise ChannelError("the server's certificate is not trusted") from None
    except (OSError, smtplib.SMTPException) as error:
        raise ChannelError(_reason(error)) from None


def _mail(config: dict[str, Any], message: Message) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = message.subject
    mail["From"] = config["sender"]
    mail["To"] = ", ".join(config["to"])
    mail["Date"] = formatdate()
    # The same at every attempt: a mail program shows it once.
    mail["Message-ID"] = f"<{message.id}@ai-manage-ops>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text)
    return mail


def _connect(config: dict[str, Any]) -> smtplib.SMTP:
    where = (config["host"], config["port"])
    if config["tls"] == "tls":
        return smtplib.SMTP_SSL(*where, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
    server = smtplib.SMTP(*where, timeout=TIMEOUT_SECONDS)
    if config["tls"] == "starttls":
        try:
            server.starttls(context=ssl.create_default_context())
        except BaseException:
            server.close()
            raise
    return server


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return f"no answer within {TIMEOUT_SECONDS:g} s"
        case ConnectionRefusedError():
            return "connection refused"
        case smtplib.SMTPServerDisconnected() | ConnectionError():
            return "the connection was closed"
        case OSError() if not isinstance(error, smtplib.SMTPException):
            return error.strerror or type(error).__name__
        case _:
            return type(error).__name__
