//! Services of the test's own, whose answers have the shape of the real ones.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use protocol::BlobHash;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::*;

const COMMIT: &str = "ca457f7ba1ff33bd0d724cd7324131509efcf3ec";
const FILE: Sha256 = Sha256([0xab; 32]);

/// A server that answers these paths, and others with 404.
pub(super) struct Web {
    pub(super) base: WebUrl,
    asked: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

/// What is answered: a status, further lines of the head, and a body.
pub(super) type Reply = (u16, String, String);

fn answers(value: &Value) -> Reply {
    (200, String::new(), value.to_string())
}

impl Web {
    pub(super) async fn start(replies: impl FnOnce(&str) -> BTreeMap<String, Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (replies, asked) = (replies(&base), Arc::<Mutex<Vec<String>>>::default());
        let log = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while stream.read_line(&mut head).await.is_ok_and(|bytes| bytes > 2) {}
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let missing = (404, String::new(), r#"{"error": "Not Found"}"#.to_owned());
                let (status, lines, body) = replies.get(&path).cloned().unwrap_or(missing);
                log.lock().expect("own").push(path);
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n{lines}\r\n{body}"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let base = base.parse().expect("a URL");
        Self { base, asked, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("own").clone()
    }
}

fn model(path: &str, sha256: Sha256) -> LockedModel {
    LockedModel {
        path: path.parse().expect("a path"),
        size: 7,
        sha256: Some(sha256),
        blob: Some(BlobHash::of(b"a model")),
        sources: Vec::new(),
        disabled: false,
        share: true,
    }
}

/// Civitai's answer for a version with two files.
fn version() -> Value {
    let file = |id: u32, hash: &str| {
        json!({
            "id": id, "sizeKB": 6_775_430.353, "name": "x.safetensors", "type": "Model", "primary": id == 1,
            "hashes": { "AutoV2": "ABABABABAB", "SHA256": hash.to_uppercase(), "CRC32": "0", "BLAKE3": "00" },
            "downloadUrl": format!("https://civitai.com/api/download/models/{id}?type=Model&token=secret"),
        })
    };
    json!({
        "id": 1, "modelId": 2, "name": "v1", "files": [file(1, &"00".repeat(32)), file(2, &FILE.to_string())],
        "images": [], "downloadUrl": "https://civitai.com/api/download/models/1",
    })
}

/// What a lookup makes of these models, and what it tells.
async fn looked_up(
    models: Vec<LockedModel>,
    civitai: &WebUrl,
    hub: &WebUrl,
    repositories: &[&str],
) -> (Vec<Vec<String>>, Vec<String>) {
    let repositories: Vec<HubRepository> =
        repositories.iter().map(|text| text.parse().expect("a repository")).collect();
    let (tokens, travelling) = (Tokens::default(), BTreeSet::new());
    let request = LookupRequest {
        civitai,
        hugging_face: hub,
        repositories: &repositories,
        travelling: &travelling,
        tokens: &tokens,
    };
    let mut lockfile = Lockfile { models, ..Lockfile::default() };
    let mut told = Vec::new();
    let mut tell = |answer: Answer| told.push(answer.to_string());
    look_up(&mut lockfile, &request, &mut tell).await.expect("the system has root certificates");
    let urls = |model: &LockedModel| urls(model).map(ToString::to_string).collect();
    (lockfile.models.iter().map(urls).collect(), told)
}

fn by_hash(sha256: Sha256) -> String {
    format!("/api/v1/model-versions/by-hash/{}", sha256.to_string().to_uppercase())
}

#[tokio::test]
async fn civitai_is_believed_for_the_file_that_has_the_hash() {
    let other = Sha256([0xcd; 32]);
    let civitai = Web::start(|_| {
        BTreeMap::from([(by_hash(FILE), answers(&version())), (by_hash(other), answers(&version()))])
    })
    .await;
    let hub = Web::start(|_| BTreeMap::new()).await;
    let models = vec![model("models/loras/a.safetensors", FILE), model("models/loras/b.safetensors", other)];
    let (urls, told) = looked_up(models, &civitai.base, &hub.base, &[]).await;
    assert_eq!(urls, [vec!["https://civitai.com/api/download/models/2?type=Model".to_owned()], vec![]]);
    assert!(
        told[0].starts_with("Civitai has `models/loras/a.safetensors`: https://civitai.com/"),
        "{told:?}"
    );
    assert!(told[1].ends_with("it answers with another file"), "{told:?}");
}

#[tokio::test]
async fn hub_is_looked_through_page_by_page_and_the_commit_is_pinned() {
    let civitai = Web::start(|_| BTreeMap::new()).await;
    let tree = format!("/api/models/a/b/tree/{COMMIT}?recursive=true");
    let lfs = |sha256: Sha256, path: &str| {
        let lfs = json!({ "oid": sha256, "size": 7, "pointerSize": 134 });
        json!({ "type": "file", "oid": "1".repeat(40), "size": 7, "lfs": lfs, "xetHash": "0", "path": path })
    };
    let second = Sha256([0xcd; 32]);
    let hub = Web::start(|base| {
        let next = format!("link: <{base}{tree}&cursor=x>; rel=\"next\"\r\n");
        let small = json!({ "type": "file", "oid": "1".repeat(40), "size": 1, "path": "README.md" });
        let folder = json!({ "type": "directory", "oid": "1".repeat(40), "size": 0, "path": "split files" });
        BTreeMap::from([
            ("/api/models/a/b/revision/main".to_owned(), answers(&json!({ "id": "a/b", "sha": COMMIT }))),
            (tree.clone(), (200, next, json!([small, folder]).to_string())),
            (
                format!("{tree}&cursor=x"),
                answers(&json!([lfs(FILE, "split files/a.safetensors"), lfs(second, "b.safetensors")])),
            ),
            (
                "/api/models?search=c&limit=4".to_owned(),
                answers(&json!([{ "_id": "1", "id": "x/c", "modelId": "x/c", "private": false }])),
            ),
        ])
    })
    .await;
    let models = vec![
        model("models/vae/a.safetensors", FILE),
        model("models/vae/b.safetensors", second),
        model("models/vae/c.safetensors", Sha256([0xef; 32])),
    ];
    let (urls, told) = looked_up(models, &civitai.base, &hub.base, &["no/thing", "a/b"]).await;
    let at = |path: &str| vec![format!("https://huggingface.co/a/b/resolve/{COMMIT}/{path}")];
    assert_eq!(urls, [at("split%20files/a.safetensors"), at("b.safetensors"), vec![]]);
    let expected = [
        "Civitai has no `models/vae/a.safetensors`",
        "Hugging Face does not tell of `no/thing`: `127.0.0.1` answered 404: the file is not there, or not any more",
        &format!("Hugging Face has `models/vae/a.safetensors`: {}", urls[0][0]),
        "Civitai has no `models/vae/b.safetensors`",
        &format!("Hugging Face has `models/vae/b.safetensors`: {}", urls[1][0]),
        "Civitai has no `models/vae/c.safetensors`",
        "Hugging Face does not tell of `x/c`: `127.0.0.1` answered 404: the file is not there, or not any more",
        "Hugging Face has no `models/vae/c.safetensors` in the one repository that was looked through",
    ];
    assert_eq!(told, expected);
    // Each repository is read once.
    assert_eq!(hub.asked().iter().filter(|path| **path == tree).count(), 1);
}

#[tokio::test]
async fn service_that_is_of_no_use_is_told_and_stops_nothing() {
    let garbage = Web::start(|_| {
        let large = "x".repeat(5 << 20);
        BTreeMap::from([
            (by_hash(FILE), (200, String::new(), "<html>busy</html>".to_owned())),
            ("/api/models/a/b/revision/main".to_owned(), (200, String::new(), large)),
            ("/api/models/a/gated/revision/main".to_owned(), (401, String::new(), String::new())),
        ])
    })
    .await;
    let models = || vec![model("models/vae/a.safetensors", FILE)];
    let (urls, told) = looked_up(models(), &garbage.base, &garbage.base, &["a/b", "a/gated"]).await;
    assert_eq!(urls, [Vec::<String>::new()]);
    let expected = [
        "its documentation says",
        "more than 4194304 bytes",
        "401",
        "404",
        "no repository could be looked through",
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, words) in told.iter().zip(expected) {
        assert!(told.contains(words), "{words}: {told}");
    }

    // Nobody listens there any more.
    let base = garbage.base.clone();
    drop(garbage);
    let two = vec![model("models/vae/a.safetensors", FILE), model("models/vae/b.safetensors", FILE)];
    let (urls, told) = looked_up(two, &base, &base, &["a/b"]).await;
    assert_eq!((urls.concat().len(), told.len()), (0, 2), "each is asked once: {told:?}");
}

#[tokio::test]
async fn nobody_is_asked_about_what_is_private_or_known() {
    let web = Web::start(|_| BTreeMap::new()).await;
    let private = LockedModel { share: false, ..model("models/vae/a.safetensors", FILE) };
    let mut known = model("models/vae/b.safetensors", FILE);
    known.sources = vec![Source { url: "https://example.org/b".parse().expect("a URL") }];
    let (_, told) = looked_up(vec![private, known], &web.base, &web.base, &["a/b"]).await;
    assert_eq!((told, web.asked()), (vec![], vec![]));
}
