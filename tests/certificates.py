"""Self-signed certificates for 127.0.0.1, for tests."""

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate that signs itself, and its key, as PEM files."""

    certificate: Path
    key: Path

    def client(self) -> ssl.SSLContext:
        """A client that trusts this certificate, as it is now, and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))


def write_pair(folder: Path, *, password: bytes | None = None, names: Sequence[str] = ()) -> Pair:
    """A new pair in a folder, over the one that was there; names: of hosts, besides 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "retinue test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    alternatives = x509.SubjectAlternativeName([address, *(x509.DNSName(host) for host in names)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pair = Pair(folder / "tls.crt", folder / "tls.key")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
    return pair
