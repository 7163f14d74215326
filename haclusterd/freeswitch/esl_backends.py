"""Which library carries an ESL connection: `esl_backend` in `[freeswitch]`.

The native client is the default and the only one that is loaded for it. The others are here for
those who must use them; docs/esl-backends.md says what each of them fails.
"""

from __future__ import annotations

import importlib
from typing import cast

from .esl_errors import EslDown
from .esl_link import LinkClass
from .esl_socket import EslSocket

# By name: the module and class of the adapter, the library it needs and the extra that brings it.
_ADAPTERS = {
    "greenswitch": ("esl_greenswitch", "GreenswitchLink"),
    "python-esl": ("esl_python_esl", "PythonEslLink"),
}


def link_class(backend: str) -> LinkClass:
    """The backend's link. Raises EslDown where its library cannot be loaded, with the fix."""
    if backend == "native":
        return EslSocket
    module, name = _ADAPTERS[backend]
    try:
        adapter = importlib.import_module(f"{__package__}.{module}")
    except ImportError as error:
        raise EslDown(
            f'the library of esl_backend = "{backend}" cannot be loaded ({error}): install '
            f'haclusterd[{backend}] for this Python, or set esl_backend = "native" in [freeswitch]'
        ) from error
    return cast(LinkClass, getattr(adapter, name))
