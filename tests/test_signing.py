"""Signed versions: what is found of a flipped byte, who is asked to believe what, and what a server then refuses."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import sigstore
from conftest import assert_nothing_left, run_command, wait_until
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from test_reload import Zoo, is_answered_by
from test_repository import LABELS, NAME, make_source, release_json
from test_s3 import object_store
from test_serve import serving
from test_triton_server import MATRIX, add_version, expected, images, onnx_model

from pipeline import commands
from pipeline.errors import InputError
from pipeline.triton import client, golden, publishing, repository, signing, switching, transfer, verification
from pipeline.triton.file_store import FileStore
from pipeline.triton.signing import Signatories, Signer
from pipeline.triton.store import Store, open_store
from pipeline.triton.verified_copy import verified_copy

PASSPHRASE = "open sesame"


def write_key(folder: Path, name: str, passphrase: str = "") -> tuple[Path, Path]:
    """A new private key and its public one."""
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(pem, pkcs8, encryption))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key(tmp_path_factory.mktemp("theirs"), "theirs")


def signatories(*keys: Path) -> Signatories:
    found = signing.signatories(keys, None, None, None)
    assert found is not None
    return found


def problems(store: Store, whom: Signatories) -> list[str]:
    """Of versions; an altered config.pbtxt is also not the one that is live."""
    found = verification.verify(store, signatories=whom).problems
    return [problem.problem for problem in found if problem.version is not None]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with object_store() as address:
        yield address


@pytest.fixture
def store(tmp_path: Path, ours: tuple[Path, Path]) -> FileStore:
    """With one signed version."""
    source = make_source(tmp_path / "candidate")
    store = FileStore(tmp_path / "models")
    publishing.publish_version(store, NAME, source, release_json(source), signer=Signer(ours[0]))
    return store


# What is found


def test_one_flipped_byte_in_any_file_is_found(store: FileStore, ours: tuple[Path, Path]) -> None:
    whom, version = signatories(ours[1]), Path(store.location) / NAME / "1"
    assert problems(store, whom) == []
    files = [path for path in sorted(version.rglob("*")) if path.is_file()]
    assert {"model.onnx", "labels.txt", "loss.svg", "config.pbtxt", "release.json", "model.sig"} == {
        path.name for path in files
    }
    for path in files:
        good = path.read_bytes()
        for place in (0, len(good) // 2, len(good) - 1):
            path.write_bytes(flipped(good, place))
            (problem,) = problems(store, whom)
            assert str(path) in problem
        path.write_bytes(good)
    assert problems(store, whom) == []


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_no_bit_of_a_signature_is_without_meaning(store: FileStore, ours: tuple[Path, Path]) -> None:
    whom, version = signatories(ours[1]), Path(store.location) / NAME / "1"
    found, _ = unsigned_hashes(version)
    signer = Signer(ours[0])
    # One whose last character in Base64 has bits that no decoder looks at; how long a signature is, differs.
    while b'=","keyid"' not in (content := (version / "model.sig").read_bytes()):
        (version / "model.sig").unlink()
        signer.sign(version, NAME)
    whom.demand(found, content, "it")
    for place in range(len(content)):
        with pytest.raises(InputError, match=r"it/model\.sig is not a signature by "):
            whom.demand(found, flipped(content, place), "it")


def test_files_that_come_go_or_change_with_release_json_are_named(store: FileStore, ours: tuple[Path, Path]) -> None:
    whom, version = signatories(ours[1]), Path(store.location) / NAME / "1"
    (version / "plots" / "loss.svg").rename(version / "plots" / "other.svg")
    assert f"{version}/plots/loss.svg" in problems(store, whom)[0]
    (version / "plots" / "other.svg").rename(version / "plots" / "loss.svg")

    # Who alters a file together with its hash in release.json, and the history that knows this one's, is found by
    # the signature alone.
    (version / "labels.txt").write_text("".join(f"{label}\n" for label in reversed(LABELS)))
    release = json.loads((version / "release.json").read_bytes())
    release["hashes"]["labels.txt"] = repository.sha256((version / "labels.txt").read_bytes())
    (version / "release.json").write_text(json.dumps(release))
    (Path(store.location) / "history.jsonl").unlink()
    assert verification.verify(store).problems == ()
    (problem,) = problems(store, whom)
    assert f"{version}/labels.txt is not as it was signed" in problem
    (version / "model.sig").unlink()
    (problem,) = problems(store, whom)
    assert f"{version} is not signed" in problem


def test_a_signed_version_keeps_its_signature_wherever_it_goes(
    store: FileStore, ours: tuple[Path, Path], tmp_path: Path
) -> None:
    whom = signatories(ours[1])
    target = FileStore(tmp_path / "other" / "models")
    source = make_source(tmp_path / "unsigned")
    (tmp_path / "other").mkdir()
    publishing.publish_version(target, NAME, source, release_json(source))
    assert "is not signed" in problems(target, whom)[0]
    copied = transfer.copy(store, target, NAME, 1, trust=True)
    assert copied.version == 2
    whom.demand_signed(target, NAME, 2)
    transfer.export(target, NAME, 2, tmp_path / "digits.tar")
    installed = FileStore(tmp_path / "installed")
    assert transfer.install(installed, tmp_path / "digits.tar", trust=True).version == 1
    assert problems(installed, whom) == []


def test_who_signed_is_named_and_several_keys_count(
    store: FileStore, ours: tuple[Path, Path], theirs: tuple[Path, Path], tmp_path: Path
) -> None:
    source = make_source(tmp_path / "foreign")
    publishing.publish_version(store, "foreign", source, release_json(source), signer=Signer(theirs[0]))
    source = make_source(tmp_path / "unsigned")
    publishing.publish_version(store, "unsigned", source, release_json(source))
    told = ("zoo", "verify", "--model-repository", store.location, "--key", str(ours[1]))
    done = run_command(*told, "--json", cwd=tmp_path)
    assert done.returncode == 2
    found = {problem["name"]: problem["problem"] for problem in json.loads(done.stdout)["problems"]}
    # The synthetic versions are all of one model, so that under another name their config is found, too.
    assert f"{store.location}/foreign/1/model.sig is not a signature by {ours[1]}" in found["foreign"]
    assert f"{store.location}/unsigned/1 is not signed" in found["unsigned"]
    assert NAME not in found
    assert f"foreign: {store.location}/foreign/1/model.sig is not" in done.stderr
    both = signatories(ours[1], theirs[1])
    both.demand_signed(store, NAME, 1)
    both.demand_signed(store, "foreign", 1)


def test_a_version_in_an_object_store_is_checked_where_it_lies(
    ours: tuple[Path, Path], endpoint: str, tmp_path: Path
) -> None:
    whom, source = signatories(ours[1]), make_source(tmp_path / "candidate")
    store = open_store(f"s3://{endpoint}/zoo/{tmp_path.name}")
    publishing.publish_version(store, NAME, source, release_json(source), signer=Signer(ours[0]))
    assert problems(store, whom) == []
    objects, key = boto3.client("s3", endpoint_url=endpoint), f"{tmp_path.name}/{NAME}/1/plots/loss.svg"
    content = objects.get_object(Bucket="zoo", Key=key)["Body"].read()
    objects.put_object(Bucket="zoo", Key=key, Body=flipped(content, 50))
    assert f"{store.location}/{NAME}/1/plots/loss.svg is not as it was released" in problems(store, whom)[0]
    with verified_copy(store, whom) as copy:
        assert list(copy.update()) == [f"{NAME} version 1"]
        assert FileStore(copy.root).folders() == []
        objects.put_object(Bucket="zoo", Key=key, Body=content)
        assert list(copy.update()) == [f"{NAME} version 1"]  # its config.pbtxt is as it was
    with verified_copy(store, whom) as copy:
        assert copy.update() == {}
        whom.demand(*unsigned_hashes(copy.root / NAME / "1"), "the copy")
    assert not copy.root.parent.exists()


def test_one_name_that_cannot_be_read_keeps_no_other_from_being_served(
    store: FileStore, ours: tuple[Path, Path]
) -> None:
    bad = Path(store.location) / "bad" / "config.pbtxt"
    bad.mkdir(parents=True)
    with verified_copy(store, signatories(ours[1])) as copy:
        assert [(what, reason[:23]) for what, reason in copy.update().items()] == [("bad", "cannot be looked at: [E")]
        assert FileStore(copy.root).folders() == [NAME]
        bad.rmdir()
        assert copy.update() == {}


def test_versions_are_not_loaded_by_another_ones_configuration(
    store: FileStore, tmp_path: Path, ours: tuple[Path, Path]
) -> None:
    other = make_source(tmp_path / "other")
    config = other / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "other" value { string_value: "one" } }')
    publishing.publish_version(store, NAME, other, release_json(other), signer=Signer(ours[0]))
    live = Path(store.location) / NAME / "config.pbtxt"
    with verified_copy(store, signatories(ours[1])) as copy:
        assert copy.update() == {}
        live.write_text(live.read_text().replace("versions: 2", "versions: 1 versions: 2"))
        ((what, reason),) = copy.update().items()
        assert what.startswith(NAME)
        assert "have several configurations" in reason
        assert repository.loaded_versions(FileStore(copy.root), NAME) == (2,)


def unsigned_hashes(version: Path) -> tuple[dict[str, str], bytes]:
    """What is signed, and the signature."""
    found = repository.hashes(version)
    del found["model.sig"]
    return found, (version / "model.sig").read_bytes()


def test_who_sigstore_has_certified_is_believed_without_a_network(tmp_path: Path) -> None:
    """A real signature of 2025, from the tests of model-signing (Apache License 2.0), and Sigstore's real roots."""
    identity, provider = "stefanb@us.ibm.com", "https://sigstore.verify.ibm.com/oauth2"
    roots = Path(next(iter(sigstore.__path__))) / "_store" / "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev"
    config = tmp_path / "trust.json"
    config.write_text(
        json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
                "trustedRoot": json.loads((roots / "trusted_root.json").read_bytes()),
                "signingConfig": json.loads((roots / "signing_config.v0.2.json").read_bytes()),
            }
        )
    )
    found, signature = unsigned_hashes(Path(__file__).parent / "keyless")
    whom = signing.signatories((), identity, provider, config)
    assert whom is not None
    whom.demand(found, signature, "it")
    with pytest.raises(InputError, match="it/signme-1 is not as it was signed"):
        whom.demand({**found, "signme-1": "0" * 64}, signature, "it")
    other = signing.signatories((), "somebody@us.ibm.com", provider, config)
    assert other is not None
    with pytest.raises(InputError, match=r"it/model\.sig is not a signature by somebody@us\.ibm\.com"):
        other.demand(found, signature, "it")


# What cannot be used


def test_a_key_that_cannot_be_used_is_an_error_in_one_line(
    tmp_path: Path, ours: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, _ = write_key(tmp_path, "locked", PASSPHRASE)
    pem = serialization.Encoding.PEM
    none, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    other = tmp_path / "rsa.key"
    other.write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(pem, pkcs8, none))
    for key in (locked, other, ours[1], tmp_path / "missing"):
        with pytest.raises(InputError, match=rf"^{key} (cannot sign|cannot be read).*private key"):
            Signer(key)
    monkeypatch.setenv(signing.PASSPHRASE, "wrong")
    with pytest.raises(InputError, match=f"cannot sign.*{signing.PASSPHRASE}"):
        Signer(locked)
    monkeypatch.setenv(signing.PASSPHRASE, PASSPHRASE)
    Signer(locked)
    for key in (ours[0], other):
        with pytest.raises(InputError, match=f"^{key} cannot check signatures.*public key"):
            signatories(key)
    with pytest.raises(InputError, match="belong together"):
        signing.signatories((), "somebody", None, None)
    with pytest.raises(InputError, match="exclude each other"):
        signing.signatories((ours[1],), "somebody", "https://somewhere", None)
    with pytest.raises(InputError, match="is not a trust config"):
        signing.signatories((), "somebody", "https://somewhere", ours[1])


def test_without_the_package_the_error_says_how_to_install_it(
    ours: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "find_spec", lambda name: None)
    for use in (lambda: Signer(ours[0]), lambda: signatories(ours[1])):
        with pytest.raises(InputError, match=r"install --require-hashes -r requirements-sign\.lock$"):
            use()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("train", "--no-publish", "--sign-key", "{0}"), "--sign-key signs what is published"),
        (("serve", "--require-signature"), "belong together"),
        (("serve", "--key", "{1}"), "belong together"),
        (("serve", "--require-signature", "--key", "{1}", "--control", "explicit"), "loads what the repository holds"),
    ],
    ids=["no-publish", "no-key", "only-key", "explicit"],
)
def test_flags_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...], reason: str, ours: tuple[Path, Path], tmp_path: Path
) -> None:
    name, *flags = [argument.format(*ours) for argument in arguments]
    with pytest.raises(InputError, match=reason):
        commands.load(name).main([*flags, "--model-repository", str(tmp_path)], standalone_mode=False)


# What is served


def publish(zoo: Zoo, name: str, matrix: np.ndarray, signer: Signer | None) -> int:
    source = zoo.folder / f"source-{len(list(zoo.folder.glob('source-*')))}" / name / "1"
    add_version(source.parent, 1, "onnxruntime", onnx_model(matrix), instances=1)
    asked = images(5)
    np.savez(source / golden.FILE, images=asked, probabilities=expected(asked, matrix))
    content = json.dumps({"hashes": repository.hashes(source)}).encode()
    return publishing.publish_version(zoo.store, name, source, content, signer=signer).version


def test_serve_refuses_by_name_what_is_not_signed_and_serves_the_rest(
    tmp_path: Path, ours: tuple[Path, Path], theirs: tuple[Path, Path]
) -> None:
    zoo, signer = Zoo(tmp_path), Signer(ours[0])
    publish(zoo, "digits", MATRIX, signer)
    publish(zoo, "unsigned", MATRIX, None)
    publish(zoo, "foreign", MATRIX, Signer(theirs[0]))
    publish(zoo, "flipped", MATRIX, signer)
    file = Path(zoo.location) / "flipped" / "1" / "model.onnx"
    file.write_bytes(flipped(file.read_bytes(), 200))
    flags = ("--engine", "embedded", "--require-signature", "--key", str(ours[1]))
    with serving(Path(zoo.location), *flags) as started:
        url, _ = started.urls
        started.waits_for("^  digits version 1 ready$")
        started.waits_for("^  unsigned version 1 refused: .*unsigned/1 is not signed")
        started.waits_for(r"^  foreign version 1 refused: .*foreign/1/model\.sig is not a signature by ")
        started.waits_for(r"^  flipped version 1 refused: .*flipped/1/model\.onnx is not as it was released")
        started.waits_for("^try: bin/infer")
        assert is_answered_by(url, MATRIX)
        refused = len([line for line in started.lines if "refused" in line])
        assert refused == 3

        # One that is published meanwhile; the clock is that of `tests/service.py`, for a machine that does more.
        begin = time.monotonic()
        publish(zoo, "digits", -MATRIX, signer)
        wait_until(lambda: is_answered_by(url, -MATRIX), 60, "version 2 answers")
        print(f"live after {time.monotonic() - begin:.1f} s")
        publish(zoo, "digits", MATRIX, None)
        started.waits_for("^  digits version 3 refused: .*digits/3 is not signed")
        assert is_answered_by(url, -MATRIX)
        # What is altered after it was read is not read again, and the configuration is the signed one.
        switching.rollback(zoo.store, "digits")
        model = Path(zoo.location) / "digits"
        (model / "2" / "model.onnx").write_bytes(onnx_model(MATRIX).SerializeToString())
        config = (model / "config.pbtxt").read_text()
        (model / "config.pbtxt").write_text(config.replace('"onnxruntime"', '"python"'))
        time.sleep(2.5)
        assert is_answered_by(url, -MATRIX)
        # A name that goes is not served any more.
        shutil.rmtree(model)
        wait_until(lambda: "READY" not in {state.state for state in client.models(url)}, 30, "nothing is served")
        assert len([line for line in started.lines if "refused" in line]) == 4, started.lines
        guards = started.guards()
        started.process.send_signal(signal.SIGKILL)
        started.process.wait()
        assert_nothing_left(started.temporary, guards)
