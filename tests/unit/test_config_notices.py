"""`[[hook]]` and `[[dns]]` in the file: what is right, and what each mistake is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from haclusterd.config import ConfigError, config_hash, load_cluster
from tests.unit.config_example import GOOD

HOOK = """
[[hook]]
name = "pager"
events = ["takeover", "alarm_raised"]
webhook = "https://alerts.example.org/in"
secret_file = "hook.secret"
"""
MAIL = """
[[hook]]
name = "mail"
email = ["ops@example.org"]
sender = "haclusterd@example.org"
smtp = "mail.example.org:587"
smtp_tls = "starttls"
smtp_user = "ha"
smtp_password_file = "{node}.smtp"
"""
DNS = """
[[dns]]
name = "sip.voice.example.org"
zone = "voice.example.org"
server = "192.0.2.53"
key_name = "haclusterd."
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(GOOD + text)
    return path


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    config = load_cluster(written(tmp_path, HOOK + MAIL + DNS)).bound_to(1)
    pager, mail = config.hooks
    assert pager.secret_file == tmp_path / "hook.secret"
    assert (pager.timeout_ms, pager.retries, pager.every_node) == (10_000, 5, False)
    assert (mail.smtp_host, mail.smtp_port) == ("mail.example.org", 587)
    assert mail.smtp_password_file == tmp_path / "fs-b.smtp"
    (record,) = config.dns
    assert (record.server_host, record.server_port) == ("192.0.2.53", 53)
    assert (record.key_file, record.algorithm) == (tmp_path / "dns.key", "hmac-sha256")


def test_exec_knows_the_node(tmp_path: Path) -> None:
    text = '[[hook]]\nname = "x"\nexec = ["/bin/tell", "{node}"]\n'
    assert load_cluster(written(tmp_path, text)).bound_to(2).hooks[0].exec == ("/bin/tell", "fs-c")


def test_a_file_without_them_means_what_it_meant(tmp_path: Path) -> None:
    """A hash that changed with the version would part nodes in a rolling upgrade."""
    plain = load_cluster(written(tmp_path, ""))
    assert not {"hook", "dns"} & plain.document.keys()
    assert config_hash(load_cluster(written(tmp_path, HOOK))) != config_hash(plain)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('[[hook]]\nname = "x"', "hook[x]", "has none of exec, webhook and email"),
        (HOOK + 'exec = ["true"]', "hook[pager]", "has exec and webhook"),
        (HOOK.replace("takeover", "takover"), "hook[pager].events", 'did you mean "takeover"?'),
        (HOOK.replace("https", "ftp"), "hook[pager].webhook", "neither http:// nor https://"),
        (HOOK.replace("alerts", "me:pw@alerts"), "hook[pager].webhook", "holds a password"),
        (HOOK.replace("alerts.example.org", ""), "hook[pager].webhook", "names no host"),
        (HOOK.replace(".org/", ".org:99999/"), "hook[pager].webhook", "is not a URL"),
        (HOOK + "timeout_ms = 5", "hook[pager].timeout_ms", "out of range"),
        (HOOK + "retry = 5", "hook[pager].retry", "unknown key"),
        (HOOK + HOOK, "hook[pager].name", "used twice"),
        (MAIL.replace("ops@", "ops at "), "hook[mail].email", "is not an e-mail address"),
        (MAIL.replace("ops@example.org", "a@b.c>\\r\\nX: y"), "hook[mail].email", "U+000D"),
        (MAIL.replace("sender", "#"), "hook[mail].sender", "is missing"),
        (MAIL.replace('"starttls"', '"none"'), "hook[mail].smtp_tls", "in the clear"),
        (MAIL.replace("smtp_user", "#"), "hook[mail].smtp_user", "go together"),
        (MAIL.replace(":587", ":0"), "hook[mail].smtp", "is not HOST:PORT"),
        (MAIL + 'secret_file = "x"', "hook[mail].secret_file", "signs webhooks only"),
        ('[hook]\nname = "x"', "hook", "not an array of tables"),
        (DNS.replace("zone = ", "# "), "dns[sip.voice.example.org].zone", "is missing"),
        (DNS.replace('zone = "voice', 'zone = "other'), "dns[sip.voice.example.org].name",
         "is not in the zone"),
        (DNS.replace("192.0.2.53", "192.0.2.53:x"), "dns[sip.voice.example.org].server",
         "is not HOST:PORT"),
        (DNS + 'services = ["eats"]', "dns[sip.voice.example.org].services",
         'did you mean "east"?'),
        (DNS + 'algorithm = "hmac-md5"', "dns[sip.voice.example.org].algorithm", "is not known"),
        (DNS.replace("haclusterd.", "a b"), "dns[sip.voice.example.org].key_name",
         "is not a DNS name"),
        (DNS + DNS, "dns[sip.voice.example.org].name", "used twice"),
        (HOOK * 17, "hook", "are too many"),
    ],
)  # fmt: skip
def test_mistakes_name_file_key_and_fix(tmp_path: Path, text: str, key: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    found = [p for p in caught.value.problems if p.key == key and message in p.message]
    assert found, str(caught.value)
    assert found[0].file == str(path)
    assert found[0].fix
