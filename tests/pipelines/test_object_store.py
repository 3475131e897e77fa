"""S3 through `storage`: what passes by itself is waited out, nothing is done twice, and errors say what to do."""

import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError
from botocore.retries.standard import ExponentialBackoff
from s3fs.core import S3FileSystem
from s3fs.errors import translate_boto_error

from pipelines import object_store, storage
from pipelines.nightly.listing import list_images
from pipelines.object_store import ObjectStore
from pipelines.store_errors import StoreUnavailableError
from pipelines.tables.commits import exclusive_create_works
from tests.pipelines import fault_proxy as fault_proxies
from tests.pipelines.fault_proxy import FAULTS, FaultProxy, fault_proxy
from tests.pipelines.s3_servers import S3Server, moto_server, seaweedfs


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto_server() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.endpoint) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket, seen through a proxy whose faults come quickly and are waited out quickly."""
    monkeypatch.setattr(fault_proxies, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda backoff, context: 0.01)
    proxy.fail(rate=0.0)
    use(server.environment(proxy.endpoint), monkeypatch)
    yield f"s3://{server.make_bucket()}"
    ObjectStore.clear_instance_cache()


def use(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ObjectStore.clear_instance_cache()  # a process has one environment; this one has several


def test_what_storage_does_on_folders_it_does_on_s3(bucket: str) -> None:
    assert storage.exists(bucket) and not storage.exists(f"{bucket}/a")
    storage.check_writable(f"{bucket}/a")
    assert storage.list_files(f"{bucket}/a") == []
    storage.write_atomic(f"{bucket}/a/b/c.txt", b"1")
    storage.write_atomic(f"{bucket}/a/b/c.txt", b"12")
    assert storage.read_bytes(f"{bucket}/a/b/c.txt") == b"12"
    storage.move(f"{bucket}/a/b/c.txt", f"{bucket}/a/d.txt")
    storage.move(f"{bucket}/a/b/c.txt", f"{bucket}/a/d.txt")  # again, after a kill
    storage.write_atomic(f"{bucket}/a/e/f.txt", b"3")
    assert storage.list_files(f"{bucket}/a") == [f"{bucket}/a/d.txt", f"{bucket}/a/e/f.txt"]
    assert storage.list_folders(f"{bucket}/a") == ["e"]
    storage.remove_tree(f"{bucket}/a/e")
    storage.remove_file(f"{bucket}/a/d.txt")
    storage.remove_file(f"{bucket}/a/d.txt")
    assert storage.list_files(bucket) == []
    with pytest.raises(FileNotFoundError, match=f"{bucket}/a/d.txt"):
        storage.read_bytes(f"{bucket}/a/d.txt")


def test_pyarrow_reads_and_writes_through_the_same_store(bucket: str) -> None:
    filesystem, path = storage.arrow_filesystem(f"{bucket}/x/y.bin")
    with filesystem.open_output_stream(path) as file:
        file.write(b"abc")
    assert storage.read_bytes(f"{bucket}/x/y.bin") == b"abc"
    with filesystem.open_input_file(path) as file:
        assert file.read_at(2, 1) == b"bc"


def test_a_store_travels_without_credentials(bucket: str, server: S3Server) -> None:
    fs, _ = storage.filesystem(bucket)
    packed = pickle.dumps(fs)
    assert isinstance(pickle.loads(packed), ObjectStore)
    assert server.secret_key.encode() not in packed


def test_of_many_writers_exactly_one_creates(bucket: str) -> None:
    barrier = threading.Barrier(8)

    def write(number: int) -> bool:
        barrier.wait()
        return storage.create_exclusive(f"{bucket}/claim", f"{number}".encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert sum(won) == 1
    assert storage.read_bytes(f"{bucket}/claim") == str(won.index(True)).encode()
    assert exclusive_create_works(bucket)


def test_a_writer_knows_its_own_object_when_the_answer_was_lost(bucket: str, proxy: FaultProxy) -> None:
    """Also where all writers write the same bytes, as the markers of attempts are."""
    proxy.fail("lost", only=("PUT",), at_most=2)
    assert storage.create_exclusive(f"{bucket}/claim", b"same")
    assert proxy.counts["lost"] == 2
    assert not storage.create_exclusive(f"{bucket}/claim", b"same")


def test_an_answer_lost_on_the_last_request_of_a_large_object(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that puts the pieces together is tried again, and the server no longer knows of any upload."""
    fs, path = storage.filesystem(f"{bucket}/large")
    original = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda *args, **kwargs: original(*args, chunksize=5 * 2**20, **kwargs))
    data = bytes(11 * 2**20)
    call = fs._call_s3
    completed = 0

    async def lose_the_last(method: str, *args: object, **kwargs: object) -> object:
        nonlocal completed
        if method == "complete_multipart_upload":
            completed += 1
            proxy.fail("lost", only=("POST",), at_most=1)
        return await call(method, *args, **kwargs)

    monkeypatch.setattr(fs, "_call_s3", lose_the_last)
    assert fs.put_new(path, data)
    fs.put(path, data[1:])
    assert completed == 2 and proxy.counts["lost"] == 1
    assert len(storage.read_bytes(f"{bucket}/large")) == len(data) - 1


@pytest.mark.parametrize("kind", FAULTS)
def test_what_passes_by_itself_is_waited_out(bucket: str, proxy: FaultProxy, kind: str) -> None:
    proxy.fail(kind, rate=0.3)
    for number in range(6):
        uri = f"{bucket}/{number}.bin"
        data = bytes([number]) * 50_000
        assert storage.create_exclusive(uri, data)
        assert not storage.create_exclusive(uri, b"other")
        assert storage.read_bytes(uri) == data
        storage.move(uri, f"{bucket}/moved/{number}.bin")
    assert list_images(bucket).num_rows == 6
    storage.remove_tree(bucket + "/moved")
    assert storage.list_files(bucket) == []
    assert proxy.counts[kind] > 0


def test_a_store_that_does_not_answer_is_told_from_a_missing_file(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStore, "retries", 1)
    monkeypatch.setattr(object_store, "REQUEST_ATTEMPTS", 2)
    for kind, message in (("503", "answers with errors"), ("lost", "does not answer")):
        ObjectStore.clear_instance_cache()
        proxy.fail(kind)
        for act in (
            lambda: storage.read_bytes(f"{bucket}/x"),
            lambda: storage.exists(bucket),
            lambda: storage.write_atomic(f"{bucket}/x", b""),
            lambda: storage.create_exclusive(f"{bucket}/x", b""),
            lambda: storage.list_files(f"{bucket}/x"),
        ):
            with pytest.raises(StoreUnavailableError, match=message):
                act()
    proxy.fail(rate=0.0)
    use({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, monkeypatch)
    with pytest.raises(StoreUnavailableError, match="http://127.0.0.1:9 does not answer.*check AWS_ENDPOINT_URL"):
        storage.exists(f"{bucket}/x")


def test_a_request_that_takes_long_is_told_once_in_a_while(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(object_store, "_last_warning", -1e9)
    storage.write_atomic(f"{bucket}/x", b"quick")
    assert not caplog.records
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(fault_proxies, "SLOW_SECONDS", 1.0)
    proxy.fail("slow")
    for _ in range(2):
        assert storage.read_bytes(f"{bucket}/x") == b"quick"
    assert [record.getMessage() for record in caplog.records] == [
        f"get_object of {bucket}/x is not done after 0 s; waiting, and trying again"
    ]


def test_credentials_that_are_missing_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    ObjectStore.clear_instance_cache()
    with pytest.raises(PermissionError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"):
        storage.read_bytes(f"{bucket}/x")


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    assert not storage.exists(f"{bucket}-x") and not storage.exists(f"{bucket}-x/key")
    with pytest.raises(FileNotFoundError, match="correct the bucket's name or AWS_ENDPOINT_URL"):
        storage.write_atomic(f"{bucket}-x/key", b"")


def test_objects_are_listed_page_by_page(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "OBJECTS_PER_PAGE", 10)
    for number in range(25):
        storage.write_atomic(f"{bucket}/flat/{number:05d}.jpg", b"x")
    entries = storage.entries(f"{bucket}/flat")
    proxy.fail(rate=0.0)  # counts begin anew
    assert next(entries)["name"].endswith("/flat/00000.jpg")
    assert proxy.counts.total() == 1  # one request; no more is held
    assert len(list(entries)) == 24 and proxy.counts.total() == 3
    assert list_images(f"{bucket}/flat").num_rows == 25


@pytest.mark.parametrize("code", ["PreconditionFailed", "412", "NoSuchUpload"])
def test_a_failed_precondition_means_that_the_object_exists(answers: list[str], bucket: str, code: str) -> None:
    answers.append(code)
    assert not storage.create_exclusive(f"{bucket}/x", b"late")


def test_a_write_conflict_is_tried_again_and_other_errors_are_raised(answers: list[str], bucket: str) -> None:
    answers += ["ConditionalRequestConflict", "ConditionalRequestConflict"]
    assert storage.create_exclusive(f"{bucket}/y", b"mine")
    answers += ["AccessDenied"]
    with pytest.raises(PermissionError, match="ask for access"):
        storage.create_exclusive(f"{bucket}/z", b"mine")
    answers += ["ConditionalRequestConflict"] * 5
    with pytest.raises(OSError, match="ConditionalRequestConflict"):
        storage.create_exclusive(f"{bucket}/z", b"mine")


@pytest.fixture
def answers(bucket: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Codes of errors that the next writes end with, as servers give them that do not name the condition."""
    codes: list[str] = []
    original = S3FileSystem._call_s3

    async def answer(self: ObjectStore, method: str, *arguments: object, **named: object) -> object:
        if method == "put_object" and codes:
            error = ClientError({"Error": {"Code": codes.pop(0)}}, method)
            raise translate_boto_error(error)
        return await original(self, method, *arguments, **named)

    monkeypatch.setattr(S3FileSystem, "_call_s3", answer)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return codes


def test_a_listing_by_levels_sees_what_a_flat_one_sees(bucket: str) -> None:
    names = ["a.jpg", "x/b.jpg", "x/y/c.jpg", "z/.hidden/d.jpg", "z/e.part", "z/w/v/u/t/f.jpg"]
    for name in names:
        storage.write_atomic(f"{bucket}/{name}", b"1")
    found = list_images(bucket)
    assert found["uri"].to_pylist() == [f"{bucket}/{name}" for name in (*names[:3], names[5])]
    assert all(found["etag"].to_pylist()) and found["last_modified"].null_count == 0


@pytest.mark.slow
def test_a_server_with_real_authentication_refuses_a_wrong_secret_and_keeps_its_files_over_a_kill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with seaweedfs() as server:
        bucket = f"s3://{server.make_bucket()}"
        use(server.environment(), monkeypatch)
        assert storage.create_exclusive(f"{bucket}/x", b"1") and not storage.create_exclusive(f"{bucket}/x", b"2")
        assert exclusive_create_works(bucket)
        use({"AWS_SECRET_ACCESS_KEY": "wrong"}, monkeypatch)
        with pytest.raises(PermissionError, match="correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            storage.read_bytes(f"{bucket}/x")
        use({"AWS_SECRET_ACCESS_KEY": server.secret_key}, monkeypatch)
        server.kill()
        threading.Timer(1.0, server.start_again).start()
        assert storage.read_bytes(f"{bucket}/x") == b"1"  # it waits for the server
