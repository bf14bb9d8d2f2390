"""The guest's certificates: an authority comes and goes, and what was there stays."""

from __future__ import annotations

from pathlib import Path

from agentvm_guest.trust import set_authority

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
OTHER = PEM.replace("MIIB", "MIIC")


def test_an_authority_is_trusted_until_another_or_none_takes_its_place(tmp_path: Path) -> None:
    bundle, local = tmp_path / "bundle.crt", tmp_path / "agentvm.crt"
    bundle.write_text("system\n")
    variables = set_authority(PEM, bundle, local)
    assert variables["REQUESTS_CA_BUNDLE"] == str(bundle)
    assert variables["NODE_EXTRA_CA_CERTS"] == str(local)
    assert bundle.read_text() == f"system\n{PEM}\n"
    assert local.read_text() == f"{PEM}\n"
    assert set_authority(PEM, bundle, local) == variables
    assert bundle.read_text() == f"system\n{PEM}\n"
    set_authority(OTHER, bundle, local)
    assert bundle.read_text() == f"system\n{OTHER}\n"
    assert set_authority(None, bundle, local) == {}
    assert bundle.read_text() == "system\n"
    assert not local.exists()
    assert set_authority(None, bundle, local) == {}
