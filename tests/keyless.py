"""A Sigstore of one's own: keyless signatures that verify without the internet.

It has the three parts that a verifier trusts: a certificate authority that binds a key to an
identity (Fulcio), a log of such certificates (CT log) and a log of signatures (Rekor). Nothing
listens; only what they would sign is signed, by keys that live as long as the object.

Formats: https://github.com/sigstore/protobuf-specs, RFC 6962 (timestamps of certificates, Merkle
trees), https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md (extensions) and
https://github.com/C2SP/C2SP/blob/main/tlog-checkpoint.md
"""

import base64
import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER_EXTENSION = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
TIMESTAMPS_EXTENSION = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
PRECERTIFICATE_ENTRY = 1
SHA256_WITH_ECDSA = b"\x04\x03"
LIFETIME = timedelta(minutes=10)
HOST = "rekor.test"
KEY_DETAILS = "PKIX_ECDSA_P256_SHA_256"


class Sigstore:
    """An instance; two of them do not know each other's keys."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC).replace(microsecond=0)
        self._authority_key, self._ct_key, self._rekor_key = (new_key() for _ in range(3))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fulcio.test")])
        builder = self._certificate(self._authority_key, name, issuer=name)
        self._authority = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(key_identifier(self._authority_key), critical=False)
            .sign(self._authority_key, SHA256())
        )

    def public_key(self) -> bytes:
        """A key of this instance that signs nothing but certificates, in PEM."""
        key = self._authority_key.public_key()
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def trust_config(self) -> str:
        """Sigstore's client trust configuration with the keys of this instance."""
        since = {"start": (self._now - LIFETIME).isoformat()}
        certificate = {"rawBytes": encoded(self._authority.public_bytes(Encoding.DER))}
        authority = {
            "subject": {"organization": "test", "commonName": "fulcio.test"},
            "uri": "https://fulcio.test",
            "certChain": {"certificates": [certificate]},
            "validFor": since,
        }
        logs = [
            {
                "baseUrl": f"https://{host}",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": encoded(public_bytes(key)),
                    "keyDetails": KEY_DETAILS,
                    "validFor": since,
                },
                "logId": {"keyId": encoded(key_id(key))},
            }
            for host, key in ((HOST, self._rekor_key), ("ct.test", self._ct_key))
        ]
        root = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": logs[:1],
            "ctlogs": logs[1:],
            "certificateAuthorities": [authority],
        }
        config = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": root,
            "signingConfig": {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"},
        }
        return json.dumps(config)

    def sign(self, directory: Path, signature_path: Path, *, identity: str, issuer: str) -> None:
        """Sign the files of `directory` as `identity`, whom `issuer` vouches for."""
        from model_signing.signing import Config

        key = new_key()
        key_path = signature_path.with_suffix(".key")
        key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        Config().use_elliptic_key_signer(private_key=key_path).sign(directory, signature_path)
        key_path.unlink()
        bundle = json.loads(signature_path.read_bytes())
        certificate = self._signing_certificate(key, identity, issuer)
        bundle["verificationMaterial"] = {
            "certificate": {"rawBytes": encoded(certificate.public_bytes(Encoding.DER))},
            "tlogEntries": [self._log_entry(bundle["dsseEnvelope"], certificate)],
        }
        signature_path.write_text(json.dumps(bundle))

    def _signing_certificate(
        self, key: ec.EllipticCurvePrivateKey, identity: str, issuer: str
    ) -> x509.Certificate:
        """A certificate with the CT log's promise to list it, as RFC 6962 embeds it."""
        builder = (
            self._certificate(key, x509.Name([]), issuer=self._authority.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(ISSUER_EXTENSION, issuer.encode()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    self._authority_key.public_key()
                ),
                critical=False,
            )
        )
        unlisted = builder.sign(self._authority_key, SHA256()).tbs_certificate_bytes
        timestamps = x509.UnrecognizedExtension(TIMESTAMPS_EXTENSION, self._timestamps(unlisted))
        return builder.add_extension(timestamps, critical=False).sign(self._authority_key, SHA256())

    def _certificate(
        self, key: ec.EllipticCurvePrivateKey, name: x509.Name, *, issuer: x509.Name
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .serial_number(1)
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .not_valid_before(self._now - LIFETIME)
            .not_valid_after(self._now + LIFETIME)
        )

    def _timestamps(self, unlisted: bytes) -> bytes:
        """The list of one signed timestamp, in DER."""
        milliseconds = int(self._now.timestamp()) * 1000
        entry = key_id(self._authority_key) + len(unlisted).to_bytes(3) + unlisted
        signed = struct.pack("!BBQH", 0, 0, milliseconds, PRECERTIFICATE_ENTRY) + entry + bytes(2)
        signature = sign(self._ct_key, signed)
        timestamp = (
            struct.pack("!B32sQH", 0, key_id(self._ct_key), milliseconds, 0)
            + SHA256_WITH_ECDSA
            + prefixed(signature)
        )
        return octet_string(prefixed(prefixed(timestamp)))

    def _log_entry(self, envelope: dict[str, Any], certificate: x509.Certificate) -> dict[str, Any]:
        """The signature as the only entry of a log."""
        payload = base64.b64decode(envelope["payload"])
        pem = certificate.public_bytes(Encoding.PEM)
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": sha256(canonical(envelope)).hex()},
            "payloadHash": {"algorithm": "sha256", "value": sha256(payload).hex()},
            "signatures": [
                {"signature": it["sig"], "verifier": encoded(pem)} for it in envelope["signatures"]
            ],
        }
        body = canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        seconds, log_id = int(self._now.timestamp()), key_id(self._rekor_key)
        promised = canonical(
            {
                "body": encoded(body),
                "integratedTime": seconds,
                "logID": log_id.hex(),
                "logIndex": 0,
            }
        )
        root_hash = sha256(b"\0" + body)
        return {
            "logIndex": "0",
            "logId": {"keyId": encoded(log_id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(seconds),
            "inclusionPromise": {"signedEntryTimestamp": encoded(sign(self._rekor_key, promised))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": encoded(root_hash),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": self._checkpoint(root_hash)},
            },
            "canonicalizedBody": encoded(body),
        }

    def _checkpoint(self, root_hash: bytes) -> str:
        note = f"{HOST}\n1\n{encoded(root_hash)}\n"
        signature = key_id(self._rekor_key)[:4] + sign(self._rekor_key, note.encode())
        return f"{note}\n— {HOST} {encoded(signature)}\n"


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(SHA256()))


def public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return sha256(public_bytes(key))


def key_identifier(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def key_usage(**used: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**dict.fromkeys(names.split(), False) | used)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def canonical(values: dict[str, Any]) -> bytes:
    """RFC 8785, as far as texts of ASCII and small integers go."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def octet_string(data: bytes) -> bytes:
    """DER; shorter than 128 bytes, or than 256."""
    length = bytes([len(data)]) if len(data) < 0x80 else bytes([0x81, len(data)])
    return b"\x04" + length + data
