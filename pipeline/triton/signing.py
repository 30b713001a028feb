"""Signatures of versions, by OpenSSF's model-signing: who released them, and that no byte has changed since.

A version's `model.sig` is a Sigstore bundle. It names every other file of the version, release.json included, with its
SHA-256; the number of the version is not in it. The package's own program can check it as well.
"""

import base64
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipeline.errors import InputError, ServiceError
from pipeline.triton import repository
from pipeline.triton.history import Event
from pipeline.triton.store import Store

if TYPE_CHECKING:
    from model_signing import hashing, verifying

PASSPHRASE = "SIGN_KEY_PASSPHRASE"


class Signer:
    """Signs by a private key in PEM, on P-256, P-384 or P-521; its passphrase, if any, is in SIGN_KEY_PASSPHRASE.

    InputError where the package model-signing is missing or the key cannot be used.
    """

    def __init__(self, key: Path) -> None:
        _demand_package()
        from cryptography.exceptions import UnsupportedAlgorithm
        from model_signing import signing

        # The package declares a str, and hands it on to one who takes bytes.
        passphrase: str | None = os.environb.get(PASSPHRASE.encode()) or None  # type: ignore[assignment]
        try:
            self._config = signing.Config().use_elliptic_key_signer(private_key=key, password=passphrase)
        except OSError as error:
            raise InputError(f"{key} cannot be read ({error.strerror}): give --sign-key a private key") from None
        # AttributeError of a key that is on no curve.
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise InputError(
                f"{key} cannot sign: {_reason(error)}; expected a private key on P-256, P-384 or P-521 in PEM, and in "
                f"{PASSPHRASE} its passphrase if it has one"
            ) from None

    def sign(self, version: Path, name: str) -> None:
        """Write `model.sig` into the folder of a complete version of this name."""
        hashes = repository.hashes(version)
        self._config.set_hashing_config(_known(hashes, name)).sign(version, version / repository.SIGNATURE)


class Signatories:
    """Whose signatures count: those of public keys, or of one identity that Sigstore has certified."""

    def __init__(self, whom: str, configs: Iterable["verifying.Config"]) -> None:
        self._whom = whom
        self._configs = tuple(configs)

    def demand_signed(self, store: Store, name: str, version: int, events: list[Event] | None = None) -> None:
        """InputError where a version is altered, or not signed by them; `events` as in `verified_files`."""
        found, signature = {}, None
        for path, content in repository.verified_files(store, name, version, events):
            if path == repository.SIGNATURE:
                signature = content
            else:
                found[path] = repository.sha256(content)
        self.demand(found, signature, f"{store.location}/{name}/{version}")

    def demand(self, found: Mapping[str, str], signature: bytes | None, where: str) -> None:
        """InputError where `signature` is not theirs for exactly these files: path below `where` to SHA-256."""
        if signature is None:
            raise InputError(
                f"{where} is not signed (it has no {repository.SIGNATURE}): expected a signature by {self._whom}; "
                "release it again with --sign-key"
            )
        reasons = []
        for config in self._configs:
            reason = _objection(config, found, signature)
            if reason is None:
                return
            if reason.startswith("Signature mismatch"):
                path = _first_difference(found, signature)
                raise InputError(f"{where}/{path} is not as it was signed: restore it, or release the model again")
            reasons.append(reason)
        # Of several keys, only the one that the signature names has more to say.
        why = next((reason for reason in reasons if not reason.startswith("Key mismatch")), "another key has signed")
        raise InputError(
            f"{where}/{repository.SIGNATURE} is not a signature by {self._whom} ({why}): release the model again, or "
            "name who signed, if you trust them"
        )


def signatories(
    keys: tuple[Path, ...], identity: str | None, identity_provider: str | None, trust_config: Path | None
) -> Signatories | None:
    """As the flags say; None where they name nobody. InputError where they do not fit together or cannot be used.

    ServiceError where Sigstore's trust config cannot be fetched.
    """
    if bool(identity) != bool(identity_provider) or (trust_config and not identity):
        raise InputError("--identity ID and --identity-provider URL belong together, and --trust-config to them")
    if keys and identity:
        raise InputError("--key and --identity exclude each other: give one of them")
    if not keys and not identity:
        return None
    _demand_package()
    return _of_identity(str(identity), str(identity_provider), trust_config) if identity else _of_keys(keys)


def _of_keys(keys: tuple[Path, ...]) -> Signatories:
    """Whoever has one of the private keys to these public ones, in PEM."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from model_signing import verifying

    configs = []
    for key in keys:
        try:
            configs.append(verifying.Config().use_elliptic_key_verifier(public_key=key))
        except OSError as error:
            raise InputError(f"{key} cannot be read ({error.strerror}): give --key a public key") from None
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise InputError(
                f"{key} cannot check signatures: {_reason(error)}; expected a public key on P-256, P-384 or P-521, "
                "in PEM"
            ) from None
    return Signatories(" or ".join(map(str, keys)), configs)


def _of_identity(identity: str, provider: str, trust_config: Path | None) -> Signatories:
    """Whom an OpenID Connect provider has called `identity`, by Sigstore's certificate."""
    from model_signing import verifying

    config = verifying.Config()
    try:
        config.use_sigstore_verifier(identity=identity, oidc_issuer=provider, trust_config=trust_config)
    except Exception as error:  # of the network, of TUF, or of what reads the file
        if trust_config:
            raise InputError(f"{trust_config} is not a trust config of Sigstore: {_reason(error)}") from None
        raise ServiceError(
            f"Sigstore's trust config cannot be fetched ({_reason(error)}): --identity needs the network, or a "
            "--trust-config FILE"
        ) from None
    return Signatories(f"{identity} of {provider}", [config])


def _demand_package() -> None:
    if find_spec("model_signing") is None:
        raise InputError(
            "signatures need the package model-signing: run "
            "bin/python -m pip install --require-hashes -r requirements-sign.lock"
        )


def _known(found: Mapping[str, str], name: str) -> "hashing.Config":
    """In place of the package's own reading of files: these have been read, perhaps from an object store."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}

    class Known(hashing.Config):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]

        def hash(self, model_path: object, *, files_to_hash: object = None) -> manifest.Manifest:
            items = (
                manifest.FileManifestItem(path=PurePosixPath(path), digest=Digest("sha256", bytes.fromhex(digest)))
                for path, digest in found.items()
            )
            return manifest.Manifest(name, items, manifest.SerializationType.from_args(serialization))

    return Known()


def _objection(config: "verifying.Config", found: Mapping[str, str], signature: bytes) -> str | None:
    """What speaks against a signature; None where it is good."""
    from sigstore_models.bundle.v1 import Bundle

    try:
        # Base64 has bits that mean nothing: a signature with others would be as good, and is not what was written.
        if Bundle.from_json(signature).to_json().encode() != signature:
            return "it is not as model-signing writes it"
        # A file without a name, so that nothing can be left of it. The package warns by `print`.
        with tempfile.TemporaryFile() as file, redirect_stdout(StringIO()):
            file.write(signature)
            file.seek(0)
            config.set_hashing_config(_known(found, "")).verify("", f"/dev/fd/{file.fileno()}")
    except OSError:
        raise
    except Exception as error:  # whatever its parsers raise of a damaged file
        return _reason(error)
    return None


def _first_difference(found: Mapping[str, str], signature: bytes) -> str:
    """The first file that is not as this good signature has it."""
    statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    signed = {resource["name"]: resource["digest"] for resource in statement["predicate"]["resources"]}
    different = (path for path in found.keys() | signed.keys() if found.get(path) != signed.get(path))
    return min(different, default=repository.SIGNATURE)


def _reason(error: Exception) -> str:
    """One line, as errors are."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
