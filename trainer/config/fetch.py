"""What is fetched: settings of the job that gets pictures from addresses which the user gave."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from trainer.config.base import BASIC, Settings

MAX_ADDRESSES = 2000


def checked_address(address: str) -> str:
    """An address that may be fetched. Raises ValueError."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{address[:200]}' is no http or https address")
    if parts.username or parts.password or any(ord(char) <= 32 or ord(char) == 127 for char in address):
        raise ValueError(f"'{parts.hostname}…' holds a password, a blank or a control character")
    return address


class FetchConfig(Settings):
    """Pictures to be fetched into a data set."""

    dataset: Annotated[str, BASIC, Field(min_length=1, max_length=100)]
    """The data set that they are added to, or the name of a new one."""
    addresses: Annotated[
        list[Annotated[str, AfterValidator(checked_address), Field(max_length=2000)]],
        BASIC,
        Field(min_length=1, max_length=MAX_ADDRESSES),
    ]
    """Addresses of pictures, http or https."""
    max_mb: Annotated[int, Field(ge=1, le=500)] = 50
    """The largest file that is taken, in MB."""
    max_seconds: Annotated[int, Field(ge=1, le=600)] = 60
    """The longest that one file may take."""
    allow_private: bool = False
    """Also fetch from addresses of the own machine and network, which the lists of strangers have no business with."""
