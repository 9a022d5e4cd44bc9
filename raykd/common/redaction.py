"""Removes passwords, keys and tokens from values and text. Importable without torch or Ray.

Redact a value before it is serialised. In a value the ends of an address are known, whatever characters its password
has. Text from elsewhere (an error, a log line) is searched for addresses and for known secrets: those of this process's
environment and of the addresses in its config, in every spelling that serialising gives them.
"""

import html
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
_KEYS = r"(API|ACCESS|SECRET|PRIVATE|ACCOUNT|STORAGE|KAGGLE)_?KEY(_ID)?"
_NAMES = rf"PASSWORD|PASSWD|PASSPHRASE|_PASS|_PWD|SECRET|TOKEN|{_KEYS}"
SECRET = re.compile(rf"({_NAMES}|CONNECTION_STRING)$", re.IGNORECASE)  # of environment variables
_PARAMETER = re.compile(r"pass|pwd|secret|token|key|sig|sas|cred|auth", re.IGNORECASE)  # of an address's query
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(.*)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_QUERY = re.compile(r"([?&;])([^=?&;#\s]+)=([^&;#\s]*)")
_SHORTEST = 6  # shorter secrets are hidden only in addresses; elsewhere they would blank out ordinary words
_KEY_ID = 16  # a user name of at least this length is a key id or a token; shorter ones ("mlflow") can be plain words
_known: set[str] = set()  # secrets of the config's addresses


def redact(value: Any) -> Any:
    """A copy of a JSON-able value without secrets in its strings. Numbers and the like are kept."""
    if isinstance(value, str):
        return scrub(_bare(value))  # it can be an address, or text that contains addresses
    if isinstance(value, Mapping):
        return {key: redact(item) for key, item in value.items()}
    return [redact(item) for item in value] if isinstance(value, (list, tuple)) else value


def scrub(text: str) -> str:
    """Text from elsewhere without secrets. Apply this before text is truncated or wrapped."""
    return _IN_TEXT.sub(lambda match: _bare(match[0]), _hide(text, _spellings()))


def remember(value: Any) -> None:
    """Let `scrub` hide the secrets of the addresses in this value from now on, also outside an address."""
    if isinstance(value, str):
        _known.update(_secrets_alone(value))
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            remember(item)


def secrets_of(address: str) -> set[str]:
    """The user name, the password and the secret query parameters of an address."""
    user, rest = split_user(address)
    secrets = {user.partition(":")[0], user.partition(":")[2]}
    secrets |= {value for _, name, value in _QUERY.findall(rest) if _PARAMETER.search(name)}
    return {spelled for secret in secrets if secret for spelled in (secret, unquote(secret))}


def _secrets_alone(address: str) -> set[str]:
    """The secrets of an address that are also secret outside it: all but the name of a user with a password.

    Folders and databases often have that name, and a path without it would be useless.
    """
    name, _, password = split_user(address)[0].partition(":")
    return secrets_of(address) - ({name, unquote(name)} if password and len(name) < _KEY_ID else set())


def hide(text: str, secrets: Iterable[str]) -> str:
    """Text without these secrets, in any spelling, however short. For text that is known to contain them."""
    return _hide(text, {s for secret in secrets if len(secret) > 2 for s in _spelled(secret)})


def split_user(address: str) -> tuple[str, str]:
    """The user part of an address ("" if it has none) and what follows its @.

    The last @ ends the user part, because a password that is not escaped can contain any character, including / and ?.
    But an address without a user can have an @ in its path. Then there is no : or @ before the first / ? or #.
    """
    match = _ADDRESS.match(address.strip())
    if match is None:
        return "", ""
    rest = match[2]
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest and ("@" in head or ":" in head):
        user, _, rest = rest.rpartition("@")
        return user, rest
    return "", rest


def _bare(text: str) -> str:
    """An address without its user part and its secret query parameters; other text unchanged."""
    match = _ADDRESS.match(text.strip())
    if match is None:
        return text
    user, rest = split_user(text)
    rest = _QUERY.sub(lambda q: f"{q[1]}{q[2]}={HIDDEN if _PARAMETER.search(q[2]) else q[3]}", rest)
    return f"{match[1]}{HIDDEN}@{rest}" if user else f"{match[1]}{rest}"


def _spellings() -> set[str]:
    """Every spelling of every secret that this process knows."""
    secrets = set(_known)
    for name, value in os.environ.items():
        if SECRET.search(name):
            secrets.add(value)
        if "://" in value:
            secrets |= _secrets_alone(value)
    return {s for secret in secrets if len(secret.strip()) >= _SHORTEST for s in _spelled(secret)}


def _spelled(secret: str) -> Iterator[str]:
    """A secret verbatim, and as JSON, YAML, Python, HTML and URLs write it."""
    for plain in {secret, secret.strip(), " ".join(secret.split())}:
        if not plain:
            continue
        yield plain
        yield from (json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1])
        yield from (repr(plain)[1:-1], plain.replace("'", "''"), html.escape(plain))
        for escaped in (
            quote(plain, safe="", errors="replace"),
            quote(plain, errors="replace"),
            quote_plus(plain, errors="replace"),
        ):
            yield from (escaped, re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), escaped))


def _hide(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # one can be part of another
        text = text.replace(secret, HIDDEN)
    return text


class Formatter(logging.Formatter):
    """Log lines and their tracebacks, scrubbed."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def print_exception(*error: Any) -> None:
    """For `sys.excepthook`: print a traceback without secrets, which the arguments in an error can contain."""
    print(scrub("".join(traceback.format_exception(*error))), end="", file=sys.stderr)
