"""The keys of one control plane: a CA, a certificate for 127.0.0.1 and the key that signs service-account tokens."""

import datetime
import ipaddress
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .private_files import write_private

_VALIDITY = datetime.timedelta(days=365)
_DNS_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
# The first address of the service range is that of the `kubernetes` Service.
_ADDRESSES = ("127.0.0.1", "10.0.0.1")


@dataclass(frozen=True)
class User:
    """Somebody the API server knows by a fixed bearer token."""

    name: str
    groups: tuple[str, ...] = ()


ADMIN = User("retinue:admin", ("system:masters",))
CONTROLLER_MANAGER = User("system:kube-controller-manager")
SCHEDULER = User("system:kube-scheduler")


@dataclass(frozen=True)
class Credentials:
    """Files the components read, all below one folder, and the bearer token of each user by user name."""

    folder: Path
    tokens: dict[str, str]

    @property
    def ca_certificate(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def serving_certificate(self) -> Path:
        return self.folder / "serving.crt"

    @property
    def serving_key(self) -> Path:
        return self.folder / "serving.key"

    @property
    def service_account_key(self) -> Path:
        return self.folder / "service-account.key"

    @property
    def service_account_public_key(self) -> Path:
        return self.folder / "service-account.pub"

    @property
    def token_file(self) -> Path:
        return self.folder / "tokens.csv"


def load_or_create(folder: Path, now: datetime.datetime) -> Credentials:
    """The credentials in `folder`, made there first if they are not complete.

    They are kept, so that a control plane started again on the same state still honours the tokens it has given out.
    `now` is the start of the certificates' validity of one year.
    """
    credentials = Credentials(folder, {})
    if credentials.token_file.is_file():
        return Credentials(folder, read_tokens(credentials.token_file.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _ca_certificate(ca_key, now)
    serving_key = ec.generate_private_key(ec.SECP256R1())
    serving = _serving_certificate(serving_key, ca_key, now)
    signing_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    write_private(credentials.ca_certificate, ca.public_bytes(serialization.Encoding.PEM))
    write_private(credentials.serving_certificate, serving.public_bytes(serialization.Encoding.PEM))
    write_private(credentials.serving_key, _private_pem(serving_key))
    write_private(credentials.service_account_key, _private_pem(signing_key))
    public = signing_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_private(credentials.service_account_public_key, public)
    tokens = {user: secrets.token_urlsafe(24) for user in (ADMIN, CONTROLLER_MANAGER, SCHEDULER)}
    # Written last: its presence says that the others are complete.
    write_private(credentials.token_file, token_lines(tokens))
    return Credentials(folder, {user.name: token for user, token in tokens.items()})


def token_lines(tokens: dict[User, str]) -> str:
    """The static token file of the API server: lines of token, user name, user id and quoted groups."""
    return "".join(f'{token},{user.name},{user.name},"{",".join(user.groups)}"\n' for user, token in tokens.items())


def read_tokens(text: str) -> dict[str, str]:
    """Token by user name from the text of a static token file that `token_lines` wrote."""
    return {fields[1]: fields[0] for fields in (line.split(",", 2) for line in text.splitlines())}


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _ca_certificate(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    return (
        _certificate("retinue-loopback-ca", "retinue-loopback-ca", key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _serving_certificate(
    key: ec.EllipticCurvePrivateKey, ca_key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.Certificate:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in _DNS_NAMES]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in _ADDRESSES]
    return (
        _certificate("kube-apiserver", "retinue-loopback-ca", key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _certificate(
    subject: str, issuer: str, public_key: ec.EllipticCurvePublicKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # An hour of slack for machines whose clock is set back after the start.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _VALIDITY)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
