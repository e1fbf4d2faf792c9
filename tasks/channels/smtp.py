"""A mail in plain text, by a server that takes it: with STARTTLS, TLS from the first byte, or neither."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate
from typing import IO, Any

from tasks.channels.message import ChannelError, Message

TIMEOUT_SECONDS = 15.0
#: Of all answers of one conversation; again that much after STARTTLS.
MAX_HEARD_BYTES = 64 * 1024


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


class _Heard:
    """What a server says, up to a limit: smtplib would keep an answer of lines without an end, and before TLS begins
    anybody on the way can give one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = MAX_HEARD_BYTES

    def readline(self, size: int) -> bytes:
        line = self._file.readline(size)
        self._left -= len(line)
        if self._left < 0:
            raise OSError("it says too much")
        return line

    def close(self) -> None:
        self._file.close()


class _Bounded(smtplib.SMTP):
    def getreply(self) -> tuple[int, bytes]:
        if self.file is None:
            assert self.sock is not None
            self.file = _Heard(self.sock.makefile("rb"))
        return super().getreply()


class _BoundedTls(_Bounded, smtplib.SMTP_SSL):
    pass


def _connect(config: dict[str, Any]) -> smtplib.SMTP:
    where = (config["host"], config["port"])
    if config["tls"] == "tls":
        return _BoundedTls(*where, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
    server = _Bounded(*where, timeout=TIMEOUT_SECONDS)
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
