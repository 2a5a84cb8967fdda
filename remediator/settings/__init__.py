"""Settings: one file, `remediator.yaml`, read once and frozen. Imports nothing but the pure contract.

`model` is the whole of what may be written, and the other modules hold its parts. `load` puts file and environment together, `faults`
words what is wrong with them, `reference` writes the reference page.
"""

from remediator.settings.limits import Limits
from remediator.settings.listening import ListenSettings, TlsSettings
from remediator.settings.load import Loaded, load_settings, read_settings, reloadable_changes
from remediator.settings.model import LogSettings, PackSettings, Settings
from remediator.settings.people import Contact, EscalationPolicy, IdentitySettings, Role, Severity
from remediator.settings.storage import StoreSettings
from remediator.settings.systems import Endpoint

__all__ = [
    "Contact",
    "Endpoint",
    "EscalationPolicy",
    "IdentitySettings",
    "Limits",
    "ListenSettings",
    "Loaded",
    "LogSettings",
    "PackSettings",
    "Role",
    "Settings",
    "Severity",
    "StoreSettings",
    "TlsSettings",
    "load_settings",
    "read_settings",
    "reloadable_changes",
]
