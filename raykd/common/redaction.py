"""Values and text without passwords, keys and tokens. Importable without torch or Ray.

Redact a value before it is serialised: in a value it is known where an address begins and ends, whatever characters
a password holds. Text that comes from elsewhere (an error, a log line) is searched for addresses and for the secrets
that this process knows: those of its environment and those of the addresses in its config, in every spelling that
serialising gives them.
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
_NAMES = r"PASSWORD|PASSWD|PASSPHRASE|_PWD|SECRET|TOKEN|(API|ACCESS|SECRET|PRIVATE|ACCOUNT|STORAGE)_?KEY(_ID)?"
SECRET = re.compile(rf"({_NAMES}|CONNECTION_STRING)$")  # of environment variables
_PARAMETER = re.compile(r"pass|pwd|secret|token|key|sig|sas|cred|auth", re.IGNORECASE)  # of an address's query
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(.*)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_QUERY = re.compile(r"([?&;])([^=?&;#\s]+)=([^&;#\s]*)")
_SHORTEST = 6  # a shorter secret is hidden in addresses only: elsewhere it would blank out ordinary words
_KEY_ID = 16  # a user's name of this length is a key's id or a token; shorter ones ("mlflow", "ubuntu") are also words
_known: set[str] = set()  # secrets of the config's addresses


def redact(value: Any) -> Any:
    """A copy of a JSON-able value whose strings hold no secret; what is neither a container nor text is kept."""
    if isinstance(value, str):
        return scrub(_bare(value))  # it may be an address, or text with addresses in it
    if isinstance(value, Mapping):
        return {key: redact(item) for key, item in value.items()}
    return [redact(item) for item in value] if isinstance(value, (list, tuple)) else value


def scrub(text: str) -> str:
    """The same for text that something else has written. Apply it before text is cut short or wrapped."""
    return _IN_TEXT.sub(lambda found: _bare(found[0]), _hide(text, _spellings()))


def remember(value: Any) -> None:
    """From now on `scrub` knows the secrets of the addresses in this value, also where they stand alone."""
    if isinstance(value, str):
        _known.update(_secrets_alone(value))
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            remember(item)


def secrets_of(address: str) -> set[str]:
    """The user's name, the password and the secret query parameters of an address."""
    user, rest = split_user(address)
    found = {user.partition(":")[0], user.partition(":")[2]}
    found |= {value for _, name, value in _QUERY.findall(rest) if _PARAMETER.search(name)}
    return {spelled for secret in found if secret for spelled in (secret, unquote(secret))}


def _secrets_alone(address: str) -> set[str]:
    """Those that are also secret where they stand without their address: not the name of a user who has a password.

    Folders and databases often have that name, and a path without it leads nowhere.
    """
    name, _, password = split_user(address)[0].partition(":")
    return secrets_of(address) - ({name, unquote(name)} if password and len(name) < _KEY_ID else set())


def hide(text: str, secrets: Iterable[str]) -> str:
    """Text without these secrets, in any spelling. For text that is known to be about them."""
    return _hide(text, {s for secret in secrets if len(secret) > 2 for s in _spelled(secret)})


def split_user(address: str) -> tuple[str, str]:
    """The user part of an address ("" if it has none) and what follows its @.

    The last @ ends the user part, because a password that is not escaped may hold any character, also / and ?. But
    an address without a user may have an @ in its path: there, no : or @ comes before the first of / ? #.
    """
    found = _ADDRESS.match(address.strip())
    if found is None:
        return "", ""
    rest = found[2]
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest and ("@" in head or ":" in head):
        user, _, rest = rest.rpartition("@")
        return user, rest
    return "", rest


def _bare(text: str) -> str:
    """An address without its user part and its secret query parameters; other text as it is."""
    found = _ADDRESS.match(text.strip())
    if found is None:
        return text
    user, rest = split_user(text)
    rest = _QUERY.sub(lambda q: f"{q[1]}{q[2]}={HIDDEN if _PARAMETER.search(q[2]) else q[3]}", rest)
    return f"{found[1]}{HIDDEN}@{rest}" if user else f"{found[1]}{rest}"


def _spellings() -> set[str]:
    """Everything that a secret which this process knows may look like in text."""
    secrets = set(_known)
    for name, value in os.environ.items():
        if SECRET.search(name):
            secrets.add(value)
        if "://" in value:
            secrets |= _secrets_alone(value)
    return {s for secret in secrets if len(secret.strip()) >= _SHORTEST for s in _spelled(secret)}


def _spelled(secret: str) -> Iterator[str]:
    """A secret as it is, and as JSON, YAML, Python, HTML and addresses write it."""
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
            yield from (escaped, re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), escaped))


def _hide(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, HIDDEN)
    return text


class Formatter(logging.Formatter):
    """Log lines and their tracebacks, scrubbed."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def print_exception(*error: Any) -> None:
    """For `sys.excepthook`: a traceback may show the arguments of what failed."""
    print(scrub("".join(traceback.format_exception(*error))), end="", file=sys.stderr)
