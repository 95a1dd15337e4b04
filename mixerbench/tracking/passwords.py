"""Removes passwords from addresses of stores before these are logged, recorded or shown."""

import re
from typing import Any, Final

_NEXT: Final = r"[\s\"',;(<\[{][A-Za-z][\w+.-]*:"
"""Where another address begins in the same text."""

_USER: Final = re.compile(rf"(:(?:\\?/){{2}})[^\s:/?#@]*(?:[:@](?:(?!{_NEXT}//)\S)*)?@")
"""User and password before the host, up to the last @: passwords hold @ and / as well."""

_QUERY: Final = re.compile(
    r"([?&;][^\s=&;?]*(?:pass|pwd|token|secret|key|auth|credential|sig|odbc_connect)[^\s=&;?]*=)"
    r"[^\s&#\"']+",
    re.IGNORECASE,
)


def without_password(text: str) -> str:
    """``text`` with ``***`` for the users and passwords of all addresses in it.

    >>> without_password("no answer from http://me:p@ss@host:5000/?token=abc")
    'no answer from http://***@host:5000/?token=***'
    """
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


def masked(content: Any) -> Any:
    """Nested settings as they are recorded: every text ``without_password``."""
    if isinstance(content, dict):
        return {key: masked(value) for key, value in content.items()}
    if isinstance(content, list):
        return [masked(value) for value in content]
    return without_password(content) if isinstance(content, str) else content
