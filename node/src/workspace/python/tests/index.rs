//! A package index (PEP 691) with tiny packages, and downloads from it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use protocol::{GitPin, LockedFile, Sha256, WebUrl};
use sha2::{Digest, Sha256 as Hasher};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::SemaphorePermit;
use tokio_util::sync::CancellationToken;
use zip::write::SimpleFileOptions;

use crate::policy::Policy;
use crate::workspace::git::{Fetching, GitStore};
use crate::workspace::python::{PINNED_PIP, WheelError, WheelSource};

/// A file of a package.
#[derive(Clone)]
pub(crate) struct File {
    /// Below which index it is; empty for the usual one.
    index: String,
    package: String,
    name: String,
    bytes: Vec<u8>,
}

impl File {
    /// The same file in another index.
    pub(crate) fn at(mut self, index: &str) -> Self {
        self.index = format!("/{index}");
        self
    }

    pub(crate) fn sha256(&self) -> Sha256 {
        Sha256(Hasher::digest(&self.bytes).into())
    }
}

fn zipped(files: &[(String, String)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in files {
        zip.start_file(name, SimpleFileOptions::default()).expect("a name");
        zip.write_all(text.as_bytes()).expect("memory");
    }
    zip.finish().expect("memory").into_inner()
}

/// A wheel of one module that knows its version.
pub(crate) fn wheel(package: &str, version: &str, requires: &[&str]) -> File {
    let info = format!("{package}-{version}.dist-info");
    let requires: String = requires.iter().map(|name| format!("Requires-Dist: {name}\n")).collect();
    let metadata = format!("Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{requires}");
    let tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let mut files = vec![
        (format!("{package}/__init__.py"), format!("VERSION = '{version}'\n")),
        (format!("{info}/METADATA"), metadata),
        (format!("{info}/WHEEL"), tags.to_owned()),
    ];
    let record = |(name, text): &(String, String)| {
        let hash = data_encoding::BASE64URL_NOPAD.encode(&Hasher::digest(text.as_bytes()));
        format!("{name},sha256={hash},{}\n", text.len())
    };
    let record: String = files.iter().map(record).collect();
    files.push((format!("{info}/RECORD"), format!("{record}{info}/RECORD,,\n")));
    let name = format!("{package}-{version}-py3-none-any.whl");
    File { index: String::new(), package: package.to_owned(), name, bytes: zipped(&files) }
}

/// The files of a source that builds such a wheel by itself, after this statement.
pub(crate) fn source(
    package: &str,
    version: &str,
    requires: &[&str],
    statement: &str,
) -> [(String, String); 2] {
    let pyproject = format!(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n\
         [project]\nname = '{package}'\nversion = '{version}'\n"
    );
    let backend = format!(
        "def build_wheel(folder, config_settings=None, metadata_directory=None):\n    {}\n    \
         import base64, os\n    name = '{package}-{version}-py3-none-any.whl'\n    \
         open(os.path.join(folder, name), 'wb').write(base64.b64decode('{}'))\n    return name\n",
        if statement.is_empty() { "pass" } else { statement },
        data_encoding::BASE64.encode(&wheel(package, version, requires).bytes)
    );
    [("pyproject.toml".to_owned(), pyproject), ("backend.py".to_owned(), backend)]
}

/// Such a source as an index has it.
pub(crate) fn sdist(package: &str, version: &str, statement: &str) -> File {
    let folder = format!("{package}-{version}");
    let files = [(
        format!("{folder}/PKG-INFO"),
        format!("Metadata-Version: 2.2\nName: {package}\nVersion: {version}\n"),
    )];
    let source = source(package, version, &[], statement);
    let source = source.map(|(name, text)| (format!("{folder}/{name}"), text));
    let files = [files.as_slice(), source.as_slice()].concat();
    let name = format!("{folder}.zip");
    File { index: String::new(), package: package.to_owned(), name, bytes: zipped(&files) }
}

/// An index that serves files until it is stopped.
pub(crate) struct Index {
    url: String,
    server: tokio::task::JoinHandle<()>,
    requests: Arc<AtomicUsize>,
}

impl Index {
    /// Every environment has a pip.
    pub(crate) async fn serve(mut files: Vec<File>) -> Self {
        files.push(wheel("pip", PINNED_PIP, &[]));
        Self::answer("/simple", |url| answers(url, &files)).await
    }

    /// Any server on loopback: below this path are the answers that it makes for the address of that.
    pub(crate) async fn answer(path: &str, answers: impl FnOnce(&str) -> Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}{path}", listener.local_addr().expect("an address"));
        let answers = Arc::new(answers(&url));
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer(stream, answers.clone()));
            }
        });
        Self { url, server, requests }
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.server.abort();
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The kind and the bytes of each answer, by its path.
pub(crate) type Answers = BTreeMap<String, (&'static str, Vec<u8>)>;

fn answers(url: &str, files: &[File]) -> Answers {
    let mut answers = Answers::new();
    let mut pages: BTreeMap<(String, String), Vec<serde_json::Value>> = BTreeMap::new();
    for file in files {
        let path = format!("/files{}/{}", file.index, file.name.replace('+', "%2B"));
        let address = format!("{}{path}", url.trim_end_matches("/simple"));
        let entry = serde_json::json!({"filename": file.name, "url": address, "size": file.bytes.len(),
            "hashes": {"sha256": file.sha256().to_string()}});
        pages.entry((file.index.clone(), file.package.clone())).or_default().push(entry);
        answers.insert(path, ("application/octet-stream", file.bytes.clone()));
    }
    for ((index, package), files) in pages {
        let page = serde_json::json!({"meta": {"api-version": "1.1"}, "name": package, "files": files});
        let page = serde_json::to_vec(&page).expect("text keys");
        let path = format!("/simple{index}/{package}/");
        answers.insert(path, ("application/vnd.pypi.simple.v1+json", page));
    }
    answers
}

async fn answer(mut stream: TcpStream, answers: Arc<Answers>) {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut chunk).await {
            Ok(count @ 1..) => request.extend_from_slice(&chunk[..count]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, kind, body) = match answers.get(path) {
        Some((kind, body)) => ("200 OK", *kind, body.as_slice()),
        None => ("404 Not Found", "text/plain", b"nothing here".as_slice()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).await;
    if method != "HEAD" {
        let _ = stream.write_all(body).await;
    }
    let _ = stream.shutdown().await;
}

/// Files that were downloaded once, and stay.
pub(crate) struct Downloads {
    folder: PathBuf,
    count: AtomicUsize,
    alone: tokio::sync::Mutex<()>,
}

impl Downloads {
    pub(crate) fn new(folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).expect("a folder");
        Self { folder, count: AtomicUsize::new(0), alone: tokio::sync::Mutex::default() }
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes a file in as a peer would give it.
    pub(crate) fn add(&self, file: &LockedFile, path: &Path) {
        std::fs::copy(path, self.path(file)).expect("it is copied");
    }

    /// Where a file lies, or will.
    pub(crate) fn path(&self, file: &LockedFile) -> PathBuf {
        self.folder.join(file.sha256.to_string())
    }
}

#[async_trait]
impl WheelSource for Downloads {
    async fn file(
        &self,
        file: &LockedFile,
        _turn: Option<SemaphorePermit<'_>>,
    ) -> Result<PathBuf, WheelError> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let _alone = self.alone.lock().await;
        let path = self.path(file);
        if path.is_file() {
            return Ok(path);
        }
        let file_name = file.file_name.to_string();
        let mut tried = Vec::new();
        for url in &file.urls {
            let answer = reqwest::get(url.as_str()).await.and_then(reqwest::Response::error_for_status);
            match answer {
                Ok(answer) => {
                    let bytes = answer.bytes().await.expect("a whole answer");
                    let found = Sha256(Hasher::digest(&bytes).into());
                    if found != file.sha256 {
                        let from = url.to_string();
                        return Err(WheelError::WrongHash { file_name, expected: file.sha256, found, from });
                    }
                    std::fs::write(&path, &bytes).expect("it is written");
                    return Ok(path);
                }
                Err(error) => tried.push(error.to_string()),
            }
        }
        Err(WheelError::NoSource { file_name, tried })
    }

    fn read<'a>(&'a self, file: &'a LockedFile) -> BoxStream<'a, Result<Vec<u8>, WheelError>> {
        let whole = async { Ok(std::fs::read(self.file(file, None).await?).expect("it is here")) };
        stream::once(whole).boxed()
    }

    async fn repository(&self, pin: &GitPin, into: &Path) -> Result<(), WheelError> {
        let git = GitStore::open(self.folder.join("git"))?;
        let policy = Policy { private_origins: true, ..Policy::default() };
        let cancel = CancellationToken::new();
        let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
        git.lay_out(pin, into, &fetching).map(drop).map_err(WheelError::from)
    }

    async fn size(&self, urls: &[WebUrl]) -> Result<u64, WheelError> {
        let answer = reqwest::get(urls[0].as_str()).await.expect("an answer");
        Ok(answer.content_length().unwrap_or_default())
    }
}
