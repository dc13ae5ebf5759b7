"""Bundles: a folder or archive with a model, what a backend made of it, and a manifest that loading holds it to."""

from na_deploy.runtime.bundle.archive import Bundle, is_bundle, open_bundle, read_manifest, write_bundle
from na_deploy.runtime.bundle.manifest import Manifest, Member, Profile

__all__ = ["Bundle", "Manifest", "Member", "Profile", "is_bundle", "open_bundle", "read_manifest", "write_bundle"]
