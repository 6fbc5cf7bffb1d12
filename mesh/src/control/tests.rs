//! The socket between a command and a process.

use std::os::unix::fs::PermissionsExt;

use protocol::BlobRef;

use super::*;

async fn data() -> (tempfile::TempDir, PathBuf, BlobStore) {
    let folder = tempfile::tempdir().expect("a folder");
    // Longer than the name of a socket may be.
    let data = folder.path().join("d".repeat(120));
    let store = BlobStore::open(data.join("blobs")).await.expect("a store");
    (folder, data, store)
}

#[tokio::test]
async fn running_process_is_asked_and_its_store_does_it() {
    let (_folder, data, store) = data().await;
    let blob = store.import_bytes(b"a model").await.expect("there is room");
    let server = ControlServer::bind(&data, store.clone()).expect("the folder is free");
    let mode = std::fs::metadata(data.join(SOCKET)).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(stop.clone()));

    let custodian = Custodian::find(&data).await.expect("it listens");
    assert!(matches!(custodian, Custodian::Process(_)));
    let ask = async |request| custodian.ask(request, |_| {}).await;
    let pin = Request::Pin { hash: blob.hash, pinned: true };
    assert_eq!(ask(pin).await.expect("it is whole"), Reply::Pinned);
    assert!(store.list()[0].pinned);
    assert_eq!(ask(Request::List).await.expect("no error"), Reply::Listed(store.list()));
    let verified = Verified { good: 1, bad: vec![] };
    assert_eq!(ask(Request::Verify { hash: None }).await.expect("no error"), Reply::Verified(verified));
    let missing = BlobRef::of(b"another").hash;
    let failed = ask(Request::Verify { hash: Some(missing) }).await.expect_err("it is not there");
    assert_eq!(failed.kind(), FailureKind::NotFound);
    assert_eq!(failed.to_string(), format!("blob `{missing}` is not in the store"));

    stop.cancel();
    serving.await.expect("it ends");
    assert!(!data.join(SOCKET).exists());
}

#[tokio::test]
async fn folder_without_a_process_is_taken_for_the_moment() {
    let (_folder, data, store) = data().await;
    drop(store);
    // As a killed process leaves it.
    drop(short_path(&data.join(SOCKET), std::os::unix::net::UnixListener::bind).expect("own folder"));
    let custodian = Custodian::find(&data).await.expect("nobody has it");
    let model = data.join("model.safetensors");
    std::fs::write(&model, b"weights").expect("own folder");
    let added = custodian.ask(Request::Add { path: model }, |_| {}).await.expect("it can be read");
    assert!(matches!(added, Reply::Added(Indexed { files: 1, hashed: 1, .. })), "{added:?}");
    let taken = Custodian::find(&data).await.err().expect("it is taken");
    assert!(matches!(taken, CustodianError::Folder(_)), "{taken:?}");
    let none = Custodian::find(&data.join("none")).await.err().expect("it is not there");
    assert!(matches!(none, CustodianError::NoFolder(_)), "{none:?}");
}

/// Says back what it is asked, unless that is nothing.
struct Echo;

#[async_trait::async_trait]
impl RoleHandler for Echo {
    async fn answer(&self, request: Value) -> Result<Value, RoleError> {
        match request {
            Value::Null => {
                Err(RoleError { kind: FailureKind::NotFound, words: "nothing was asked".to_owned() })
            }
            request => Ok(request),
        }
    }
}

#[tokio::test]
async fn what_belongs_to_the_role_of_a_process_is_answered_by_it() {
    let (_folder, data, store) = data().await;
    let ask = async |request: Value| {
        let custodian = Custodian::find(&data).await.expect("it is there");
        custodian.ask(Request::Role { request }, |_| {}).await
    };
    let nobody = ask("hello".into()).await.expect_err("nobody has a role");
    assert_eq!(nobody.kind(), FailureKind::Input);
    let server = ControlServer::bind(&data, store).expect("the folder is free").with_role(Arc::new(Echo));
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(stop.clone()));
    assert_eq!(ask("hello".into()).await.expect("an answer"), Reply::Role("hello".into()));
    let failed = ask(Value::Null).await.expect_err("it was nothing");
    assert_eq!((failed.kind(), failed.to_string()), (FailureKind::NotFound, "nothing was asked".to_owned()));
    stop.cancel();
    serving.await.expect("it ends");
}

#[tokio::test]
async fn words_that_are_no_request_are_answered_and_too_many_of_them_are_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (_folder, data, store) = data().await;
    let server = ControlServer::bind(&data, store).expect("the folder is free");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(stop.clone()));
    for words in [b"{\"ask\":\"everything\"}\n".to_vec(), vec![b'x'; MAX_REQUEST as usize]] {
        let stream = short_path(&data.join(SOCKET), std::os::unix::net::UnixStream::connect);
        let stream = stream.expect("it listens");
        stream.set_nonblocking(true).expect("it can be");
        let mut stream = tokio::net::UnixStream::from_std(stream).expect("it is a stream");
        stream.write_all(&words).await.expect("it is read");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers and hangs up");
        assert!(answer.starts_with("{\"failed\":{\"kind\":\"input\""), "{answer}");
    }
    stop.cancel();
    serving.await.expect("it ends");
}
