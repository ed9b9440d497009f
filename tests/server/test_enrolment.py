"""How a device gets, renews and loses its identity, through the API."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import select

from wherry_server.services import outbox
from wherry_server.store.schema import Audit, EnrolToken


def actions(context):
    with context.store.read() as session:
        return list(session.scalars(select(Audit.action).order_by(Audit.id)))


def common_name(certificate):
    return certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def test_a_token_and_a_csr_become_a_client_certificate_of_a_week(context, api, make_device, clock):
    device = make_device().enrol(labels={"site": "north"})
    certificate = x509.load_pem_x509_certificate(device.certificate.encode())
    authority = x509.load_pem_x509_certificate(api.get("/v1/ca").content)
    certificate.verify_directly_issued_by(authority)
    assert common_name(certificate) == "dev-1"
    assert certificate.not_valid_after_utc == clock() + timedelta(days=7)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    twin = api.get("/v1/devices/dev-1").json()
    assert (twin["labels"], twin["profile"], twin["online"]) == ({"site": "north"}, "generic-amd64", False)


def test_only_the_public_key_of_a_csr_is_believed(api, make_device):
    device = make_device()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wherryd")])
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("server")]), critical=False)
        .sign(device.key, hashes.SHA256())
    )
    pem = greedy.public_bytes(serialization.Encoding.PEM).decode()
    reply = device.enrol_with(device.get_token(), csr_pem=pem)
    certificate = x509.load_pem_x509_certificate(reply.json()["certificate_pem"].encode())
    assert common_name(certificate) == "dev-1"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_the_same_token_and_key_again_give_the_same_certificate(api, make_device, clock):
    device = make_device()
    secret = device.get_token()
    first = device.enrol_with(secret).json()
    clock.pass_time(hours=30)  # the token itself is over by now; a lost reply must not lock the device out
    assert device.enrol_with(secret).json() == first


def test_a_used_token_with_another_key_is_refused_and_recorded(context, make_device):
    device = make_device()
    secret = device.get_token()
    assert device.enrol_with(secret).status_code == 200
    device.key = ec.generate_private_key(ec.SECP256R1())
    reply = device.enrol_with(secret)
    assert reply.status_code == 401
    assert "already used with another key" in reply.json()["error"]["reason"]
    assert actions(context)[-1] == "enrol.refused"


def test_tokens_are_bound_to_device_and_profile_and_time(context, make_device, clock):
    device = make_device()
    secret = device.get_token()
    assert make_device("dev-2").enrol_with(secret).status_code == 401
    assert "this device says generic-arm64" in device.enrol_with(secret, profile="generic-arm64").text
    assert device.enrol_with(secret + "x").status_code == 401
    clock.pass_time(hours=24, seconds=1)
    assert "has expired" in device.enrol_with(secret).json()["error"]["reason"]
    assert actions(context).count("enrol.refused") == 4


def test_a_new_token_ends_the_unused_one_before(make_device):
    device = make_device()
    first, second = device.get_token(), device.get_token()
    assert device.enrol_with(first).status_code == 401
    assert device.enrol_with(second).status_code == 200


def test_secrets_are_stored_hashed(context, api, make_device):
    secret = make_device().get_token()
    with context.store.read() as session:
        (stored,) = session.scalars(select(EnrolToken.hash))
    assert secret not in stored
    assert len(stored) == 64


def test_unusable_csrs_are_refused(make_device):
    device = make_device()
    secret = device.get_token()
    weak = rsa.generate_private_key(65537, 2048)
    other = ec.generate_private_key(ec.SECP384R1())
    forged = bytearray(x509.load_pem_x509_csr(device.csr().encode()).public_bytes(serialization.Encoding.DER))
    forged[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(forged)).public_bytes(serialization.Encoding.PEM).decode()
    for csr in (device.csr(weak), device.csr(other), broken, "nothing", "x" * 10_000):
        assert device.enrol_with(secret, csr_pem=csr).status_code == 401
    assert device.enrol_with(secret).status_code == 200


def test_an_unknown_profile_is_refused_with_the_known_ones(api):
    reply = api.post("/v1/tokens", {"device": "dev-1", "profile": "toaster"})
    assert reply.status_code == 422
    assert "generic-amd64, generic-arm64" in reply.json()["error"]["fix"]


def test_renewal_takes_a_new_key_and_keeps_the_present_one(device, clock):
    clock.pass_time(days=4)
    new = ec.generate_private_key(ec.SECP256R1())
    reply = device.signed("POST", "/v1/renew", {"csr_pem": device.csr(new)})
    assert reply.status_code == 200
    certificate = x509.load_pem_x509_certificate(reply.json()["certificate_pem"].encode())
    assert certificate.public_key() == new.public_key()
    assert common_name(certificate) == "dev-1"
    # The reply may be lost: both keys sign from now on, until the next renewal.
    for key in (device.key, new):
        assert device.signed("GET", "/v1/devices/dev-1/assignment", key=key).status_code == 404
    third = ec.generate_private_key(ec.SECP256R1())
    assert device.signed("POST", "/v1/renew", {"csr_pem": device.csr(third)}, key=new).status_code == 200
    assert device.signed("GET", "/v1/devices/dev-1/assignment").status_code == 401


def test_an_expired_certificate_renews_within_the_days_of_grace(device, clock):
    new = ec.generate_private_key(ec.SECP256R1())
    clock.pass_time(days=7 + 89)
    assert device.signed("POST", "/v1/renew", {"csr_pem": device.csr(new)}).status_code == 200
    clock.pass_time(days=7 + 91)
    reply = device.signed("POST", "/v1/renew", {"csr_pem": device.csr()}, key=new)
    assert reply.status_code == 401
    assert "without a usable key" in reply.json()["error"]["reason"]


def test_requests_of_others_are_not_taken(make_device, device, clock):
    stranger = make_device("dev-2").enrol()
    stranger_key = stranger.key
    path = "/v1/devices/dev-1/assignment"
    assert device.signed("GET", path, key=stranger_key).status_code == 401
    assert stranger.signed("GET", path).status_code == 403
    assert device.signed("GET", path, at=clock() - timedelta(seconds=601)).status_code == 401
    assert device.api.get(path, headers={"Authorization": "WherryDevice dev-1:1"}).status_code == 401
    assert device.api.get(path, headers={"Authorization": "WherryDevice dev-9:1:aa"}).status_code == 401


def test_a_revoked_device_is_shut_out_until_it_enrols_again(context, api, device, owner):
    owner.release("1")
    api.post("/v1/rollouts", {"model": "vision", "version": "1", "selector": {"everything": True}})
    assert api.request("DELETE", "/v1/devices/dev-1").status_code == 204
    assert device.signed("POST", "/v1/renew", {"csr_pem": device.csr()}).status_code == 403
    assert api.get("/v1/devices/dev-1").json()["revoked"] is True
    assert api.get("/v1/rollouts/1").json()["targets"][0]["state"] == "superseded"
    assert outbox.current_assignments(context, "", 10) == []
    assert outbox.pending(context)[-1].payload == b""
    device.key = ec.generate_private_key(ec.SECP256R1())
    device.enrol()
    assert api.get("/v1/devices/dev-1").json()["revoked"] is False


def test_revoking_rewrites_the_brokers_acl(context, api, device, change_settings, make_api, tmp_path):
    (tmp_path / "broker").mkdir()
    other = make_api.__new__(make_api)
    other.__dict__.update(api.__dict__)
    watched = change_settings(context, broker_folder=tmp_path / "broker")
    other.app.state.context = watched
    assert other.request("DELETE", "/v1/devices/dev-1").status_code == 204
    acl = (tmp_path / "broker" / "acl").read_text()
    assert "user dev-1\ntopic deny wherry/v1/d/dev-1/#\n" in acl
    device.enrol()
    assert "deny" not in (tmp_path / "broker" / "acl").read_text()
