"""natten's public functions over our operator, and what puts them in natten's place while a model is traced."""

from na_deploy.exporter.natten_api.replacement import (
    STAND_INS,
    importable_natten,
    installed_natten,
    replaced_natten,
    replaces_installed,
)

__all__ = ["STAND_INS", "importable_natten", "installed_natten", "replaced_natten", "replaces_installed"]
