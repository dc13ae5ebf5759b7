"""Bundles: a folder or archive with a model, a backend's files for it, and a manifest that is verified at loading."""

from na_deploy.runtime.bundle.archive import Bundle, is_bundle, open_bundle, read_manifest, write_bundle
from na_deploy.runtime.bundle.manifest import Manifest, Member, Profile

__all__ = ["Bundle", "Manifest", "Member", "Profile", "is_bundle", "open_bundle", "read_manifest", "write_bundle"]
