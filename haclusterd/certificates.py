"""X.509 for the mTLS between agents: one CA per cluster, one certificate per node.

EC keys on P-256, ten years: certificates are replaced with the cluster's keys, not renewed. A
node's certificate is good for both sides of a connection and names its id and link addresses.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from haclusterd.core.model import NodeSpec

CERTIFICATE_DAYS = 3650

_BACKDATED = datetime.timedelta(days=1)  # nodes whose clocks are behind accept them at once


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, cluster: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(_ca_certificate(cluster, key), key)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes) -> Authority:
        """What `certificate_pem` and `key_pem` gave. ValueError says why they are no CA."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except ValueError:
            raise ValueError("the certificate is not PEM") from None
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError("the private key is not plain PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the private key is of another kind than haclusterd makes")
        if key.public_key() != certificate.public_key():
            raise ValueError("the private key belongs to another certificate")
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return _pem(self.key)

    def issue(self, node: NodeSpec) -> tuple[bytes, bytes]:
        """(certificate, private key) of `node`, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _node_certificate(node, key, self.certificate, self.key)
        return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def misfit(*, ca_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> str:
    """Why these three cannot serve a node together, or nothing."""
    try:
        trusted = x509.load_pem_x509_certificates(ca_pem)  # two in a rotation
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except ValueError:
        return "one of the certificates is not PEM"
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "the private key is not plain PEM"
    if key.public_key() != certificate.public_key():
        return "the private key belongs to another certificate"
    if not any(_issued_by(certificate, ca) for ca in trusted):
        return "the certificate was not issued by this CA"
    return ""


def _issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _builder(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    begin = datetime.datetime.now(datetime.UTC) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _ca_certificate(cluster: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # A common name holds at most 64 characters (RFC 5280, ub-common-name).
    subject = _name(f"haclusterd {cluster}"[:64])
    return (
        _builder(subject, key.public_key())
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _node_certificate(
    node: NodeSpec,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """Client and server certificate in one; valid for the node's id and its link addresses."""
    names: list[x509.GeneralName] = [x509.DNSName(node.id)]
    names += [x509.IPAddress(ipaddress.ip_address(link)) for link in node.links]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_key = ca_key.public_key()
    return (
        _builder(_name(node.id), key.public_key())
        .issuer_name(ca.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
